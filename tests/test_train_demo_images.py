import torch
from PIL import Image

from models.image_generator import EEGImageGenerator


def test_a_short_training_gives_a_pipeline_in_the_hubs_layout(process, tmp_path):
    flags = ["--output_dir", tmp_path / "sd", "--sheet", tmp_path / "sheet.png", "--drawings", 8]
    done = process("train_demo_images.py", *flags, "--vae_steps", 2, "--unet_steps", 2)
    assert done.code == 0, done.err
    assert {"model_index.json", "vae", "unet", "text_encoder", "tokenizer", "scheduler"} <= {
        path.name for path in (tmp_path / "sd").iterdir()
    }
    assert sum(path.stat().st_size for path in (tmp_path / "sd").rglob("*") if path.is_file()) < 5e6
    generator = EEGImageGenerator(str(tmp_path / "sd"), torch.device("cpu"), steps=2, image_size=64)
    assert generator.generate("anything", 0).size == (64, 64)
    assert Image.open(tmp_path / "sheet.png").size == (4 * 64, 4 * 64)
