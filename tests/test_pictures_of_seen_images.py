"""From embeddings of seen images to pictures, by the real command lines on small stores: prior, captions, low level,
structure.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.repetitions import repetitions
from demo.tiny_models import complete_image_model, complete_ip_adapter
from models.captioner import Captioner
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.guided_generator import GuidedGenerator
from models.image_generator import STRIDE, UNSAFE
from stages.checkpoints import controlnet_folder
from stages.clip_runs import open_like
from stages.embeddings import read_guidance
from stages.pictures import drawn_with
from stages.rows import read_rows
from stages.scores import caption_measures, word_overlap
from tests.conftest import ROOT, flat, once, read_jsonl, run_inside
from tests.processes import by_forks
from tests.seen_images import CLIP, SCRIPT, interrupted_after, seen_runs, seen_things, training
from utils.checkpoints import read_checkpoint
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.hub import model_identity
from utils.seeds import sample_seed

CEILING = "the stimulus's own embedding"
PRIOR, STRUCTURE, DRAW = "train_prior.py", "train_structure.py", "generate_eeg2img.py"
CPU, FILE = torch.device("cpu"), "decoded.jsonl"


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    return seen_things(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(things, tmp_path_factory):
    return seen_runs(things, tmp_path_factory)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The shipped models of coloured shapes, as prepare_demo.py puts them into a folder."""

    def make(folder):
        folder.mkdir()
        complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", folder / "sd")
        complete_ip_adapter(ROOT / "demo/assets/ip-adapter", folder / "ip-adapter")

    return once(tmp_path_factory, "shape_models", make)


def on(things, **more):
    return flat({"datasets_dir": things / "processed_lmdb", "images_dir": things / "images", "cuda": -1} | more)


def prior_flags(things, run, folder, **more):
    return on(things, **{
        "model_dir": run, "output_dir": folder, "standardise": "components", "epochs": 40, "validate_every": 20,
        "batch_size": 32, "warmup": 10,
        "prior_guidance": 2, "average_train": 4,
    } | more)  # fmt: skip


def low_flags(things, models, folder, **more):
    return training(things, folder, **{
        "encoder": "low_level", "target": "vae_latent", "image_model": models / "sd", "channels": "occipital",
        "epochs": 2, "batch_size": 32,
    } | more)  # fmt: skip


@pytest.fixture(scope="session")
def steps(things, trained, models, tmp_path_factory):
    """A prior and the control's, a caption adapter, a low level, SGDM's VAE and encoder: each trained for moments."""

    def make(folder):
        for script, flags in (
            (PRIOR, prior_flags(things, trained / "ubp", folder / "prior")),
            (PRIOR, prior_flags(things, trained / "ubp_shuffled", folder / "prior_shuffled", epochs=2,
            validate_every=1)),
            (PRIOR, on(things, what="caption", model_dir=trained / "ubp", output_dir=folder / "caption", epochs=2,
            captioner=ROOT / "demo/assets/captioner")),
            (SCRIPT, low_flags(things, models, folder / "low")),
            (STRUCTURE, on(things, what="vae", widths=[4, 8, 16], hidden=32, epochs=3, lr=1e-3,
            output_dir=folder / "vae")),
            (SCRIPT, training(things, folder / "sgdm", encoder="sgdm", target="structure", structure_vae=folder / "vae",
            epochs=2)),
        ):  # fmt: skip
            run_inside(script, *flags)

    return once(tmp_path_factory, "seen_steps", make)


def drawing(things, models, run, folder, **more):
    return on(things, **{
        "conditioning": "ip_adapter", "model_dir": run, "output_dir": folder, "image_model": models / "sd",
        "ip_adapter": models / "ip-adapter",
        "controlnet": ROOT / "demo/assets/controlnet", "captioner": ROOT / "demo/assets/captioner", "num_samples": 4,
        "image_size": 64,
        "num_inference_steps": 3, "guidance_scale": 3,
    } | more)  # fmt: skip


# ---------------------------------------------------------------- the prior


def test_a_prior_brings_embeddings_nearer_to_the_images_and_says_what_it_adds(steps):
    rows, results = read_rows(steps / "prior/decoded_test.jsonl"), read_json(steps / "prior/results.json")
    assert len(rows) == 12 and list(rows[0].readouts) == ["retrieval", "prior"]
    before, after = results["test"]["cosine before"], results["test"]["cosine after"]
    assert before["n"] == after["n"] == 12 and after["value"] > before["value"]
    assert -1 <= results["test"]["cosine of two samples"]["value"] <= 1
    assert np.mean([row.readouts["prior"].rank for row in rows]) < 3  # of 6; 3.5 by chance
    assert results["selected_by"] == "cosine" and results["val"]["cosine"]["n"] == 8  # held-out concepts
    history = read_jsonl(steps / "prior/metrics.jsonl")
    assert [epoch["passes"] for epoch in history] == [20, 40]
    best = max(history, key=lambda epoch: epoch["val"]["cosine"]["value"])
    assert results["best_epoch"] == best["epoch"]
    control = read_json(steps / "prior_shuffled/results.json")["test"]
    assert control["cosine after"]["value"] < after["value"]


def test_an_interrupted_prior_goes_on_to_the_same_weights(things, trained, script, tmp_path, monkeypatch):
    flags = {"epochs": 3, "validate_every": 1}
    assert script(PRIOR, *prior_flags(things, trained / "ubp", tmp_path / "whole", **flags)).code == 0
    with interrupted_after(1, monkeypatch):
        assert script(PRIOR, *prior_flags(things, trained / "ubp", tmp_path / "cut", **flags)).code == 130
    assert script(PRIOR, *prior_flags(things, trained / "ubp", tmp_path / "cut", **flags), "--resume").code == 0
    for name in ("metrics.jsonl", "decoded_test.jsonl", "results.json", "last.pth"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    done = script(PRIOR, *prior_flags(things, trained / "ubp_shuffled", tmp_path / "cut", **flags), "--resume")
    assert done.code == 2 and "another encoder" in done.error_line


# ---------------------------------------------------------------- captions


def test_tokens_of_a_picture_give_its_caption_and_so_do_those_of_other_captioners(things, tmp_path):
    """GIT as shipped, and a small random BLIP: what the vision part gives, handed in again, is what the whole model
    reads.
    """
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config=tower | {"vocab_size": 60, "encoder_hidden_size": 32, "bos_token_id": 57, "sep_token_id": 58,
        "pad_token_id": 0, "eos_token_id": 58},
        vision_config=tower | {"image_size": 32, "patch_size": 16}, projection_dim=32,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "blip")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(55))])
    )
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "blip")
    pictures = [Image.open(path).convert("RGB") for path in sorted((things / "images").rglob("*.png"))[:3]]
    for folder, shape in ((ROOT / "demo/assets/captioner", (3, 17, 64)), (tmp_path / "blip", (3, 5, 32))):
        captioner = Captioner(str(folder), CPU, max_tokens=8)
        tokens = captioner.vision_tokens(pictures)
        assert tokens.shape == shape
        assert captioner.from_tokens(tokens) == captioner(pictures)
        assert captioner(pictures) == captioner.from_tokens(tokens)  # its own part is back in place


def test_word_overlap_counts_words_and_the_pairing_is_with_other_images():
    assert word_overlap("a red star", "a red star") == 1 and word_overlap("a red star", "A blue star") == pytest.approx(
        2 / 3
    )
    assert word_overlap("", "") == 0 and word_overlap("red red", "red") == pytest.approx(2 / 3)
    found = caption_measures(["x", "x", "y"], ["x", "x", "y"], ["i", "i", "j"])
    assert found["words shared"].value == 1 and found["words shared, another image"].value < 1
    assert "words shared, another image" not in caption_measures(["x", "x"], ["x", "x"], ["i", "i"])


# ---------------------------------------------------------------- low level and structure


def test_the_low_level_is_told_what_all_images_share(steps):
    test = read_json(steps / "low/results.json")["test"]["latents"]
    assert (
        test["measure"] == "correlation" and test["n"] == 12 and -1 <= test["low"] <= test["value"] <= test["high"] <= 1
    )
    checkpoint = torch.load(next((steps / "low").glob("encoder_epoch*.pth")), weights_only=True)
    assert checkpoint["settings"]["latents"] == [4, 16, 16] and checkpoint["target"] == "vae_latent"


def test_structure_has_retrieval_and_a_map_beside_another_images(steps):
    test = read_json(steps / "sgdm/results.json")["test"]
    assert test["retrieval"]["n"] == 12 and {"map", "map, another image"} <= set(test)
    vae = torch.load(next((steps / "vae").glob("vae_epoch*.pth")), weights_only=True)
    assert not any(image.startswith("test") for image in vae["seen"])


def test_a_controlnet_is_trained_for_a_base_and_goes_on(things, models, script, tmp_path):
    flags = on(
        things,
        what="controlnet",
        image_model=models / "sd",
        epochs=2,
        batch_size=8,
        output_dir=tmp_path / "net",
        lr=1e-3,
    )
    done = script(STRUCTURE, *flags)
    assert done.code == 0 and "share explained" in done.out, done.err
    best = read_json(tmp_path / "net/results.json")["best_epoch"]
    assert (tmp_path / f"net/controlnet_epoch{best}/config.json").is_file()
    again = script(STRUCTURE, *flags)
    assert again.code == 2 and "--resume" in again.error_line
    assert script(STRUCTURE, *flags, "--resume").code == 0


def test_a_controlnet_learns_from_the_noise_that_its_base_was_trained_on_and_leaves_the_base_alone(
    things, models, tmp_path
):
    """At time t the share of picture is √ᾱ of the base's own schedule; only the ControlNet has gradients."""
    from argparse import Namespace

    from accelerate import Accelerator
    from diffusers import DDIMScheduler

    from train_structure import Control

    paths = sorted((things / "images").rglob("*.png"))[:2]
    control = Control(Namespace(image_model=str(models / "sd")), Accelerator(cpu=True), paths, tmp_path)
    kept = DDIMScheduler.from_pretrained(models / "sd/scheduler").alphas_cumprod
    for t in (0, 100, 900, 999):
        noisy = control.schedule.add_noise(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.tensor([t]))
        assert noisy.flatten()[0] == pytest.approx(float(kept[t].sqrt()), abs=1e-5)
    control.loss(control.model, paths).backward()
    assert all(p.grad is None for p in control.unet.parameters()) and any(
        p.grad is not None for p in control.model.parameters()
    )
    assert control.maps(paths).shape == (2, 3, 64, 64)


# ---------------------------------------------------------------- pictures


def test_pictures_come_from_every_step_and_a_second_run_draws_nothing(things, trained, steps, models, script, tmp_path):
    flags = drawing(things, models, trained / "ubp", tmp_path / "all", conditioning=["ip_adapter", "controlnet"],
        prior_dir=steps / "prior",
                    low_level_dir=steps / "low", caption_dir=steps / "caption", structure_dir=steps / "sgdm",
                    structure_vae=steps / "vae",
                    compare=["ceiling", "nearest", "caption"], draw_batch=3)  # fmt: skip
    done = script(DRAW, *flags)
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "all/decoded.jsonl")
    assert len(rows) == 4 and all(
        row.prompt and row.nearest.startswith("training_images/") and row.embedding for row in rows
    )
    kept = read_guidance(tmp_path / "all/embeddings.safetensors", rows)
    shapes = {name: tuple(tensor.shape) for name, tensor in kept.items()}
    assert shapes == {"decoded": (4, 768), "embedding": (4, 1, 768), "latents": (4, 4, 16, 16), "map": (4, 1, 128, 128),
        "ceiling": (4, 768),
                      "nearest": (4, 768)}  # fmt: skip
    embed = CLIPImageTargetBuilder(str(CLIP), tmp_path).load()
    own = embed([Image.open(things / "images" / row.image).convert("RGB") for row in rows])
    assert (kept["ceiling"] - own).abs().max() < 0.02 * own.abs().max()  # half precision on the way
    drawn = sorted(path.name for path in (tmp_path / "all/compared").glob("*.png"))
    assert len(drawn) == 12 and len(list((tmp_path / "all").glob("generated_*.png"))) == 4
    sheet = Image.open(tmp_path / "all/steps.png")
    assert sheet.width > 8 * 128  # seen, nearest, low level, structure, three compared, drawn
    before = {path: path.read_bytes() for path in (tmp_path / "all").rglob("*.png")}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "all/samples").glob("*.png")}
    assert script(DRAW, *flags).code == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "all").rglob("*.png")}
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "all/samples").glob("*.png")}
    two = ["--output_dir", tmp_path / "two", "--image_batch_size", 1]
    by_forks(2, tmp_path / "log", DRAW, *flags, *two)
    assert (tmp_path / "two" / FILE).read_bytes() == (tmp_path / "all" / FILE).read_bytes()
    assert len(before) == len(list((tmp_path / "two").rglob("*.png")))
    for path in (*(tmp_path / "all/samples").glob("*.png"), *(tmp_path / "all/compared").glob("*.png")):
        other = tmp_path / "two" / path.relative_to(tmp_path / "all")
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(Image.open(other), int)).max() <= 2
    recipe = drawn_with(next((tmp_path / "all").glob("generated_*.png")))
    assert (
        recipe["strength"] == 0.85
        and recipe["controlnet_scale"] == 0.5
        and recipe["conditioning"] == "ip_adapter controlnet"
    )
    assert script(DRAW, *flags, "--controlnet_scale", 1).code == 0  # another recipe is drawn anew
    assert stamps != {path: path.stat().st_mtime_ns for path in (tmp_path / "all/samples").glob("*.png")}


def test_the_best_sample_is_chosen_by_what_was_decoded_and_not_by_what_was_seen(
    things, trained, steps, models, script, tmp_path
):
    flags = {"prior_dir": steps / "prior", "samples": 3}
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **flags)).code == 0
    rows = read_rows(tmp_path / "out/decoded.jsonl")
    kept = read_guidance(tmp_path / "out/embeddings.safetensors", rows)
    assert kept["embedding"].shape == (4, 3, 768)
    embed, chosen = CLIPImageTargetBuilder(str(CLIP), tmp_path).load(), read_json(tmp_path / "out/samples/chosen.json")
    for k, row in enumerate(rows):
        pictures = [
            Image.open(tmp_path / f"out/samples/sample_{row.index:04d}_{j}.png").convert("RGB") for j in range(3)
        ]
        like = torch.nn.functional.cosine_similarity(embed(pictures), kept["decoded"][k][None])
        assert chosen[str(row.index)] == int(like.argmax())
        final = np.asarray(Image.open(next((tmp_path / "out").glob(f"generated_{row.index:04d}_*.png"))).convert("RGB"))
        assert np.array_equal(final, np.asarray(pictures[chosen[str(row.index)]]))
    shutil.copytree(things / "images", tmp_path / "images")
    for path in (tmp_path / "images/test_images").rglob("*.png"):
        Image.new("RGB", (64, 64), "red").save(path)  # what was seen, were it something else
    shutil.rmtree(tmp_path / "out/samples")
    other = drawing(things, models, trained / "ubp", tmp_path / "out", **flags) + [
        "--stage",
        "images",
        "--images_dir",
        str(tmp_path / "images"),
    ]
    assert script(DRAW, *other).code == 0
    assert chosen == read_json(tmp_path / "out/samples/chosen.json")


def test_every_step_is_read_by_its_address_on_the_hub_and_gives_the_same(
    things, trained, steps, models, script, tmp_path, local_hub
):
    """Sent by share.py without a .pth; a ControlNet's repository says which images it has seen."""
    runs = {"model_dir": trained / "ubp", "structure_vae": steps / "vae"}
    runs |= {"prior_dir": steps / "prior", "low_level_dir": steps / "low"}
    runs |= {"caption_dir": steps / "caption", "structure_dir": steps / "sgdm"}
    net = shutil.copytree(ROOT / "demo/assets/controlnet", tmp_path / "net/controlnet_epoch1").parent
    seen = {"seen": [], "image_model": model_identity(str(models / "sd"))}
    write_json(seen, net / "controlnet_epoch1/facts.json")
    for name in ("results.json", "run.json"):
        shutil.copy(steps / "vae" / name, net / name)
    write_json(read_json(net / "results.json") | {"best_epoch": 1}, net / "results.json")
    for place in (*runs.values(), net):
        content = read_json(place / "results.json")
        if (place / "config.json").is_file():
            (first,) = place.glob(f"*_epoch{content['best_epoch']}.pth")
            one, other = read_checkpoint(first), read_checkpoint(place / "model.safetensors")
            assert fingerprint_of(one) == fingerprint_of(other)
        assert script("share.py", place, f"me/{place.name}").code == 0
        sent = local_hub.repos[f"me/{place.name}"]["main"]
        assert not [file for file in sent if file.endswith(".pth") or file == "decoded_test.jsonl"]
    # the address of CLIP was a folder of this machine, which is not sent
    asked = {"conditioning": ["ip_adapter", "controlnet"], "stage": "decode", "clip_model": CLIP, "num_samples": 1}
    here = drawing(things, models, trained / "ubp", tmp_path / "here", controlnet=net, **runs, **asked)
    assert script(DRAW, *here).code == 0
    far = {flag: f"me/{place.name}" for flag, place in runs.items()} | {"controlnet": "me/net"} | asked
    done = script(DRAW, *drawing(things, models, "me/ubp", tmp_path / "far", **far))
    assert done.code == 0, done.err
    for file in ("decoded.jsonl", "embeddings.safetensors"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
    assert read_json(controlnet_folder("me/net") / "facts.json") == seen
    with pytest.raises(UserError, match="me/net has no revision v9"):
        controlnet_folder("me/net@v9")
    assert str(controlnet_folder("lab/published")) == "lab/published"  # for diffusers to find


def fingerprint_of(content):
    """A checkpoint's content in one text."""
    if isinstance(content, dict):
        return {key: fingerprint_of(value) for key, value in sorted(content.items())}
    return (str(content.dtype), content.tolist()) if isinstance(content, torch.Tensor) else content


def test_a_black_sample_is_never_the_chosen_one_and_what_stays_black_is_marked(
    things, trained, models, script, tmp_path, monkeypatch
):
    black, drawn = set(), GuidedGenerator._drawn

    def checked(self, guidance, seeds):
        pictures = drawn(self, guidance, seeds)
        for picture, seed in zip(pictures, seeds, strict=True):
            if seed % STRIDE in black:
                picture.paste(0, (0, 0, *picture.size))
                picture.info["fault"] = UNSAFE
        return pictures

    monkeypatch.setattr(GuidedGenerator, "_drawn", checked)
    monkeypatch.setattr("models.image_generator.OTHER_SEEDS", 1)
    out = tmp_path / "out"
    flags = {"samples": 2, "compare": ["ceiling"], "draw_batch": 3, "num_inference_steps": 1}
    indices = [row.index for row in read_rows(trained / "ubp/decoded_test.jsonl")]
    black |= {sample_seed(0, index, 0) % STRIDE for index in indices}  # a first sample, and with it the ceiling
    done = script(DRAW, *drawing(things, models, trained / "ubp", out, **flags))
    assert done.code == 0, done.err
    assert set(read_json(out / "samples/chosen.json").values()) == {1}
    assert not any(row.picture_fault for row in read_rows(out / "decoded.jsonl"))
    black.add(sample_seed(0, read_rows(out / "decoded.jsonl")[2].index, 1) % STRIDE)
    shutil.rmtree(out / "samples")
    done = script(DRAW, *drawing(things, models, trained / "ubp", out, **flags), "--stage", "images")
    assert done.code == 0 and "1 of them came out as no picture" in done.out, done.err
    assert [row.picture_fault for row in read_rows(out / "decoded.jsonl")] == ["", "", UNSAFE, ""]
    done = script("evaluate.py", out, "--images", "--clip_model", CLIP, "--metric_weights", tmp_path, "--no-figures")
    assert done.code == 0 and f"as decoded: 1 of 4 (1 {UNSAFE})" in done.out, done.err
    assert f"{CEILING}: 4 of 4 (4 {UNSAFE})" in done.out and f"| {CEILING} |" not in done.out
    assert "| out | as decoded | 3 |" in done.out


def test_scores_stand_beside_the_control_and_the_ceiling(things, trained, steps, models, script, tmp_path):
    more = {"num_samples": 12, "draw_batch": 6, "num_inference_steps": 2}
    for run, prior, compare in (("ubp", "prior", ["ceiling", "nearest"]), ("ubp_shuffled", "prior_shuffled", [])):
        flags = drawing(
            things,
            models,
            trained / run,
            tmp_path / run,
            prior_dir=steps / prior,
            **more,
            **({"compare": compare} if compare else {}),
        )
        done = script(DRAW, *flags)
        assert done.code == 0 and ("shuffled-label control" in done.out) == (run == "ubp_shuffled"), done.err
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "plain", **more)).code == 0
    done = script("evaluate.py", tmp_path / "ubp", tmp_path / "plain", "--images", "--clip_model", CLIP, "--convnet",
        ROOT / "demo/assets/classifier",
                  "--metric_weights", tmp_path, "--output_dir", tmp_path / "tables")  # fmt: skip
    assert done.code == 0, done.err
    lines = {
        line.split("|")[2].strip(): line
        for line in done.out.splitlines()
        if line.startswith("| ubp |") and "(" in line.split("|")[-2]
    }
    assert {"as decoded", "paired at random", "the stimulus's own embedding", "the nearest training image",
        "shuffled-label control",
            "as decoded, above the control", "what the prior adds to plain"} <= set(lines)  # fmt: skip
    assert "classifier, first stage" in done.out and "classifier, last stage" in done.out
    again = [tmp_path / "ubp", "--images", "--clip_model", CLIP, "--metric_weights", tmp_path]
    flags = drawing(
        things,
        models,
        trained / "ubp_shuffled",
        tmp_path / "ubp_shuffled",
        prior_dir=steps / "prior_shuffled",
        **more | {"guidance_scale": 2},
    )
    assert script(DRAW, *flags, "--stage", "images").code == 0
    done = script("evaluate.py", *again)
    assert done.code == 2 and "drawn in another way than the run's (guidance)" in done.error_line
    shutil.rmtree(tmp_path / "ubp_shuffled")
    pictures = sorted((tmp_path / "ubp/compared").glob("ceiling_*.png"))
    pictures[0].unlink()
    done = script("evaluate.py", *again)
    assert done.code == 2 and "is not of these pictures" in done.error_line


# ---------------------------------------------------------------- refusals


def damaged(steps, tmp_path, **change):
    """A copy of the prior whose checkpoint says something else."""
    folder = shutil.copytree(steps / "prior", tmp_path / "damaged")
    path = next(folder.glob("prior_epoch*.pth"))
    torch.save(torch.load(path, weights_only=True) | change, path)
    return folder


@pytest.mark.parametrize("change, words", [
    ({"encoder": "another"}, "on the embeddings of another encoder"),
    ({"clip": "another"}, "of another CLIP"),
    ({"settings": {"dim": 1024, "condition_dim": 1024}}, "reads embeddings of width 1024; the encoder gives 768"),
    ({"what": "caption"}, "is not a checkpoint of train_prior.py --what prior"),
    ({"model": {}}, "cannot be"),
])  # fmt: skip
def test_a_prior_of_something_else_is_one_line(things, trained, steps, models, script, tmp_path, change, words):
    folder = damaged(steps, tmp_path, **change)
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", prior_dir=folder))
    assert done.code == 2 and words in done.error_line
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("more, words", [
    ({"low_level_dir": "nowhere"}, "no such checkpoint"),
    ({"low_level_dir": "ubp"}, "was trained towards image; expected --target vae_latent"),
    ({"model_dir": "low"}, "was trained towards vae_latent"),
    ({"conditioning": "controlnet"}, "needs --structure_vae"),
    ({"conditioning": "controlnet", "structure_vae": "vae"}, "was trained towards image"),
    ({"conditioning": ["controlnet", "ip_adapter"], "structure_dir": "sgdm", "structure_vae": "ubp"},
    "no such checkpoint"),
    ({"conditioning": ["controlnet", "ip_adapter"], "structure_dir": "sgdm", "structure_vae": "a prior"},
    "is not a checkpoint of train_structure.py"),
    ({"caption_dir": "prior"}, "no such checkpoint"),
    ({"ip_adapter": "sd"}, "has no models/ip-adapter_sd15.safetensors"),
    ({"conditioning": ["text_states", "ip_adapter"]}, "goes alone"),
    ({"compare": ["caption"]}, "needs --caption_dir"),
    ({"strength": 1.5}, "--strength"),
    ({"prior_steps": 1500}, "--prior_steps: 1500 must be from 1 to 1000"),
    ({"structure_dir": "sgdm"}, "goes with --conditioning controlnet"),
    ({"beside": ["no such folder"]}, "decoded.jsonl is not there"),
    ({"num_inference_steps": 1, "low_level_dir": "low", "strength": 0.5}, "less than one step"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(things, trained, steps, models, script, tmp_path, more, words):
    places = {"ubp": trained / "ubp", "low": steps / "low", "vae": steps / "vae", "sgdm": steps / "sgdm",
        "prior": steps / "prior", "sd": models / "sd",
              "nowhere": tmp_path / "nowhere.pth",
              "a prior": next((steps / "prior").glob("prior_epoch*.pth"))}  # fmt: skip
    more = {name: places.get(value, value) if isinstance(value, str) else value for name, value in more.items()}
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **more))
    assert done.code == 2
    assert words in (done.error_line if "error:" in done.err.splitlines()[-1][:6] else done.err)


def test_a_vae_that_saw_a_test_image_is_refused(things, steps, script, tmp_path):
    folder = shutil.copytree(steps / "vae", tmp_path / "vae")
    path = next(folder.glob("vae_epoch*.pth"))
    content = torch.load(path, weights_only=True)
    torch.save(content | {"seen": [*content["seen"], "test_images/00000_u0/u0.png"]}, path)
    done = script(
        SCRIPT, *training(things, tmp_path / "run", encoder="sgdm", target="structure", structure_vae=folder, epochs=1)
    )
    assert done.code == 2 and "was trained on test_images/00000_u0/u0.png" in done.error_line


@pytest.mark.parametrize("flags, words", [
    ({"target": "vae_latent", "encoder": "ubp"}, "go together"),
    ({"target": "structure", "encoder": "sgdm"}, "needs --structure_vae"),
    ({"target": "vae_latent", "encoder": "low_level", "image_model": CLIP}, "has no model_index.json"),
])  # fmt: skip
def test_targets_that_lack_something_are_one_line(things, script, tmp_path, flags, words):
    done = script(SCRIPT, *training(things, tmp_path / "run", **flags))
    assert done.code == 2 and words in done.err


def test_a_caption_adapter_for_another_captioner_is_refused(things, trained, steps, models, script, tmp_path):
    other = shutil.copytree(ROOT / "demo/assets/captioner", tmp_path / "captioner")
    (other / "generation_config.json").write_text((other / "generation_config.json").read_text() + "\n")
    done = script(
        DRAW,
        *drawing(things, models, trained / "ubp", tmp_path / "out", caption_dir=steps / "caption", captioner=other),
    )
    assert done.code == 2 and "of another captioner" in done.error_line


def test_pictures_of_other_decoded_trials_are_never_mixed(things, trained, steps, models, script, tmp_path):
    flags = drawing(things, models, trained / "ubp", tmp_path / "out", stage="decode")
    assert script(DRAW, *flags).code == 0
    path = tmp_path / "out/embeddings.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", stage="images"))
    assert done.code == 2 and "embeddings.safetensors" in done.error_line
    path.write_bytes(whole)
    done = script(
        DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", stage="images", compare=["ceiling"])
    )
    assert done.code == 2 and "holds no ceiling" in done.error_line


def test_the_second_stage_is_given_what_the_first_one_was(things, trained, steps, models, script, tmp_path):
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", stage="decode")).code == 0
    flags = {"stage": "images", "prior_dir": steps / "prior"}
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **flags))
    assert done.code == 2 and "was decoded with --prior_dir None" in done.error_line
    (tmp_path / "out/run.json").write_text("{}")
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", stage="images"))
    assert done.code == 2 and "run.json" in done.error_line


def test_what_is_near_is_never_what_is_asked_for_and_comparing_changes_no_sample(
    things, trained, models, script, tmp_path
):
    flags = {"split": "val", "compare": ["nearest"]}
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **flags)).code == 0
    rows = read_rows(tmp_path / "out/decoded.jsonl")
    assert not {row.nearest for row in rows} & {row.image for row in rows} and all(row.nearest for row in rows)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/samples").glob("*.png")}
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", split="val")).code == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/samples").glob("*.png")}


def test_another_clip_or_latents_of_another_image_model_are_refused(things, trained, steps, models, script, tmp_path):
    clip = shutil.copytree(CLIP, tmp_path / "clip")
    (clip / "config.json").write_text((clip / "config.json").read_text() + "\n")
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", clip_model=clip))
    assert done.code == 2 and "is another one than" in done.error_line
    complete_image_model(ROOT / "demo/assets/stable-diffusion", tmp_path / "other")
    flags = {"image_model": tmp_path / "other", "low_level_dir": steps / "low"}
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **flags))
    assert done.code == 2 and "latents of another image model" in done.error_line
    decoded = {"low_level_dir": steps / "low", "conditioning": ["ip_adapter", "controlnet"],
        "structure_dir": steps / "sgdm",
               "structure_vae": steps / "vae", "stage": "decode"}  # fmt: skip
    assert script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **decoded)).code == 0
    net = shutil.copytree(ROOT / "demo/assets/controlnet", tmp_path / "net")
    seen = [row.image for row in read_rows(tmp_path / "out/decoded.jsonl")]
    (net / "facts.json").write_text(json.dumps({"seen": seen, "image_model": "another"}))
    for more, words in (
        ({"image_model": tmp_path / "other"}, "latents of another image model"),
        ({"clip_model": clip}, "--clip_model"),
        ({"controlnet": net}, seen[0]),
    ):  # the second stage asks what the first one asked
        done = script(
            DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", **decoded | {"stage": "images"} | more)
        )
        assert done.code == 2 and words in done.error_line, more
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_further_run_gives_the_same_trials_and_was_trained_under_the_same_protocol(
    things, trained, steps, models, script, monkeypatch, tmp_path
):
    low = shutil.copytree(steps / "low", tmp_path / "low")
    (path,) = low.glob("encoder_epoch*.pth")
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"protocol": "cross:sub-01"}, path)
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", low_level_dir=low))
    assert done.code == 2 and "was trained under protocol cross:sub-01" in done.error_line

    def run_of(keys, images):  # a trial's key, and the image that a run gives it
        rows = [SimpleNamespace(key=key, subject="S", image=image) for key, image in zip(keys, images, strict=True)]
        checkpoint = {"protocol": "joint", "granularity": "all", "target": "image"}
        dataset = SimpleNamespace(
            trials=rows, labels=[0] * len(rows), mode="test", store=SimpleNamespace(path=Path("store"))
        )
        return SimpleNamespace(name="run", checkpoint=checkpoint, dataset=dataset)

    first, other = run_of("abcd", "1122"), run_of("dbcax", "21319")  # the other one reads them in another order
    monkeypatch.setattr("stages.clip_runs.open_clip_run", lambda *_: other)
    wanted = repetitions(first.dataset)

    how = "image", "", None, CPU
    with pytest.raises(UserError, match="keeps other trials"):  # "c" and "d" are no group of the other one's
        open_like(Path("other"), first, wanted, *how)
    _, (group,) = open_like(Path("other"), first, wanted[:1], *how)
    assert {other.dataset.trials[k].key for k in group.trials} == {"a", "b"}


def test_several_runs_are_drawn_from_the_mean_of_their_embeddings(things, trained, models, script, tmp_path):
    other = shutil.copytree(trained / "ubp", tmp_path / "other")  # as another seed would be: other weights
    (path,) = other.glob("encoder_epoch*.pth")
    checkpoint = torch.load(path, weights_only=True)
    changed = {
        k: v + 0.05 * torch.randn_like(v) if v.is_floating_point() else v for k, v in checkpoint["model"].items()
    }
    torch.save(checkpoint | {"model": changed}, path)
    both, decoded = [trained / "ubp", other], []
    for name, runs in (("one", both[:1]), ("two", both[1:]), ("mean", both)):
        done = script(DRAW, *drawing(things, models, runs, tmp_path / name, stage="decode"))
        assert done.code == 0, done.err
        decoded.append(read_guidance(tmp_path / name / "embeddings.safetensors", read_rows(tmp_path / name / FILE)))
    one, two, mean = (torch.nn.functional.normalize(kept["decoded"], dim=-1) for kept in decoded)
    assert not torch.allclose(one, two, atol=0.01)
    assert torch.allclose(mean, torch.nn.functional.normalize(one + two, dim=-1), atol=1e-5)
    drawn = drawing(things, models, both, tmp_path / "mean", num_samples=1)
    assert script(DRAW, *drawn, "--stage", "images").code == 0
    for runs, more, words in (
        (both, {"prior_dir": tmp_path}, "name one --model_dir"),
        ([trained / "ubp", trained / "ubp_shuffled"], {}, "shuffled"),
    ):
        done = script(DRAW, *drawing(things, models, runs, tmp_path / "no", **more))
        assert done.code == 2 and words in done.err, done.err


def test_pictures_through_a_shuffled_prior_are_a_control_of_the_prior(things, trained, steps, models, script, tmp_path):
    flags = prior_flags(things, trained / "ubp", tmp_path / "prior", epochs=2, validate_every=2)
    assert script(PRIOR, *flags, "--shuffle_labels").code == 0
    done = script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / "out", prior_dir=tmp_path / "prior"))
    assert done.code == 0 and "shuffled-label control" in done.out
    record = read_json(tmp_path / "out/run.json")
    assert record["arguments"]["shuffle_labels"] is True and record["shuffled"] == ["prior"]
    more = {"num_samples": 12, "draw_batch": 6, "num_inference_steps": 1}
    for name, prior in (("one", steps / "prior"), ("one_shuffled", tmp_path / "prior")):
        assert (
            script(DRAW, *drawing(things, models, trained / "ubp", tmp_path / name, prior_dir=prior, **more)).code == 0
        )
    done = script("evaluate.py", tmp_path / "one", "--images", "--clip_model", CLIP, "--metric_weights", tmp_path)
    assert done.code == 0 and "a control of prior alone" in done.out and "as decoded, above the control" in done.out, (
        done.err
    )
    line = next(line for line in done.out.splitlines() if line.startswith("| one | retrieval |"))
    assert "not run" in line  # the encoder, whose answers these are, has no control there
    flags = {"low_level_dir": steps / "low"}  # a control that reads true latents would be none
    done = script(DRAW, *drawing(things, models, trained / "ubp_shuffled", tmp_path / "mixed", **flags))
    assert done.code == 2 and "is a shuffled-label control, but not its low level" in done.error_line
