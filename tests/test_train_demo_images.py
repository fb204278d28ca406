import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from demo.drawings import COLOURS, coloured_shape, drawing
from demo.tiny_models import complete_image_model, complete_ip_adapter
from demo.train_images import class_prompts
from evaluation.image_networks import feature_networks
from models.captioner import Captioner
from models.clip_targets import sentence_targets
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.guided_generator import Guidance, GuidedGenerator
from models.image_generator import EEGImageGenerator, read_prompts
from tests.conftest import ROOT


def test_a_short_training_gives_models_in_the_hubs_layout(script, tmp_path):
    flags = ["--assets_dir", tmp_path / "assets", "--sheet_dir", tmp_path / "sheets", "--drawings", 4]
    steps = [
        "--autoencoder_steps",
        6,
        *(
            f
            for name in ("unet", "uvit", "clip", "controlnet", "captioner", "classifier")
            for f in (f"--{name}_steps", 2)
        ),
    ]
    done = script("train_demo_images.py", *flags, *steps)
    assert done.code == 0, done.err
    for name, classes in (("stable-diffusion", 14), ("amused", 10)):
        assert Image.open(tmp_path / f"sheets/{name}.png").size == (4 * 64, classes * 64)
        complete_image_model(tmp_path / "assets" / name, tmp_path / name)
        generator = EEGImageGenerator(str(tmp_path / name), torch.device("cpu"), steps=2, image_size=64)
        assert generator.generate("anything", 0).size == (64, 64)
    assert (tmp_path / "assets/clip/preprocessor_config.json").exists()
    complete_image_model(tmp_path / "assets/stable-diffusion-shapes", tmp_path / "shapes")
    complete_ip_adapter(tmp_path / "assets/ip-adapter", tmp_path / "ip-adapter")
    told, empty = read_prompts(str(tmp_path / "shapes"), [""], torch.device("cpu"))
    guided = GuidedGenerator(
        str(tmp_path / "shapes"), torch.device("cpu"), empty, steps=2, image_size=64,
            ip_adapter=str(tmp_path / "ip-adapter"), width=768,
        controlnet=str(tmp_path / "assets/controlnet"),
    )  # fmt: skip
    picture = guided.draw([Guidance(told[""], torch.randn(768), structure=Image.new("RGB", (64, 64)))], [0])[0]
    assert len(Captioner(str(tmp_path / "assets/captioner"), torch.device("cpu"))([picture])) == 1
    found, _ = feature_networks(tmp_path, str(tmp_path / "assets/clip"), str(tmp_path / "assets/classifier"))
    assert {len(read([picture, picture])) for read in found.values()} == {2} and len(found) == 3


def test_the_shipped_weights_are_small():
    shipped = list((ROOT / "demo/assets").rglob("*.safetensors"))
    assert {path.relative_to(ROOT / "demo/assets").parts[0] for path in shipped} == {
        "amused", "captioner", "classifier", "clip", "clip-classes", "controlnet", "ip-adapter", "stable-diffusion",
        "stable-diffusion-shapes",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in shipped) < 12e6 and max(path.stat().st_size for path in shipped) < 5e6


def test_the_shipped_models_of_shapes_do_what_they_are_for(tmp_path):
    """Of new drawings: captions are right, and pictures from an image's own embedding have its colour."""
    complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", tmp_path / "shapes")
    complete_ip_adapter(ROOT / "demo/assets/ip-adapter", tmp_path / "ip-adapter")
    concepts = [
        ("star", "red"),
        ("disc", "blue"),
        ("stripes", "green"),
        ("ring", "yellow"),
        ("heart", "black"),
        ("box", "purple"),
    ]
    rng = np.random.default_rng(5)
    pictures = [coloured_shape(*concept, rng, 64) for concept in concepts]
    captions = Captioner(str(ROOT / "demo/assets/captioner"), torch.device("cpu"))(pictures)
    assert (
        sum(caption == f"a {colour} {shape}" for caption, (shape, colour) in zip(captions, concepts, strict=True)) >= 5
    )
    told, empty = read_prompts(str(tmp_path / "shapes"), [""], torch.device("cpu"))
    guided = GuidedGenerator(str(tmp_path / "shapes"), torch.device("cpu"), empty, steps=10, guidance_scale=3,
        image_size=64,
                             ip_adapter=str(tmp_path / "ip-adapter"), width=768)  # fmt: skip
    vectors = CLIPImageTargetBuilder(str(ROOT / "demo/assets/clip"), tmp_path).load()(pictures).float()
    right = 0
    for number, (vector, (_, colour)) in enumerate(zip(vectors, concepts, strict=True)):
        drawn = np.asarray(guided.draw([Guidance(told[""], vector)], [number])[0], float).reshape(-1, 3)
        ink = drawn[np.argsort(-np.abs(drawn - np.median(drawn[:64], axis=0)).sum(axis=1))[:200]].mean(axis=0)
        right += min(COLOURS, key=lambda name, ink=ink: np.square(np.asarray(COLOURS[name]) - ink).sum()) == colour
    assert right >= 5


def test_the_small_model_learns_pictures_that_are_named_after_a_stores_classes(few, script, tmp_path):
    complete_image_model(ROOT / "demo/assets/stable-diffusion", tmp_path / "base")
    for k, name in enumerate(("left hand_1", "right hands/a", "feet/b", "tongue 12")):
        path = tmp_path / f"pictures/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (40 * k, 90, 200)).save(path)
    flags = ["--own_pictures", tmp_path / "own", "--datasets_dir", few, "--stimuli_dir", tmp_path / "pictures",
             "--start_from", tmp_path / "base", "--autoencoder_steps", 2, "--unet_steps", 2, "--sheet_dir",
             tmp_path / "sheets"]  # fmt: skip
    done = script("train_demo_images.py", *flags)
    assert done.code == 0 and Image.open(tmp_path / "sheets/own.png").size == (4 * 64, 4 * 64), done.err
    generator = EEGImageGenerator(str(tmp_path / "own"), torch.device("cpu"), steps=2, image_size=64)
    assert generator.generate("a picture of a left hand with the fingers spread", 0).size == (64, 64)
    (tmp_path / "pictures/tongue 12.png").unlink()
    assert "no picture is named after tongue" in script("train_demo_images.py", *flags).error_line


def test_the_shipped_judge_tells_the_drawn_classes_apart(tmp_path):
    """Hands, feet and tongue too, which the shipped clip has never seen."""
    prompts, clip = class_prompts(["BCICIV2a", "VI"]), str(ROOT / "demo/assets/clip-classes")
    names = list(prompts)
    pictures = [drawing(name, np.random.default_rng((77, k)), 128) for name in names for k in range(4)]
    of_pictures = CLIPImageTargetBuilder(clip, tmp_path).load()(pictures).float()
    like = F.normalize(of_pictures, dim=-1) @ sentence_targets(clip, [*prompts.values()], tmp_path).float().T
    right = (like.argmax(dim=1) == torch.arange(len(names)).repeat_interleave(4)).float()
    assert right.mean() > 0.8 and right.view(-1, 4).mean(dim=1).min() >= 0.5
