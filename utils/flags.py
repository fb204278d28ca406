"""Flags that several scripts share, so that each has one meaning and one help text. Imports nothing slow."""

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from utils.errors import UserError
from utils.paths import default

PRECISIONS = ("auto", "fp16", "bf16", "fp32")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is, and the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Ends in one line where a flag is wrong; argparse would print all flags before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} ({self.prog} -h explains every flag)\n")


def new_parser(description: str) -> Parser:
    """A parser that shows a script's docstring and every default."""
    return Parser(description=description, formatter_class=Formatter)


# ---------------------------------------------------------------- types: what a flag's value must be


def _number(kind: Callable, fits: Callable, words: str) -> Callable:
    """A flag's type: a number that fits, which `words` say of it."""

    def value(text: str) -> float:
        if not fits(read := kind(text)):
            raise argparse.ArgumentTypeError(f"{text} must {words}")
        return read

    value.__name__ = kind.__name__  # argparse says it where the text is no number
    return value


def at_least(smallest: int) -> Callable:
    """Whole numbers from `smallest` on."""
    return _number(int, lambda value: value >= smallest, f"be {smallest} or more")


number = _number(float, lambda value: 0 <= value < math.inf, "be a number, 0 or more")  # a rate or a weight
positive = _number(float, lambda value: 0 < value < math.inf, "be positive")
up_to_one = _number(float, lambda value: 0 < value <= 1, "be positive, and at most 1")
share = _number(float, lambda value: 0 <= value < 1, "lie between 0 and 1")  # 1 excluded
prior_steps = _number(int, lambda value: 1 <= value <= 1000, "be from 1 to 1000")  # a prior is trained on 1000


def checked(check: Callable) -> Callable:
    """A flag's type: what `check` gives back; its UserError becomes argparse's."""

    def value(text: str) -> str:
        try:
            return check(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


def named_in(names: Sequence[str]) -> dict:
    """Type and place-holder of a flag that takes one of these names; "braindecode:" stands for "braindecode:NAME"."""
    shown = [f"{name}NAME" if name.endswith(":") else name for name in names]

    def known(text: str) -> str:
        families = [name for name in names if name.endswith(":")]
        if text in families or (text not in names and not text.startswith(tuple(families))):
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(shown)})")
        return text

    return {"type": known, "metavar": f"{{{','.join(shown)}}}"}


# ---------------------------------------------------------------- what scripts share


def renaming(text: str) -> tuple[str, str]:
    """OLD=NEW: a channel's name, and the electrode that it is."""
    old, _, new = text.rpartition("=")
    if not old or not new:
        raise argparse.ArgumentTypeError(f"{text}: expected OLD=NEW, as in 'EEG 001=Cz'")
    return old, new


def add_rename_flag(parser) -> None:
    """Which electrode a channel is. `parser`: or a group of one."""
    what = "which electrode a channel is, where its name does not tell"
    parser.add_argument("--rename", nargs="+", type=renaming, metavar="OLD=NEW", default=[], help=what)


def add_prepare_flags(parser: argparse.ArgumentParser, workers: int) -> None:
    """From raw files to a store, whatever the dataset."""
    add = parser.add_argument
    add("--scale", type=positive, help="multiply the microvolts that are read, and leave out the check of amplitudes")
    add("--workers", type=at_least(1), default=workers, help="files prepared at the same time")
    add("--overwrite", action="store_true", help="replace what is at --lmdb_dir")


def add_dataset_flags(parser: argparse.ArgumentParser, check: Callable, what: str) -> None:
    """Which dataset, and in which words. `check`: gives a dataset's name back or raises UserError."""
    add = parser.add_argument
    add("--downstream_dataset", type=checked(check), help=f"{what} (default: as the store says)")
    add("--words", help="TOML or JSON file of other keywords, sentences and prompts than the dataset's")


def add_store_flags(
    parser: argparse.ArgumentParser, datasets_dir: str | None, protocols: Mapping, check_protocol: Callable
) -> None:
    """Which trials, of datasets with words."""
    known = {"required": True} if datasets_dir is None else {"default": default(datasets_dir)}
    parser.add_argument("--datasets_dir", **known, help="trial store (or CBraMod's LMDB)")
    add_protocol_flags(parser, protocols, check_protocol, "published, or what an own store says")


def add_seen_images_flags(parser: argparse.ArgumentParser) -> None:
    """Which trials and images, of datasets of seen images."""
    add = parser.add_argument
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--images_dir", help="folder of the images that were seen (default: as the store says, or data/THINGS/images)")
    add_encoded_flags(add)


def add_protocol_flags(
    parser: argparse.ArgumentParser, protocols: Mapping, check_protocol: Callable, usual: str
) -> None:
    """Who trains and who tests, in two spellings; `choose_protocol` brings them to one.

    protocols : mapping of names to records with `takes_person`. check_protocol : gives a protocol back or raises
    UserError.
    """
    add = parser.add_argument
    # fmt: off
    add("--protocol", type=checked(check_protocol),
        help="published: the published people; loso:A03: leave one subject out; within:A03: one person across "
        "sessions; people:A08+A09/A07: the people that test and that validate; of seen images within:sub-08, "
        f"cross:sub-08, joint, day:S03; run:P1/3, later:P1: one person's runs, later trials (default: {usual})")
    add("--setting", choices=list(protocols),
        help="the same in two flags: --setting cross --subject sub-08 is --protocol cross:sub-08")
    add("--subject", help="the person of --setting, e.g. A03, sub-08, S03")
    # fmt: on


def choose_protocol(
    parser: argparse.ArgumentParser, args: argparse.Namespace, protocols: Mapping, usual: str | None
) -> None:
    """Bring --setting and --subject to `args.protocol`; end the script where one lacks the other.

    usual : str, optional. What nobody has to name; None: the dataset says it, and `args.protocol` stays None.
    """
    asked, subject, setting = args.setting, args.subject, args.setting or usual
    del args.setting, args.subject
    if args.protocol:
        if asked or subject:
            parser.error("--protocol and --setting with --subject are two spellings of the same; give one of them")
    elif setting:
        if protocols[setting].takes_person != bool(subject):
            parser.error(f"--setting {setting} {'takes no' if subject else 'needs'} --subject")
        args.protocol = f"{setting}:{subject}" if subject else setting
    elif subject:
        parser.error("--subject needs --setting")


def add_part_flags(parser: argparse.ArgumentParser, alignments: Sequence[str], methods: Sequence[str]) -> None:
    """Which part of each trial a run reads, and how it is aligned; decoding reads the same, as the checkpoint says."""
    # fmt: off
    add = parser.add_argument_group("what is read of a trial").add_argument
    add("--window", type=float, nargs=2, metavar=("FROM", "TO"),
        help="seconds of the stored trial (default: all of it)")
    add("--regions", nargs="+", help="brain regions whose electrodes are read, e.g. frontal central (default: all)")
    add_alignment_flags(add, alignments, methods)
    # fmt: on


def add_alignment_flags(add: Callable, alignments: Sequence[str], methods: Sequence[str]) -> None:
    """Band and alignment. `add`: the parser's, or a group's, `add_argument`."""
    # fmt: off
    add("--band", type=positive, nargs=2, metavar=("LOW", "HIGH"),
        help="Hz that are read (default: all that the store holds)")
    add("--align", choices=list(alignments), default="none",
        help="by which unlabelled trials of the same person: trial: its own size alone; causal: earlier ones of the "
        "session; session, person: all of them. Test people are aligned as training people are")
    add("--align_method", choices=list(methods), default="euclidean",
        help="by the inverse root of which mean covariance; zscore: each electrode by its own size")
    # fmt: on


def add_adapt_flag(add: Callable, adaptations: Sequence[str]) -> None:
    """What is learned of test trials without labels. `add`: the parser's, or a group's, `add_argument`."""
    add(
        "--adapt",
        choices=list(adaptations),
        default="none",
        help="what is learned of unlabelled test trials: im: batch normalisation's scale and shift, of a session's "
        "trials before they are decoded, im_causal: of those so far, after each batch; prior, prior_causal: "
        "how often answers name each class, where classes are equally frequent in a session",
    )


def add_encoder_flags(parser: argparse.ArgumentParser, encoders) -> None:
    """The encoder and its cache."""
    # fmt: off
    add = parser.add_argument_group("encoder").add_argument
    add("--encoder", **named_in(encoders), default="csbrain",
        help="csbrain: pretrained and frozen; the others are trained from scratch, braindecode:NAME where that has no "
        "weights")
    _add_weights_flags(add, "random weights", "the checkpoint, 90 %% of its names or more, and list what does not")
    # fmt: on


def add_trained_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """The encoder as it was in training: which one it is, the checkpoint says."""
    add = parser.add_argument_group("encoder").add_argument
    _add_weights_flags(add, "the random encoder of --encoder_seed", "it, as in training")
    add("--encoder_seed", type=int, default=0, help="training's --seed, where it ran on a random encoder")


def _add_weights_flags(add: Callable, random: str, fitting: str) -> None:
    """Where an encoder's weights come from, and its tokens go to."""
    # fmt: off
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help=f"csbrain: load --foundation_dir; --no-use_pretrained_weights: {random}")
    add_encoded_flags(add)
    add("--allow_partial", action="store_true", help=f"load what fits of {fitting}")
    add("--no_cache_features", action="store_true", help="do not read or keep tokens: encode anew")
    # fmt: on


def add_encoded_flags(add: Callable) -> None:
    """Where what frozen models gave is kept, and CSBrain's weights."""
    add("--cache_dir", help="folder of cached targets and tokens (default: token_cache beside --datasets_dir)")
    what = "csbrain: its checkpoint, a file, a folder, or OWNER/NAME on the hub"
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help=what)


def add_training_flags(parser: argparse.ArgumentParser, poolings, augmentations) -> None:
    """What text and mapper training have."""
    # fmt: off
    add = parser.add_argument
    add("--token_pooling", choices=list(poolings),
        help="region: means over brain regions; hemisphere: left, midline and right apart; electrode: no pooling "
        "(default: region)")
    add("--train_encoder", action="store_true", help="csbrain: train it as well in the joint phase (no token cache)")
    add("--encoder_lr", type=number,
        help="peak learning rate of a trained encoder (default: 1e-4 for csbrain, 1e-3 from scratch)")
    add("--layer_decay", type=up_to_one, default=1.0,
        help="of a trained csbrain: its learning rate is multiplied by this once for each block above; 1: one rate")
    add("--encoder_lora", type=at_least(0), default=0,
        help="csbrain: rank of adapters of its attention, trained in the joint phase in place of its own weights (no "
        "token cache); 0: none")
    add("--augment", nargs="+", choices=list(augmentations), default=[],
        help="what is changed at random in training batches; not with tokens from the cache")
    add("--weight_decay", type=number, default=0.01, help="AdamW's")
    add("--clip", type=number, default=1.0, help="largest gradient norm")
    add("--label_smoothing", type=share, default=0.0, help="of the cross-entropy, 0 to 1")
    add("--shuffle_labels", action="store_true",
        help="permute the labels within each recording, in all splits: the shuffled-label control")
    add_resume_flags(parser, ("best", "last"))
    add("--precision", choices=PRECISIONS, default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    # fmt: on


def add_resume_flags(parser: argparse.ArgumentParser, keep: Sequence[str] = ("best",)) -> None:
    """Going on, which checkpoints stay, device and seed."""
    # fmt: off
    add = parser.add_argument
    add("--resume", action="store_true", help="go on with the run that is in the output folder")
    add("--keep", nargs="+", choices=("best", "last", "all"), default=list(keep),
        help="which epochs' checkpoints stay; the best one, which is tested, and what --resume goes on from always do")
    # fmt: on
    add_run_flags(parser)


def add_prior_flags(add: Callable) -> None:
    """How a prior is sampled. `add`: the parser's, or a group's, `add_argument`."""
    add("--prior_steps", type=prior_steps, default=50, help="prior: steps of its sampling, of 1000")
    add("--prior_guidance", type=number, default=5.0, help="prior: times what the condition adds")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Device and seed."""
    parser.add_argument("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of everything random")


def add_generation_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Which trials are decoded, which stages run, where to."""
    # fmt: off
    add = parser.add_argument
    add("--split", choices=("train", "val", "test"), default="test", help="whose trials are decoded")
    add("--num_samples", type=at_least(1), default=20, help="trials, spread evenly over the split")
    add("--stage", choices=("decode", "images", "all"), default="all",
        help="decode: EEG → decoded.jsonl; images: decoded.jsonl → pictures; all: one after the other")
    add("--output_dir", default=default(output_dir), help="folder for decoded.jsonl and pictures")
    add("--batch_size", type=at_least(1), default=16, help="trials decoded at once")
    # fmt: on
    add_run_flags(parser)


def add_text_flags(parser: argparse.ArgumentParser, readouts) -> None:
    """The language model and how its text is read."""
    # fmt: off
    add = parser.add_argument_group("text").add_argument
    add("--lora_dir", help="adapter folder or OWNER/NAME (default: lora_epochN beside the projection)")
    add("--llm", help="chat model: local folder or hub address (default: the one trained with)")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    add("--readout", choices=list(readouts),
        help="what is drawn: the generated text, or the sentence of the class that another read-out names (default: "
        "keyword; of several runs likelihood)")
    add("--max_new_tokens", type=at_least(1), default=64, help="longest decoded text, in tokens")
    # fmt: on


def add_image_flags(
    parser: argparse.ArgumentParser,
    image_model: str | None,
    photos: str | None,
    schedulers: Sequence[str],
    scheduler: str = "dpm",
    folder: Sequence[str] = ("--stimuli_dir",),
) -> None:
    """The image model, and the photos that stand beside its pictures.

    photos : str, optional. Their usual folder. folder : sequence of str. The flag's names for it; the first one counts.
    schedulers, scheduler : what may be chosen, and the usual one.
    """
    # fmt: off
    add = parser.add_argument_group("images").add_argument
    add("--image_model", default=image_model,
        help="local folder or hub address" + ("" if image_model else " (default: the dataset's)"))
    add("--num_inference_steps", "--image_steps", type=at_least(1),
        help="steps (default: 25 of DPM-Solver++ for Stable Diffusion, 12 for aMUSEd, 4 for SDXL-Turbo)")
    add("--guidance_scale", type=number,
        help="classifier-free guidance (default: 7.5 for Stable Diffusion, 10 for aMUSEd, 0 for SDXL-Turbo)")
    add("--scheduler", choices=list(schedulers), default=scheduler,
        help="sampler: dpm: DPM-Solver++, aMUSEd and SDXL-Turbo their own; pndm: as Stable Diffusion 1.4 was published")
    add("--image_size", type=at_least(8), default=512, help="edge of a picture, pixels")
    add(*folder, default=photos and default(photos),
        help="folder of the photos that were seen, where there are any" + ("" if photos else " (default: its own)"))
    add("--max_held_mib", type=number, default=256, help="GPU memory still held above which no image model is loaded")
    add_memory_flags(add)
    # fmt: on


def add_memory_flags(add: Callable) -> None:
    """What drawing takes at once. `add`: the parser's, or a group's, `add_argument`."""
    # fmt: off
    add("--image_batch_size", "--draw_batch", type=at_least(1),
        help="pictures drawn together; a kill loses so many (default: 1 on the CPU, on a GPU what fits, up to 8)")
    add("--max_memory_gb", type=positive,
        help="GPU memory that drawing may take; where it is little, parts of the image model wait on the CPU (default: "
        "all that is free)")
    # fmt: on


def defaults(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict:
    """What each flag is when nobody gives it."""
    return {name: parser.get_default(name) for name in vars(args)}


# ---------------------------------------------------------------- checks


def check_phases(args: argparse.Namespace) -> None:
    """Raise UserError where the warm-up is longer than the training."""
    if not 0 <= args.warmup_epochs <= args.epochs:
        raise UserError(f"--warmup_epochs {args.warmup_epochs} must lie between 0 and --epochs {args.epochs}")


def check_subjects(
    parser: argparse.ArgumentParser, args: argparse.Namespace, pattern: str, form: str, known: Sequence[str]
) -> None:
    """Bring --subjects to a dataset's names, from numbers as well; end the script where one is no name.

    pattern : str. A name, with its number as a group. form : str. The dataset's name of a number.
    known : sequence of str. The published people, who can be downloaded; own people are taken where they are there.
    Without the flag, None stays where nothing is downloaded, which means all people that are there.
    """
    if args.subjects is None:
        args.subjects = None if args.skip_download else list(known)
        return
    named = {name: re.fullmatch(pattern, name) for name in args.subjects}
    args.subjects = sorted({form.format(int(number[1])) if number else name for name, number in named.items()})
    if wrong := [name for name, number in named.items() if not number]:
        parser.error(f"--subjects: {', '.join(wrong)}; expected numbers, as in 1, or names, as in {known[0]}")
    if not args.skip_download and (own := sorted(set(args.subjects) - set(known))):
        hint = "people of your own are taken with --skip_download"
        parser.error(f"--subjects: {', '.join(own)}; 1 to {len(known)} can be downloaded, {hint}")


def check_window(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the script where the window is empty."""
    if not (math.isfinite(args.tmin) and math.isfinite(args.tmax) and args.tmax > args.tmin):
        parser.error(f"--tmin {args.tmin:g} --tmax {args.tmax:g}: the window must end after it begins")
