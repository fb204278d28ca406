"""Train the small image models that the demo uses, on drawn pictures.

    python train_demo_images.py --models stable-diffusion amused clip --assets_dir demo/assets
    python train_demo_images.py --models stable-diffusion-shapes controlnet --drawings 480 --autoencoder_steps 2000 \
        --unet_steps 8000 --controlnet_steps 2500
    python train_demo_images.py --models captioner --drawings 960 --captioner_steps 5000 --lr 2e-3
    python train_demo_images.py --models classifier --drawings 480 --classifier_steps 1500
    python train_demo_images.py --models clip-classes --drawings 300 --clip_steps 1500
    python train_demo_images.py --own_pictures pth/own/stable-diffusion --datasets_dir STORE --stimuli_dir PICTURES \
        --start_from pth/demo/stable-diffusion --autoencoder_steps 300 --unet_steps 600

stable-diffusion: a VAE (64×64×3 → 16×16×4), then a UNet, for all drawn classes. amused: a VQ model (64×64×3 → 8×8
tokens), then a U-ViT that fills in masked tokens, for the classes of Visual Imagery. clip: both towers, pictures
against prompts; clip-classes: the same for all drawn classes, to judge what is drawn. stable-diffusion-shapes: a VAE,
then a UNet together with its IP-Adapter, for coloured shapes, told by clip's embeddings; controlnet: for that model,
along edges; captioner: a GIT; classifier: a ResNet. The image models are conditioned on a frozen random text encoder
that is made by rule and not shipped. About 45 minutes, 30 minutes, one minute each, 55 minutes, 10 minutes, 2 minutes
and half a minute on one CPU core (the shipped aMUSEd with --autoencoder_steps 2000, the shipped models of shapes and
clip-classes with the commands above). The results have the hub's folder layouts in half precision, and the project
ships them; nobody needs to run this to run the demo.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.paths import default
from utils.script import check_one_process, run_script, start_script

NAMES = "stable-diffusion amused clip clip-classes stable-diffusion-shapes controlnet captioner classifier".split()


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=NAMES, default=list(NAMES), help="which to train")
    add("--own_pictures", help="train one model instead, on the pictures of a store's own classes: its folder")
    add("--datasets_dir", help="--own_pictures: the store")
    add("--stimuli_dir", help="--own_pictures: folder of pictures named after classes, any number of each")
    add("--start_from", default=default("pth/demo/stable-diffusion"), help="--own_pictures: the shipped small model")
    add("--assets_dir", default=default("demo/assets"), help="folder of the models' folders")
    add("--drawings", type=int, default=600, help="training pictures a class")
    add("--autoencoder_steps", type=int, default=2500, help="steps of 16 pictures, VAE and VQ model")
    add("--unet_steps", type=int, default=12000, help="steps of 16 pictures, UNet")
    add("--uvit_steps", type=int, default=8000, help="steps of 16 pictures, U-ViT")
    add("--clip_steps", type=int, default=600, help="steps of one picture a class, CLIP")
    add("--controlnet_steps", type=int, default=3000, help="steps of 16 pictures, ControlNet")
    add("--captioner_steps", type=int, default=1500, help="steps of 16 pictures, captioner")
    add("--classifier_steps", type=int, default=1500, help="steps of 16 pictures, classifier")
    add("--lr", type=float, default=1e-3, help="peak learning rate of the one-cycle schedule")
    add("--sheet_dir", default=default("outputs/demo_image_models"), help="samples to look at")
    add("--seed", type=int, default=0, help="of drawings, weights and batches")
    args = parser.parse_args()
    if args.own_pictures and not (args.datasets_dir and args.stimuli_dir):
        parser.error("--own_pictures needs --datasets_dir and --stimuli_dir")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from dataclasses import fields
from functools import partial

import torch

from demo.train_images import Settings, learn_own_pictures, train_amused, train_clip, train_stable_diffusion
from demo.train_shapes import train_captioner, train_classifier, train_controlnet, train_shapes


def main(args: argparse.Namespace) -> None:
    check_one_process()
    train = {
        "stable-diffusion": train_stable_diffusion,
        "amused": train_amused,
        "clip": train_clip,
        "clip-classes": partial(train_clip, datasets=("BCICIV2a", "VI")),  # all that the small Stable Diffusion draws
        "stable-diffusion-shapes": train_shapes,
        "controlnet": train_controlnet,
        "captioner": train_captioner,
        "classifier": train_classifier,
    }
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    if args.own_pictures:
        torch.manual_seed(args.seed)
        places = Path(args.start_from), args.datasets_dir, Path(args.stimuli_dir), Path(args.own_pictures)
        learn_own_pictures(settings, *places)
        return
    for name in args.models:
        torch.manual_seed(args.seed)
        train[name](settings, Path(args.assets_dir) / name)


if __name__ == "__main__":
    run_script(lambda: main(args))
