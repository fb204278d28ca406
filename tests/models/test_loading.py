"""Model folders of strangers: no code of theirs runs, no weight is made up, and a failure is one line."""

import builtins
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys

import diffusers
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.eeg_llm import load_language_model, lora_targets
from models.image_generator import EEGImageGenerator, load_image_model
from models.loading import built, load_tokenizer, part_class, refuse_code
from stages.pictures import cue_arrow
from utils.errors import UserError
from utils.files import read_json
from utils.paths import ROOT

CPU = torch.device("cpu")
MALICE = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass Evil: pass\n"


@pytest.fixture
def yes(monkeypatch):
    """Somebody who answers every question with yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def language_model(folder):
    return load_language_model(str(folder), CPU, False, torch.float32)


def edited(file, **changes):
    """Change fields of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("file, changes", [
    ("config.json", {"model_type": "evil", "architectures": ["Evil"],
                     "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}),
    ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
    ("generation_config.json", {"auto_map": {"x": "evil.Evil"}, "custom_generate": "evil"}),
])  # fmt: skip
def test_no_code_of_a_language_models_folder_runs(demo, tmp_path, yes, file, changes):
    shutil.copytree(demo.llm, tmp_path / "llm")
    (tmp_path / "llm/evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    (tmp_path / "llm/custom_generate").mkdir()
    (tmp_path / "llm/custom_generate/generate.py").write_text(MALICE.format(str(tmp_path / "ran")))
    edited(tmp_path / "llm" / file, **changes)
    try:
        model, _ = language_model(tmp_path / "llm")
        model.generate(input_ids=torch.tensor([[1]]), max_new_tokens=1)
    except UserError as error:
        assert str(tmp_path / "llm") in str(error) and "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


def test_no_kernel_is_fetched_that_a_language_model_names(demo, tmp_path):
    shutil.copytree(demo.llm, tmp_path / "llm")
    edited(tmp_path / "llm/config.json", attn_implementation="evil/kernel")
    with pytest.raises(UserError, match="Python code of its own"):
        language_model(tmp_path / "llm")


def nest_a_tokenizer(folder):
    """A composite tokenizer loads its parts by AutoTokenizer, and does not say whether they are trusted."""
    edited(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    llama = json.loads((folder / "config.json").read_text())
    edited(folder / "config.json", question_encoder=llama, generator=llama)
    for part in ("question_encoder_tokenizer", "generator_tokenizer"):
        (folder / part).mkdir()
        shutil.copy(folder / "evil.py", folder / part)
        shutil.copy(folder / "tokenizer.json", folder / part)
        (folder / part / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}'
        )


def nest_a_model(folder):
    """A composite model makes its parts by AutoModel."""
    text = {"model_type": "git_vision_model", "pad_token_id": 0, "vocab_size": 100, "_name_or_path": str(folder),
            "auto_map": {"AutoModel": f"{folder}--evil.Evil"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({
        "model_type": "fuyu", "architectures": ["FuyuForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 100, "pad_token_id": 0, "text_config": text,
    }))  # fmt: skip


@pytest.mark.parametrize("nest", [nest_a_tokenizer, nest_a_model])
def test_no_code_runs_that_a_part_of_a_part_brings(demo, tmp_path, yes, nest):
    shutil.copytree(demo.llm, tmp_path / "llm")
    (tmp_path / "llm/evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    nest(tmp_path / "llm")
    with pytest.raises(UserError, match="Python code of its own") as error:
        language_model(tmp_path / "llm")
    assert str(tmp_path / "llm") in str(error.value) and not (tmp_path / "ran").exists()


def test_no_code_runs_that_a_processor_of_an_image_model_brings(vi_pth, tmp_path, yes):
    shutil.copytree(vi_pth / "stable-diffusion", tmp_path / "sd")
    edited(tmp_path / "sd/model_index.json", tokenizer=["transformers", "CLIPProcessor"])
    folder, code = tmp_path / "sd/tokenizer", ["evil.Evil", "evil.Evil"]
    (folder / "evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    edited(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": code, "AutoProcessor": code[0]},
    )
    (folder / "processor_config.json").write_text(
        '{"processor_class": "CLIPProcessor", "auto_map": {"AutoProcessor": "evil.Evil"}}'
    )
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(UserError, match="--image_model"):
        load_image_model(str(tmp_path / "sd"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part, named", [
    ("text_encoder", ["transformers", "AutoModel"]), ("text_encoder", ["evil", "Evil"]), ("scheduler", ["evil",
    "Evil"]),
    ("unet", ["diffusers", "DiffusionPipeline.from_pretrained"]), ("unet", ["builtins", "exec"]), ("vae", ["diffusers",
    "AutoModel"]),
    ("unet", ["diffusers", "NoSuchClass"]), ("tokenizer", ["transformers", "AutoTokenizer"]),
])  # fmt: skip
def test_no_part_of_an_image_model_is_anything_but_a_class_of_the_libraries(vi_pth, tmp_path, yes, part, named):
    shutil.copytree(vi_pth / "stable-diffusion", tmp_path / "sd")
    for folder in ("", part):
        (tmp_path / "sd" / folder / "evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    if part == "text_encoder":
        edited(
            tmp_path / "sd/text_encoder/config.json",
            model_type="evil",
            auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
        )
    edited(tmp_path / "sd/model_index.json", **{part: named})
    with pytest.raises(UserError, match=f"--image_model .*its {part} is a ") as error:
        load_image_model(str(tmp_path / "sd"))
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


EVIL = "pth.sd_of_a_test.scheduler.evil"


@pytest.fixture
def nested(vi_pth, tmp_path, monkeypatch):
    """An image model in pth/ whose scheduler's folder is a pipeline that names a module of that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, EVIL, raising=False)
    folder = tmp_path / "pth/sd_of_a_test"
    shutil.copytree(vi_pth / "stable-diffusion", folder)
    edited(folder / "model_index.json", scheduler=["diffusers", "DiffusionPipeline"])
    inside = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.41.0", "unet": [EVIL, "Evil"]}
    (folder / "scheduler/model_index.json").write_text(json.dumps(inside))
    (folder / "scheduler/evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    assert importlib.util.find_spec(EVIL)  # it can be imported
    return folder


def test_no_module_is_imported_that_a_pipeline_inside_an_image_model_names(nested, tmp_path):
    with pytest.raises(UserError, match="--image_model .*model_index.json: a part must not be a pipeline") as error:
        load_image_model("pth/sd_of_a_test")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
    (nested / "scheduler/model_index.json").unlink()
    with pytest.raises(UserError, match="--image_model .*its scheduler is a diffusers.DiffusionPipeline") as error:
        load_image_model("pth/sd_of_a_test")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["scheduler", "unet/deep"])
def test_no_part_of_an_image_model_may_be_a_pipeline_even_if_it_is_named_otherwise(vi_pth, tmp_path, place):
    shutil.copytree(vi_pth / "stable-diffusion", tmp_path / "sd")
    (tmp_path / "sd" / place).mkdir(exist_ok=True)
    shutil.copy(tmp_path / "sd/model_index.json", tmp_path / "sd" / place)
    with pytest.raises(UserError, match=f"--image_model .*{place}/model_index.json: a part must not be a pipeline"):
        load_image_model(str(tmp_path / "sd"))


def test_diffusers_itself_imports_no_module_that_a_folder_names(nested, tmp_path):
    refuse_code()
    from diffusers.pipelines import pipeline_loading_utils

    for folder in (nested, nested / "scheduler"):
        with pytest.raises(ValueError, match="expected a model, scheduler, tokenizer or image processor"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
    for library in (EVIL, "diffusers_evil"):
        with pytest.raises(ValueError, match="Python code of its own"):
            pipeline_loading_utils.simple_get_class_obj(library, "Evil")
    assert not (tmp_path / "ran").exists()


KINDS = {"ModelMixin", "SchedulerMixin", "PreTrainedModel", "PreTrainedTokenizerBase", "ImageProcessingMixin"}
COMPOSITES = {"DiffusionPipeline", "ModularPipeline", "ProcessorMixin", "PreTrainedConfig", "PeftModel", "BaseGuidance"}
NAMES = re.compile("Auto[A-Z]|Peft|.*(Pipeline|Config|(?<!Image)(?<!Video)Processor)$")


def may_be_a_part(library, name):
    try:
        return bool(part_class("unet", library, name))
    except (ValueError, ImportError, RuntimeError):  # of another kind, or it needs a library that is not there
        return False


@pytest.mark.filterwarnings("ignore")
def test_of_all_classes_of_the_libraries_a_part_is_a_model_scheduler_tokenizer_or_image_processor():
    """Transformers' own models and configs take 20 s to import: EEG2IMAGE_ALL_CLASSES=1 asks them too."""
    modules = {name: module.rpartition(".")[2] for name, module in transformers._class_to_module.items()}
    everything = bool(os.environ.get("EEG2IMAGE_ALL_CLASSES"))
    asked = [name for name in dir(transformers) if everything or re.match("Auto[A-Z]", name)
             or not re.match("modeling_|configuration_", modules.get(name, name.rpartition(".")[2]))]  # fmt: skip
    places = {"diffusers": diffusers, "transformers": transformers, "peft": peft,
              "stable_diffusion": diffusers.pipelines.stable_diffusion}  # fmt: skip
    n_let_in = dict.fromkeys(places, 0)
    for library, place in places.items():
        for name in asked if place is transformers else dir(place):
            if may_be_a_part(library, name):
                bases = {base.__name__ for base in inspect.getmro(getattr(place, name))}
                assert bases & KINDS and not bases & COMPOSITES and not NAMES.match(name), (library, name)
                n_let_in[library] += 1
    least = 2000 if everything else 100
    assert n_let_in["diffusers"] > 150 and n_let_in["transformers"] > least and n_let_in["peft"] == 0


def test_the_parts_of_published_image_models_are_let_in_and_what_loads_other_classes_is_not():
    published = {
        "diffusers": "UNet2DConditionModel AutoencoderKL UVit2DModel VQModel DDIMScheduler AmusedScheduler",
        "transformers": "CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer CLIPImageProcessor "
        "CLIPFeatureExtractor CLIPVisionModelWithProjection",
        "stable_diffusion": "StableDiffusionSafetyChecker",
    }
    refused = {
        "diffusers": "DiffusionPipeline StableDiffusionPipeline ModularPipeline AutoModel AutoPipelineForText2Image "
        "OnnxRuntimeModel pipelines utils __class__ __name__",
        "transformers": "AutoModel AutoTokenizer AutoImageProcessor AutoProcessor CLIPProcessor RagTokenizer "
        "RagRetriever CLIPConfig ProcessorMixin models pipelines",
        "stable_diffusion": "StableDiffusionPipeline StableDiffusionImg2ImgPipeline safety_checker",
        "peft": "PeftModel AutoPeftModel LoraConfig",
        "diffusers.pipelines.pipeline_utils": "DiffusionPipeline",
        "diffusers.models": "UNet2DConditionModel",
        "builtins": "exec type",
        "None": "__class__",
    }
    assert all(may_be_a_part(library, name) for library, names in published.items() for name in names.split())
    assert not any(may_be_a_part(library, name) for library, names in refused.items() for name in names.split())


def test_a_safety_checker_is_loaded_whole_and_is_nothing_else(vi_pth, tmp_path):
    folder = tmp_path / "sd"
    shutil.copytree(vi_pth / "stable-diffusion", folder)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.CLIPConfig(
        text_config=small, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    transformers.CLIPImageProcessorPil().save_pretrained(folder / "feature_extractor")
    edited(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    pipeline = load_image_model(str(folder)).pipeline
    assert type(pipeline.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    assert type(pipeline.feature_extractor).__name__.startswith("CLIPImageProcessor")
    without_a_tensor(folder / "safety_checker/model.safetensors")
    with pytest.raises(UserError, match="--image_model .*missing keys"):
        load_image_model(str(folder))
    edited(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionPipeline"])
    with pytest.raises(UserError, match="its safety_checker is a stable_diffusion.StableDiffusionPipeline"):
        load_image_model(str(folder))


def test_a_pipeline_of_a_strangers_is_not_loaded(vi_pth, tmp_path, yes):
    shutil.copytree(vi_pth / "stable-diffusion", tmp_path / "sd")
    (tmp_path / "sd/evil.py").write_text(MALICE.format(str(tmp_path / "ran")))
    (tmp_path / "sd/pipeline.py").write_text(MALICE.format(str(tmp_path / "ran")))
    for name in (["evil", "Evil"], "Evil", None, 3):
        edited(tmp_path / "sd/model_index.json", _class_name=name)
        with pytest.raises(UserError, match="--image_model"):
            load_image_model(str(tmp_path / "sd"))
    assert not (tmp_path / "ran").exists()


def without_a_tensor(file):
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "llm", "clip"])
def test_a_weight_that_is_missing_is_not_made_up(demo, tmp_path, part):
    source = {"llm": demo.llm, "clip": demo.pth / "clip"}.get(part, demo.pth / "stable-diffusion")
    shutil.copytree(source, tmp_path / "model")
    folder = tmp_path / "model" if part in ("llm", "clip") else tmp_path / "model" / part
    name = without_a_tensor(next(folder.glob("*.safetensors")))
    with pytest.raises(UserError, match="missing keys|" + name.replace(".", "[.]")) as error:
        if part == "llm":
            language_model(tmp_path / "model")
        elif part == "clip":
            CLIPImageTargetBuilder(str(tmp_path / "model"), tmp_path / "cache").build([cue_arrow("left")])
        else:
            load_image_model(str(tmp_path / "model"))
    assert str(tmp_path / "model") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file, change", [
    ("config.json", lambda text: text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')),
    ("config.json", lambda text: text.replace('"hidden_act": "silu"', '"hidden_act": "sulu"')),
    ("config.json", lambda text: text[:50]), ("config.json", lambda text: "[" * 100_000), ("config.json",
    lambda text: "[]"),
    ("tokenizer.json", lambda text: text[:-200]), ("tokenizer.json", lambda text: text.replace('"vocab"', '"vocap"')),
    ("tokenizer_config.json", lambda text: re.sub('"model_max_length": [^,]+', '"model_max_length": [[1]]', text)),
    ("tokenizer_config.json", lambda text: "3"), ("chat_template.jinja", lambda text: "{% for"),
])  # fmt: skip
def test_a_damaged_file_of_a_language_model_is_one_line(demo, tmp_path, file, change):
    from models.eeg_llm import split_prompt

    shutil.copytree(demo.llm, tmp_path / "llm")
    text = (tmp_path / "llm" / file).read_text()
    assert change(text) != text
    (tmp_path / "llm" / file).write_text(change(text))
    with pytest.raises(UserError) as error:
        _, tokenizer = language_model(tmp_path / "llm")
        split_prompt(tokenizer, "You read.", "Before {eeg} after it.")
    assert "\n" not in str(error.value)


def test_a_language_model_that_gives_no_numbers_or_knows_other_tokens_is_refused(demo, tmp_path):
    shutil.copytree(demo.llm, tmp_path / "llm")
    tensors = load_file(tmp_path / "llm/model.safetensors")
    name = next(key for key in tensors if "embed" in key)
    save_file(
        tensors | {name: tensors[name] * float("nan")}, tmp_path / "llm/model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match="NaN"):
        language_model(tmp_path / "llm")
    save_file(tensors, tmp_path / "llm/model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((tmp_path / "llm/tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab[next(reversed(vocab))] = 10**6
    (tmp_path / "llm/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="tokens up to"):
        language_model(tmp_path / "llm")


def test_a_folders_own_settings_of_generation_do_not_change_what_is_decoded(demo, tmp_path):
    shutil.copytree(demo.llm, tmp_path / "llm")
    edited(
        tmp_path / "llm/generation_config.json", repetition_penalty=9.0, do_sample=True, temperature=5.0, num_beams=3
    )
    prompt = torch.tensor([[5, 6, 7]])
    texts = [
        model.generate(input_ids=prompt, max_new_tokens=8).tolist()
        for model, _ in map(language_model, (demo.llm, tmp_path / "llm"))
    ]
    assert texts[0] == texts[1]


def test_parts_of_an_image_model_that_do_not_fit_are_one_line(vi_pth, tmp_path):
    shutil.copytree(vi_pth / "stable-diffusion", tmp_path / "sd")
    edited(tmp_path / "sd/scheduler/scheduler_config.json", beta_schedule="nonsense")
    with pytest.raises(UserError, match="--image_model") as error:
        EEGImageGenerator(str(tmp_path / "sd"), CPU, 2, None, 64).generate("a dog", 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file, changes, words", [
    ("config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers 10000000"),
    ("config.json", {"num_hidden_layers": -5}, "num_hidden_layers -5; at least 0"),
    ("config.json", {"max_position_embeddings": 10**10}, "max_position_embeddings"),
    ("config.json", {"eos_token_id": [1] * 2000}, "2000 entries in eos_token_id"),
])  # fmt: skip
def test_a_language_model_of_any_size_is_refused_before_it_is_built(demo, tmp_path, file, changes, words):
    shutil.copytree(demo.llm, tmp_path / "llm")
    edited(tmp_path / "llm" / file, **changes)
    with pytest.raises(UserError, match=words):
        language_model(tmp_path / "llm")
    with pytest.raises(UserError, match=words):
        lora_targets(str(tmp_path / "llm"), None)


@pytest.mark.parametrize("file, changes, words", [
    ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block"),
    ("vae/config.json", {"block_out_channels": [32] * 5000}, "5000 entries"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps"),
])  # fmt: skip
def test_an_image_model_of_any_size_is_refused_before_it_is_built(demo, tmp_path, file, changes, words):
    shutil.copytree(demo.pth / "stable-diffusion", tmp_path / "sd")
    edited(tmp_path / "sd" / file, **changes)
    with pytest.raises(UserError, match=words):
        load_image_model(str(tmp_path / "sd"), torch.float32)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])  # either may say it
def test_a_processor_makes_no_pictures_of_any_size(tmp_path, file):
    shutil.copytree(ROOT / "demo/assets/clip", tmp_path / "clip")
    settings = read_json(tmp_path / "clip/preprocessor_config.json") | {"size": {"shortest_edge": 40_000}}
    nested = settings if file.startswith("pre") else {"image_processor": settings}
    (tmp_path / "clip" / file).write_text(json.dumps(nested))
    with pytest.raises(UserError, match="shortest_edge 40000"):
        CLIPImageTargetBuilder(str(tmp_path / "clip"), tmp_path).load()
    settings["size"] = {"height": 12_000.0, "width": 12_000.0}  # a float is a size as well
    (tmp_path / "clip" / file).write_text(json.dumps(nested))
    with pytest.raises(UserError, match="(height|width) 12000.0"):
        CLIPImageTargetBuilder(str(tmp_path / "clip"), tmp_path).load()


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize("rules", [
    {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 31}},
    {"normalizer": {"type": "Prepend", "prepend": "a" * 5000}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "a" * 40}] * 3}},
])  # fmt: skip
def test_a_tokenizer_makes_no_text_of_any_length(demo, tmp_path, rules):
    """Its library would end the process."""
    for of in ("TinyLlama-1.1B-Chat-v1.0", "stable-diffusion"):
        shutil.copytree(demo.pth / of, tmp_path / of)
    edited(tmp_path / "TinyLlama-1.1B-Chat-v1.0/tokenizer.json", **rules)
    with pytest.raises(UserError, match="tokenizer.json makes a character over 1000"):
        language_model(tmp_path / "TinyLlama-1.1B-Chat-v1.0")
    (tmp_path / "stable-diffusion/tokenizer/tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(UserError, match="tokenizer.json makes a character over 1000"):
        load_image_model(str(tmp_path / "stable-diffusion"), torch.float32)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_a_tokens_number_is_bounded(demo, tmp_path, file):
    """Its library keeps a place for each number below it, and would end the process."""
    for of in ("TinyLlama-1.1B-Chat-v1.0", "stable-diffusion/tokenizer"):
        shutil.copytree(demo.pth / of, tmp_path / of)
        if file == "tokenizer.json":
            edited(tmp_path / of / file, model={"type": "BPE", "merges": [], "vocab": {"a": 2**31 - 1}})
        else:
            (tmp_path / of / file).write_text(json.dumps({"a": 2**31 - 1}))
        with pytest.raises(ValueError, match="a token has the number 2147483647"):
            load_tokenizer(str(tmp_path / of))


@pytest.mark.parametrize("length", [2 * 10**7, 2**31 - 1])
def test_a_prompt_is_as_long_as_the_text_encoder_reads_whatever_the_tokenizer_says(demo, tmp_path, length):
    shutil.copytree(demo.pth / "stable-diffusion", tmp_path / "sd")
    edited(tmp_path / "sd/tokenizer/tokenizer_config.json", model_max_length=length)
    model = load_image_model(str(tmp_path / "sd"), for_reading=True)
    assert model.token_ids("a hand").shape == (1, 77) and model.read_empty().states.shape[:2] == (1, 77)


def test_a_checkpoints_sizes_are_compared_with_its_weights_before_they_take_memory():
    state = nn.Linear(3, 2).state_dict()
    assert torch.equal(built(nn.Linear, {"in_features": 3, "out_features": 2}, state).weight, state["weight"])
    with pytest.raises(ValueError, match="do not fit"):
        built(nn.Linear, {"in_features": 10**6, "out_features": 10**6}, state)
