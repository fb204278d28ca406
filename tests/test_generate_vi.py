"""Both generating scripts of Visual Imagery."""

import gc
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel

from datasets.visual_imagery_llm_dataset import DESCRIPTION
from stages.rows import signed
from tests.conftest import read_jsonl, run_inside
from tests.processes import by_forks
from tests.test_generate import pictures
from utils.files import write_jsonl


@pytest.fixture(scope="module")
def drawn_text(vi_demo, vi_trained, tmp_path_factory):
    """One whole generate_vi.py run, with aMUSEd."""
    folder = tmp_path_factory.mktemp("vi_images")
    flags = vi_demo.vi_generation(folder, projection_path=vi_trained, image_model=vi_demo.pth / "amused")
    return folder, run_inside("generate_vi.py", *flags)


@pytest.fixture(scope="module")
def drawn_mapper(vi_demo, mapped, tmp_path_factory):
    """One whole generate_vi_eeg2img.py run, with Stable Diffusion."""
    folder = tmp_path_factory.mktemp("vi_eeg2img")
    return folder, run_inside("generate_vi_eeg2img.py", *vi_demo.vi_generation(folder, mapper_path=mapped))


@pytest.mark.parametrize("which", ["drawn_text", "drawn_mapper"])
def test_a_run_leaves_decoded_trials_pictures_comparisons_and_a_grid(which, request):
    folder, done = request.getfixturevalue(which)
    rows = read_jsonl(folder / "decoded.jsonl")
    assert (
        [row["index"] for row in rows] == [0, 20, 39, 59]
        and "n = 4" in done.out
        and "knowing the recording alone" in done.out
    )
    for row in rows:
        assert {"subject", "true_label", "predicted_label", "readouts", "text"} <= set(row)
        last = list(row["readouts"].values())[-1]
        assert len(last["probabilities"]) == len(row["tasks"]) == 10 and last["chance"] == 0.1
        if row["predicted_label"] >= 0:
            assert row["prompt"] == DESCRIPTION.image_prompts[row["predicted_label"]]
        stem = f"{row['index']:04d}_true{row['true_label']}_pred{row['predicted_label']}.png"
        assert Image.open(folder / f"generated_{stem}").size == (64, 64)
        comparison = Image.open(folder / f"comparison_{stem}")
        assert comparison.getpixel((3, 3)) == (
            (34, 139, 58) if row["true_label"] == row["predicted_label"] else (190, 40, 40)
        )
        assert np.asarray(comparison)[40:, :256].std() > 10  # the stimulus, not a grey panel
    assert (folder / "summary_grid.png").exists() and "GPU memory still held" in done.out


def test_the_stimulus_of_the_true_class_stands_beside_the_picture(drawn_mapper, vi_demo):
    folder, _ = drawn_mapper
    for row in read_jsonl(folder / "decoded.jsonl"):
        pair = np.asarray(next(Image.open(p) for p in folder.glob(f"comparison_{row['index']:04d}_*")), float)
        distance = [np.abs(pair[40:, :256] - np.asarray(Image.open(vi_demo.stimuli / name).convert("RGB"),
            float)).mean()
                    for name in DESCRIPTION.stimuli.values()]  # fmt: skip
        assert int(np.argmin(distance)) == row["true_label"]


@pytest.mark.parametrize("script_name, which, key", [
    ("generate_vi.py", "vi_trained", "projection_path"), ("generate_vi_eeg2img.py", "mapped", "mapper_path"),
])  # fmt: skip
def test_a_picture_depends_on_its_trials_seed_and_conditioning_only(
    vi_demo, script, tmp_path, request, script_name, which, key
):
    """Decoded and drawn in batches of 1, by two processes, and of 4, and when only one picture is asked for."""
    drawn = request.getfixturevalue("drawn_text" if which == "vi_trained" else "drawn_mapper")[0]
    flags = {key: request.getfixturevalue(which)}
    if which == "vi_trained":
        flags["image_model"] = vi_demo.pth / "amused"
    by_forks(2, tmp_path / "log", script_name, *vi_demo.vi_generation(tmp_path / "batch1", batch_size=1, **flags))
    assert list(pictures(drawn)) == list(pictures(tmp_path / "batch1"))
    for name, picture in pictures(tmp_path / "batch1").items():
        assert np.array_equal(picture, pictures(drawn)[name])
    (tmp_path / "one").mkdir()
    rows = read_jsonl(drawn / "decoded.jsonl")
    write_jsonl(signed(rows[2:3]), tmp_path / "one/decoded.jsonl")
    done = script(script_name, *vi_demo.vi_generation(tmp_path / "one", stage="images", **flags))
    assert done.code == 0, done.err
    ((name, picture),) = pictures(tmp_path / "one").items()
    assert np.array_equal(picture, pictures(drawn)[name])


@pytest.mark.parametrize("script_name, which, key, readout", [
    ("generate_vi.py", "vi_trained", "projection_path", "likelihood"),
    ("generate_vi_eeg2img.py", "mapped", "mapper_path", "head"),
])  # fmt: skip
def test_several_runs_are_decoded_to_their_mean(vi_demo, script, tmp_path, request, script_name, which, key, readout):
    epochs = sorted(request.getfixturevalue(which).glob(f"{key.removesuffix('_path')}_epoch*.pth"))
    assert len(epochs) > 1
    read = {}
    for name, places in {"one": epochs[:1], "other": epochs[1:2], "both": epochs[:2]}.items():
        more = {"stage": "decode", "conditioning": "embedding"} if which == "mapped" else {"stage": "decode"}
        done = script(script_name, *vi_demo.vi_generation(tmp_path / name, **{key: places}, **more))
        assert done.code == 0, done.err
        read[name] = read_jsonl(tmp_path / name / "decoded.jsonl")
    for one, other, both in zip(*read.values(), strict=True):
        p, q, mean = (np.array(row["readouts"][readout]["probabilities"]) for row in (one, other, both))
        assert np.abs(p - q).max() > 1e-4  # or the mean tells nothing
        np.testing.assert_allclose(mean, (p + q) / 2, atol=2e-6)
        assert "keyword" not in both["readouts"] and both["predicted_label"] == int(mean.argmax())
    if which == "mapped":
        states = [load_file(tmp_path / name / "embeddings.safetensors")["states"] for name in read]
        torch.testing.assert_close(states[2], (states[0] + states[1]) / 2)
    else:
        refused = vi_demo.vi_generation(tmp_path / "no", projection_path=epochs[:2], readout="keyword", stage="decode")
        done = script(script_name, *refused)
        assert done.code == 2 and "of several runs" in done.err and done.err.count("\n") == 1


def test_a_mapper_that_was_sent_is_read_by_its_address(vi_demo, mapped, script, tmp_path, local_hub):
    assert script("share.py", mapped, "me/mapper").code == 0
    for place, name in ((mapped, "here"), ("me/mapper", "far")):
        flags = vi_demo.vi_generation(tmp_path / name, mapper_path=place, stage="decode")
        done = script("generate_vi_eeg2img.py", *flags)
        assert done.code == 0, done.err
    assert (tmp_path / "here/decoded.jsonl").read_bytes() == (tmp_path / "far/decoded.jsonl").read_bytes()


def test_the_mappers_states_do_not_depend_on_the_batch(vi_demo, mapped, script, tmp_path):
    for size in (1, 4):
        flags = {
            "mapper_path": mapped,
            "conditioning": "embedding",
            "batch_size": size,
            "image_model": vi_demo.pth / "amused",
        }
        done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / str(size), **flags))
        assert done.code == 0, done.err
    for name, picture in pictures(tmp_path / "1").items():
        assert np.array_equal(picture, pictures(tmp_path / "4")[name])
    a, b = ((tmp_path / size / "embeddings.safetensors").read_bytes() for size in "14")
    assert a == b


@pytest.mark.parametrize("conditioning, model", [
    ("embedding", "stable-diffusion"), ("embedding", "amused"), ("blend", "stable-diffusion"),
])  # fmt: skip
def test_the_mappers_own_states_reach_the_image_model(
    vi_demo, mapped, drawn_mapper, script, tmp_path, conditioning, model
):
    flags = {"mapper_path": mapped, "image_model": vi_demo.pth / model, "num_samples": 2, "conditioning": conditioning}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path, **flags))
    assert done.code == 0, done.err
    first = pictures(tmp_path)
    by_class = script(
        "generate_vi_eeg2img.py",
        *vi_demo.vi_generation(tmp_path, stage="images", **(flags | {"conditioning": "class"})),
    )
    assert by_class.code == 0 and "2 images drawn" in by_class.out
    assert any(not np.array_equal(a, b) for a, b in zip(first.values(), pictures(tmp_path).values(), strict=True))
    again = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path, stage="images", **flags))
    assert "2 images drawn" in again.out
    assert all(np.array_equal(a, b) for a, b in zip(first.values(), pictures(tmp_path).values(), strict=True))


@pytest.mark.parametrize("model", ["stable-diffusion", "amused"])
def test_embedding_conditioning_draws_the_class_prompts_picture_when_fed_its_own_embedding(
    vi_demo, mapped, script, tmp_path, model, monkeypatch
):
    """The prompts' own states in embeddings.safetensors: the pictures of --conditioning class, pixel by pixel."""
    from safetensors.torch import save_file

    from models.image_generator import EEGImageGenerator
    from stages.embeddings import digest

    flags = {"mapper_path": mapped, "image_model": vi_demo.pth / model, "num_samples": 3}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "class", **flags))
    assert done.code == 0, done.err
    rows = read_jsonl(tmp_path / "class/decoded.jsonl")
    generator = EEGImageGenerator(str(vi_demo.pth / model), torch.device("cpu"), image_size=64)
    own = [generator.embed(row["prompt"]) for row in rows]
    states = torch.cat([c.states for c in own])
    pooled = torch.cat([c.pooled if c.pooled is not None else torch.zeros(1, 768) for c in own])
    index = torch.tensor([row["index"] for row in rows])
    (tmp_path / "embedding").mkdir()
    save_file({"index": index, "states": states, "pooled": pooled}, tmp_path / "embedding/embeddings.safetensors")
    for row, s, p in zip(rows, states, pooled, strict=True):
        row |= {"embedding": digest(s, p), "embedding_of": str(vi_demo.pth / model)}
    write_jsonl(signed(rows), tmp_path / "embedding/decoded.jsonl")
    flags |= {"stage": "images", "conditioning": "embedding"}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "embedding", **flags))
    assert done.code == 0, done.err
    for name, picture in pictures(tmp_path / "class").items():
        assert np.array_equal(picture, pictures(tmp_path / "embedding")[name])


@pytest.mark.parametrize("script_name, which, key", [
    ("generate_vi.py", "vi_trained", "projection_path"), ("generate_vi_eeg2img.py", "mapped", "mapper_path"),
])  # fmt: skip
def test_the_decoding_models_are_gone_before_the_image_model_loads(
    vi_demo, script, tmp_path, request, monkeypatch, script_name, which, key
):
    """Live modules, counted in the moment before the image model loads."""
    import models.image_generator
    from models.CSBrain import CSBrain
    from models.eeg_clip_mapper import EEGCLIPMapper
    from models.eeg_llm import EEGLanguageModel, EEGProjection

    kinds = (EEGLanguageModel, EEGProjection, EEGCLIPMapper, CSBrain, PreTrainedModel, PeftModel)

    def alive():
        gc.collect()
        return sum(isinstance(m, kinds) for m in gc.get_objects())

    checkpoint, before, counts = request.getfixturevalue(which), alive(), []
    original = models.image_generator.EEGImageGenerator.__init__

    def counting(self, *args, **kwargs):
        counts.append(alive())
        if torch.cuda.is_available():
            assert torch.cuda.memory_allocated() < 256 * 2**20
        original(self, *args, **kwargs)

    monkeypatch.setattr(models.image_generator.EEGImageGenerator, "__init__", counting)
    flags = {key: checkpoint, "num_samples": 1, "num_inference_steps": 1}
    done = script(script_name, *vi_demo.vi_generation(tmp_path / "out", **flags))
    assert done.code == 0, done.err
    assert counts == [before]


# ---------------------------------------------------------------- what a user gets wrong


def test_a_mapper_of_other_classes_encoder_or_kind_is_refused(vi_demo, vi_trained, mapped, script, tmp_path):
    checkpoint = torch.load(mapped / "mapper_epoch1.pth", weights_only=True)
    for change, message in (
        ({"classes": [*DESCRIPTION.classes[:9], "table"]}, "was trained on the classes"),
        ({"encoder_fingerprint": "0"}, "another encoder"),
        ({"n_times": 500}, "another window"),
        ({"sfreq": 250.0}, "another window"),
        ({"encoder_name": "unknown"}, "'unknown'; expected one of csbrain"),
        ({"mapper_name": "unknown"}, "is damaged"),
        ({"settings": {"surprise": 1}}, "is damaged: its mapper"),
        ({"settings": checkpoint["settings"] | {"in_dim": 16}}, "do not fit its settings"),
        ({"settings": checkpoint["settings"] | {"clip_width": 64}}, "do not fit its settings"),
    ):
        torch.save(checkpoint | change, tmp_path / "mapper_epoch1.pth")
        done = script(
            "generate_vi_eeg2img.py",
            *vi_demo.vi_generation(tmp_path / "out", mapper_path=tmp_path / "mapper_epoch1.pth"),
        )
        assert done.code == 2 and message in done.error_line
    done = script(
        "generate_vi_eeg2img.py",
        *vi_demo.vi_generation(tmp_path / "out", mapper_path=vi_trained / "projection_epoch1.pth"),
    )
    assert done.code == 2 and "is not a checkpoint of finetune_eeg_to_image.py" in done.error_line
    done = script(
        "generate_vi.py",
        *vi_demo.vi_generation(tmp_path / "out", projection_path=mapped / "mapper_epoch1.pth", lora_dir="x"),
    )
    assert done.code == 2 and "is not a checkpoint of finetune_eeg_llm.py" in done.error_line
    assert not (tmp_path / "out").exists()


def test_bad_photos_stop_before_anything_is_decoded(vi_demo, vi_trained, mapped, script, tmp_path):
    shutil.copytree(vi_demo.stimuli, tmp_path / "stimuli")
    (tmp_path / "stimuli/Animal_bird.jpg").write_text("no picture")
    flags = {"stimuli_dir": tmp_path / "stimuli"}
    done = script("generate_vi.py", *vi_demo.vi_generation(tmp_path / "out", projection_path=vi_trained, **flags))
    assert done.code == 2 and "Animal_bird.jpg is not a picture" in done.error_line
    (tmp_path / "stimuli/Animal_bird.jpg").unlink()
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "out", mapper_path=mapped, **flags))
    assert done.code == 2 and "Animal_bird.jpg is missing" in done.error_line and not (tmp_path / "out").exists()


def test_states_of_another_mapper_are_not_drawn(vi_demo, mapped, script, tmp_path):
    """decoded.jsonl and embeddings.safetensors must come from one decoding."""
    flags = {"mapper_path": mapped, "num_samples": 2, "stage": "decode", "conditioning": "embedding"}
    first = flags | {"mapper_path": mapped / "mapper_epoch1.pth"}
    assert script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "a", **first)).code == 0
    assert script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "b", **flags)).code == 0
    shutil.copy(tmp_path / "a/embeddings.safetensors", tmp_path / "b")
    drawing = flags | {"stage": "images"}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "b", **drawing))
    assert done.code == 2 and "belongs to other trials" in done.error_line
    (tmp_path / "b/embeddings.safetensors").write_bytes(b"torn")
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "b", **drawing))
    assert done.code == 2 and "is damaged" in done.error_line
    by_class = flags | {"conditioning": "class"}
    assert script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "a", **by_class)).code == 0
    assert not (tmp_path / "a/embeddings.safetensors").exists()
    other = {"num_samples": 1, "conditioning": "blend", "mapper_path": mapped, "image_model": vi_demo.pth / "amused"}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "c", **other))
    assert done.code == 0 and "were trained towards" in done.out


def test_decoded_trials_of_other_classes_or_damaged_ones_are_refused(vi_demo, mapped, drawn_mapper, script, tmp_path):
    rows = read_jsonl(drawn_mapper[0] / "decoded.jsonl")
    flags = vi_demo.vi_generation(tmp_path, mapper_path=mapped, stage="images")
    for row, message in (({"index": 0}, "line 1 is no decoded trial"), (rows[0] | {"true_label": 12}, "true_label"),
                         (rows[0] | {"true_name": "feet"}, "feet"), (rows[0] | {"image": "../../x.jpg"},
                         "outside")):  # fmt: skip
        write_jsonl(signed([row]), tmp_path / "decoded.jsonl")
        done = script("generate_vi_eeg2img.py", *flags)
        assert done.code == 2 and message in done.error_line


def test_embedding_conditioning_without_embeddings_says_what_to_do(vi_demo, mapped, drawn_mapper, script, tmp_path):
    shutil.copy(drawn_mapper[0] / "decoded.jsonl", tmp_path)
    flags = {"mapper_path": mapped, "stage": "images", "conditioning": "embedding"}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path, **flags))
    assert done.code == 2 and "embeddings.safetensors is not there" in done.error_line


@pytest.mark.parametrize("flags, message", [
    ({"blend": 1.5}, "--blend 1.5"), ({"mapper_path": "nowhere.pth"}, "no such checkpoint"), ({"num_samples": 0},
    "--num_samples"),
    ({"image_model": "no/model"}, "--image_model no/model"), ({"datasets_dir": "nowhere"}, "not an LMDB"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(vi_demo, mapped, script, tmp_path, flags, message):
    done = script(
        "generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "out", **({"mapper_path": mapped} | flags))
    )
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not list(tmp_path.rglob("*.png"))
