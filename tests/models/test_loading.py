"""Model folders of strangers: no code of theirs runs, no weight is made up, and a failure is one line."""

import builtins
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.eeg_llm import load_language_model
from models.image_generator import EEGImageGenerator, load_image_model
from stages.pictures import cue_arrow
from utils.errors import UserError

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
    ("text_encoder", ["transformers", "AutoModel"]), ("text_encoder", ["evil", "Evil"]), ("scheduler", ["evil", "Evil"]),
    ("unet", ["diffusers", "DiffusionPipeline.from_pretrained"]), ("unet", ["builtins", "exec"]), ("vae", ["diffusers", "AutoModel"]),
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
    ("config.json", lambda text: text[:50]), ("config.json", lambda text: "[" * 100_000), ("config.json", lambda text: "[]"),
    ("tokenizer.json", lambda text: text[:-200]), ("tokenizer.json", lambda text: text.replace('"vocab"', '"vocap"')),
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
