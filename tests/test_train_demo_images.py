import torch
from PIL import Image

from demo.tiny_models import complete_image_model
from models.image_generator import EEGImageGenerator
from tests.conftest import ROOT


def test_a_short_training_gives_models_in_the_hubs_layout(process, tmp_path):
    flags = ["--assets_dir", tmp_path / "assets", "--sheet_dir", tmp_path / "sheets", "--drawings", 4]
    steps = ["--autoencoder_steps", 6, "--unet_steps", 2, "--uvit_steps", 2, "--clip_steps", 2]
    done = process("train_demo_images.py", *flags, *steps)
    assert done.code == 0, done.err
    for name, classes in (("stable-diffusion", 14), ("amused", 10)):
        assert Image.open(tmp_path / f"sheets/{name}.png").size == (4 * 64, classes * 64)
        complete_image_model(tmp_path / "assets" / name, tmp_path / name)
        generator = EEGImageGenerator(str(tmp_path / name), torch.device("cpu"), steps=2, image_size=64)
        assert generator.generate("anything", 0).size == (64, 64)
    assert (tmp_path / "assets/clip/preprocessor_config.json").exists()


def test_the_shipped_weights_are_small():
    shipped = list((ROOT / "demo/assets").rglob("*.safetensors"))
    assert {path.relative_to(ROOT / "demo/assets").parts[0] for path in shipped} == {
        "amused",
        "clip",
        "stable-diffusion",
    }
    assert sum(path.stat().st_size for path in shipped) < 5e6
