"""Flags that several scripts share, so that each has one meaning and one help text. Imports nothing slow: -h reads it."""

import argparse
import math
import re
from collections.abc import Callable, Sequence

from utils.errors import UserError
from utils.paths import default

PRECISIONS = ("auto", "fp16", "bf16", "fp32")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is, and the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action)


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring and every default."""
    return argparse.ArgumentParser(description=description, formatter_class=Formatter)


# ---------------------------------------------------------------- what scripts share


def add_prepare_flags(parser: argparse.ArgumentParser, workers: int) -> None:
    """From raw files to a store, whatever the dataset."""
    add = parser.add_argument
    add("--scale", type=float, help="multiply the microvolts that are read, and leave out the check of amplitudes")
    add("--workers", type=int, default=workers, help="files prepared at the same time")
    add("--overwrite", action="store_true", help="replace what is at --lmdb_dir")


def add_store_flags(parser: argparse.ArgumentParser, datasets_dir: str | None, check_protocol: Callable) -> None:
    """Which trials. `check_protocol` gives a protocol back or raises UserError."""
    add = parser.add_argument
    add("--datasets_dir", default=datasets_dir and default(datasets_dir), required=datasets_dir is None,
        help="trial store (or CBraMod's LMDB)")  # fmt: skip
    add("--protocol", type=checked(check_protocol), default="published", help="published: the published people; loso:A03: leave one subject out; "
        "within:A03: one person across sessions; people:A08+A09/A07: the people that test and that validate")  # fmt: skip


def add_part_flags(parser: argparse.ArgumentParser) -> None:
    """Which part of each trial a run reads; decoding reads the same, as the checkpoint says."""
    add = parser.add_argument
    add(
        "--window", type=float, nargs=2, metavar=("FROM", "TO"), help="seconds of the stored trial (default: all of it)"
    )
    add("--regions", nargs="+", help="brain regions whose electrodes are read, e.g. frontal central (default: all)")


def checked(check: Callable) -> Callable:
    """A flag's type: what `check` gives back; its UserError becomes argparse's."""

    def value(text: str) -> str:
        try:
            return check(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


def add_encoder_flags(parser: argparse.ArgumentParser, encoders) -> None:
    """The encoder and its cache."""
    add = parser.add_argument_group("encoder").add_argument
    add("--encoder", choices=list(encoders), default="csbrain",
        help="csbrain: pretrained and frozen; the others are trained from scratch")  # fmt: skip
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help="csbrain: load --foundation_dir; --no-use_pretrained_weights: random weights")  # fmt: skip
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--allow_partial", action="store_true", help="load what fits of the checkpoint and list what does not")
    add("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")
    add("--no_cache_features", action="store_true", help="do not read or keep tokens: encode anew")


def add_trained_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """The encoder as it was in training: which one it is, the checkpoint says."""
    add = parser.add_argument_group("encoder").add_argument
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help="csbrain: load --foundation_dir; --no-use_pretrained_weights: the random encoder of --encoder_seed")  # fmt: skip
    add("--encoder_seed", type=int, default=0, help="training's --seed, where it ran on a random encoder")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--allow_partial", action="store_true", help="load what fits of it, as in training")
    add("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")
    add("--no_cache_features", action="store_true", help="do not read or keep tokens: encode the chosen trials anew")


def add_training_flags(parser: argparse.ArgumentParser, poolings) -> None:
    """What both training scripts have."""
    add = parser.add_argument
    add("--token_pooling", choices=list(poolings),
        help="region: means over brain regions; hemisphere: left, midline and right apart; electrode: no pooling "
        "(default: region)")  # fmt: skip
    add("--train_encoder", action="store_true", help="csbrain: train it as well in the joint phase (no token cache)")
    add("--encoder_lr", type=float,
        help="peak learning rate of a trained encoder (default: 1e-4 for csbrain, 1e-3 from scratch)")  # fmt: skip
    add("--weight_decay", type=float, default=0.01, help="AdamW's")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add("--label_smoothing", type=float, default=0.0, help="of the cross-entropy, 0 to 1")
    add("--shuffle_labels", action="store_true",
        help="permute the labels within each recording, in all splits: the shuffled-label control")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run that is in the output folder")
    add("--keep", nargs="+", choices=("best", "last", "all"), default=["best", "last"],
        help="which epochs' checkpoints stay; the best one, which is tested, and what --resume goes on from always do")  # fmt: skip
    add_run_flags(parser)
    add("--precision", choices=PRECISIONS, default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Device and seed."""
    parser.add_argument("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")


def add_generation_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Which trials are decoded, which stages run, where to."""
    add = parser.add_argument
    add("--split", choices=("train", "val", "test"), default="test", help="whose trials are decoded")
    add("--num_samples", type=int, default=20, help="trials, spread evenly over the split")
    add("--stage", choices=("decode", "images", "all"), default="all",
        help="decode: EEG → decoded.jsonl; images: decoded.jsonl → pictures; all: one after the other")  # fmt: skip
    add("--output_dir", default=default(output_dir), help="folder for decoded.jsonl and pictures")
    add("--batch_size", type=int, default=16, help="trials decoded at once")
    add_run_flags(parser)


def add_text_flags(parser: argparse.ArgumentParser, readouts) -> None:
    """The language model and how its text is read."""
    add = parser.add_argument_group("text").add_argument
    add("--lora_dir", help="adapter folder (default: lora_epochN beside the projection)")
    add("--llm", help="chat model: local folder or hub address (default: the one trained with)")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    add("--readout", choices=list(readouts), default="keyword",
        help="what is drawn: the generated text, or the sentence of the class that another read-out names")  # fmt: skip
    add("--max_new_tokens", type=int, default=64, help="longest decoded text, in tokens")


def add_image_flags(
    parser: argparse.ArgumentParser, image_model: str | None, stimuli_dir: str, steps: int | None = None,
    guidance_scale: float | None = None, photos: Sequence[str] = (),
) -> None:  # fmt: skip
    """The image model, and the photos that stand beside its pictures.

    steps, guidance_scale : optional. A script's own defaults, in place of the image model's family's.
    photos : sequence of str. Other names of --stimuli_dir.
    """
    of_family = {
        "steps": "" if steps else " (default: 25 of DPM-Solver++ for Stable Diffusion, 12 for aMUSEd)",
        "guidance": "" if guidance_scale else " (default: 7.5 for Stable Diffusion, 10 for aMUSEd)",
    }
    add = parser.add_argument_group("images").add_argument
    add("--image_model", default=image_model,
        help="local folder or hub address" + ("" if image_model else " (default: the dataset's)"))  # fmt: skip
    add("--num_inference_steps", "--image_steps", type=int, default=steps, help=f"steps{of_family['steps']}")
    add("--guidance_scale", type=float, default=guidance_scale, help=f"classifier-free guidance{of_family['guidance']}")
    add("--image_size", type=int, default=512, help="edge of a picture, pixels")
    add(
        "--stimuli_dir",
        *photos,
        default=default(stimuli_dir),
        help="folder of the stimulus photos, where a dataset has photos",
    )
    add("--max_held_mib", type=float, default=256, help="GPU memory still held above which no image model is loaded")


def defaults(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict:
    """What each flag is when nobody gives it."""
    return {name: parser.get_default(name) for name in vars(args)}


# ---------------------------------------------------------------- checks


def check_at_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """End the script where a number is too small."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            parser.error(f"--{name} must be {smallest} or more")


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End the script where a rate or a weight is negative or no number."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            parser.error(f"--{name} must be a number, 0 or more")


def check_share(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End the script where a share is not between 0 and 1 (1 excluded)."""
    for name in names:
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name):g} must lie between 0 and 1")


def check_phases(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the script where the warm-up is longer than the training."""
    if not 0 <= args.warmup_epochs <= args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} must lie between 0 and --epochs {args.epochs}")


def check_generation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the script where a generating script's number is too small."""
    check_at_least(parser, args, num_samples=1, batch_size=1, num_inference_steps=1, image_size=8, seed=0)
    check_numbers(parser, args, "guidance_scale", "max_held_mib")
    if getattr(args, "max_new_tokens", 1) < 1:
        parser.error("--max_new_tokens must be 1 or more")


def check_setting(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Bring --setting and --subject to a protocol, `args.protocol`; end the script where one lacks the other."""
    if (args.setting == "joint") == bool(args.subject):
        parser.error(
            "--setting joint takes no --subject" if args.subject else f"--setting {args.setting} needs --subject"
        )
    args.protocol = args.setting + (f":{args.subject}" if args.subject else "")


def check_subjects(
    parser: argparse.ArgumentParser, args: argparse.Namespace, pattern: str, form: str, known: Sequence[str]
) -> None:
    """Bring --subjects to a dataset's names, from numbers as well; end the script where one is unknown.

    pattern : str. A name, with its number as a group. form : str. The dataset's name of a number.
    """
    named = {name: re.fullmatch(pattern, name) for name in args.subjects}
    args.subjects = sorted({form.format(int(number[1])) if number else name for name, number in named.items()})
    unknown = set(args.subjects) - set(known)
    if unknown:
        parser.error(f"--subjects: {', '.join(sorted(unknown))}; expected 1 to {len(known)}")


def check_prepare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the script where the window is empty, or --workers or --scale is no number to work with."""
    if not (math.isfinite(args.tmin) and math.isfinite(args.tmax) and args.tmax > args.tmin):
        parser.error(f"--tmin {args.tmin:g} --tmax {args.tmax:g}: the window must end after it begins")
    check_at_least(parser, args, workers=1)
    if args.scale is not None and not (math.isfinite(args.scale) and args.scale > 0):
        parser.error("--scale must be a positive number")


def check_prior_steps(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A prior is sampled in at most as many steps as it was trained on."""
    if not 1 <= args.prior_steps <= 1000:
        parser.error("--prior_steps must be from 1 to 1000")
