"""Flags that the generating scripts share, so that each has one meaning and one help text."""

import argparse
import math

from utils.device import PRECISIONS
from utils.paths import default
from utils.statistics import TEXT_READOUTS


def add_trial_flags(parser: argparse.ArgumentParser, datasets_dir: str, output_dir: str) -> None:
    """Which trials, which stages, where to."""
    add = parser.add_argument
    add("--datasets_dir", default=default(datasets_dir), help="trial store")
    add("--split", choices=("train", "val", "test"), default="test", help="whose trials are decoded")
    add("--num_samples", type=int, default=20, help="trials, spread evenly over the split")
    add("--stage", choices=("decode", "images", "all"), default="all",
        help="decode: EEG → decoded.jsonl; images: decoded.jsonl → pictures; all: one after the other")  # fmt: skip
    add("--output_dir", default=default(output_dir), help="folder for decoded.jsonl and pictures")
    add("--batch_size", type=int, default=16, help="trials decoded at once")
    add("--seed", type=int, default=0, help="trial i is drawn from seed + i")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")


def add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """The frozen encoder, as it was in training."""
    add = parser.add_argument_group("encoder").add_argument
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help="load --foundation_dir; --no-use_pretrained_weights: the random encoder of --encoder_seed")  # fmt: skip
    add("--encoder_seed", type=int, default=0, help="training's --seed, where it ran on a random encoder")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="CSBrain's checkpoint")
    add("--allow_partial", action="store_true", help="load what fits of it, as in training")
    add("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The language model and how its text is read."""
    add = parser.add_argument_group("text").add_argument
    add("--lora_dir", help="adapter folder (default: lora_epochN beside the projection)")
    add("--llm", help="chat model: local folder or hub address (default: the one trained with)")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    add("--readout", choices=TEXT_READOUTS, default="keyword",
        help="what is drawn: the generated text, or the likeliest class's sentence")  # fmt: skip
    add("--max_new_tokens", type=int, default=64, help="longest decoded text, in tokens")


def add_image_flags(parser: argparse.ArgumentParser, image_model: str | None, stimuli_dir: str) -> None:
    """The image model, and the photos that stand beside its pictures."""
    add = parser.add_argument_group("images").add_argument
    add("--image_model", default=image_model,
        help="local folder or hub address" + ("" if image_model else " (default: the dataset's)"))  # fmt: skip
    add("--num_inference_steps", "--image_steps", type=int,
        help="steps (default: 25 of DPM-Solver++ for Stable Diffusion, 12 for aMUSEd)")  # fmt: skip
    add("--guidance_scale", type=float,
        help="classifier-free guidance (default: 7.5 for Stable Diffusion, 10 for aMUSEd)")  # fmt: skip
    add("--image_size", type=int, default=512, help="edge of a picture, pixels")
    add("--stimuli_dir", default=default(stimuli_dir), help="folder of the stimulus photos, where a dataset has photos")
    add("--max_held_mib", type=float, default=256, help="GPU memory still held above which no image model is loaded")


def check_at_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """End the script where a number is too small."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            parser.error(f"--{name} must be {smallest} or more")


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End the script where a rate or a weight is negative or no number."""
    for name in names:
        if not (math.isfinite(getattr(args, name)) and getattr(args, name) >= 0):
            parser.error(f"--{name} must be a number, 0 or more")


def check_window(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the script where --tmin and --tmax do not span a whole number of seconds, CSBrain's patches."""
    seconds = args.tmax - args.tmin
    if not math.isfinite(seconds) or seconds < 1 or abs(seconds - round(seconds)) > 1e-9:
        parser.error(
            f"--tmin {args.tmin:g} --tmax {args.tmax:g}: the window must be a whole number of seconds, 1 or more"
        )
