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
import sys
import warnings
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - said before the imports, which an older Python cannot read
    sys.exit(f"wrong    Python {platform.python_version()}; 3.10 or later is needed")

from datasets.description import load_description, with_words
from models import FEATURE_ENCODERS
from stages import inputs
from stages.inputs import FINE, NOT_CHECKED, Finding, Need, amount, facts_of, finding_of, known_models, need_model
from utils import flags
from utils.errors import UserError, reason
from utils.paths import ROOT, default
from utils.script import run_script, start_script

# memory: GB, on the GPU where there is one (docs/training.md, docs/methods.md); demos: two processes, measured
# writes: GB with --keep all, parameters × 4 bytes × 20 epochs; of seen images × 16 bytes × runs, and pictures (20: 0.1)
Pipeline = namedtuple("Pipeline", "about commands memory writes models dataset trains run image", defaults=[""] * 4)
OF_WORDS = [("clip", "clip"), ("image", "stable-diffusion"), ("image", "amused"), ("llm", "TinyLlama-1.1B-Chat-v1.0")]
VIT_H, VIT_L = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-large-patch14"
# fmt: off
PIPELINES = {
    "demo": Pipeline("simulated EEG, tiny models, on the CPU", ["bash sh/demo.sh"], 2.6, 1.8, OF_WORDS),
    "demo_images": Pipeline("simulated EEG of seen images, tiny models, on the CPU", ["bash sh/demo_images.sh"], 2.6, 4,
        [("clip", "clip"), ("image", "stable-diffusion"), ("captioner", "captioner")]),
    "real": Pipeline("real EEG, BCIC-IV-2b, tiny models, on the CPU", ["bash sh/real.sh"], 2.6, 0.8, OF_WORDS),
    "bcic": Pipeline("pipeline 1, BCIC-IV-2a: EEG → text → Stable Diffusion 2.1",
        ["python prepare_data.py", "bash sh/finetune_eeg_llm_bcic.sh", "bash sh/generate_images.sh bcic"],
        8, 0.5, [], "BCICIV2a", "text", "pth_downtasks/eeg_llm_bcic_new", "stabilityai/stable-diffusion-2-1"),
    "vi": Pipeline("pipeline 2, Visual Imagery: EEG → text → class → aMUSEd",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_llm_vi.sh", "bash sh/generate_images.sh vi"],
        8, 0.5, [], "VI", "text", "pth_downtasks/eeg_llm_vi", "amused/amused-512"),
    "vi_direct": Pipeline("pipeline 3, Visual Imagery: EEG → CLIP space → Stable Diffusion 1.5",
        ["python prepare_data_vi.py", "bash sh/finetune_eeg_to_image.sh", "bash sh/generate_images.sh vi_direct"],
        6, 1, [], "VI", "mapper", "pth_downtasks/eeg_direct", "runwayml/stable-diffusion-v1-5"),
    "things": Pipeline("pipeline 4, THINGS-EEG2, ten people: EEG → CLIP space → SDXL-Turbo (ATM, NICE, UBP)",
        ["python prepare_data_things.py", "bash sh/things.sh"],
        7, 12, [("clip", VIT_H), ("clip", VIT_L), ("captioner", "microsoft/git-large-coco"),
                ("adapter", "sdxl_models/ip-adapter_sdxl_vit-h.safetensors")],
        "THINGS", "images", "pth_downtasks/things", "stabilityai/sdxl-turbo"),
    "imagenet": Pipeline("pipeline 5, EEG-ImageNet: EEG → classes; → text states → Stable Diffusion 1.4",
        ["python prepare_data_imagenet.py", "bash sh/imagenet.sh"],
        4, 40, [("captioner", "Salesforce/blip-image-captioning-base")],
        "EEGImageNet", "images", "pth_downtasks/imagenet", "CompVis/stable-diffusion-v1-4"),
    "sgdm": Pipeline("pipeline 6, THINGS-EEG2: EEG → structure → ControlNet → Stable Diffusion 1.5 (SGDM)",
        ["python prepare_data_things.py --subjects 8", "bash sh/sgdm.sh sub-08"],
        16, 10, [("clip", VIT_H), ("adapter", "models/ip-adapter_sd15.safetensors")],
        "THINGS", "images", "pth_downtasks/sgdm", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
}
SECTIONS = {  # of what is printed → kinds of needs
    "Device": ("device", "4bit"), "Disk and memory": ("disk", "memory"), "Data": ("raw", "store", "stimuli"),
    "Weights": ("csbrain", "llm", "clip", "image", "captioner", "assets"), "Checkpoints of runs": ("run",),
}
# fmt: on
RESULTS = {"prepare": "store", "train": "run"}  # step → the kind of need that it makes
TINY = ("demo", "demo_images", "real")  # one command each, with places of their own
PLACES = ("raw_dir", "datasets_dir", "stimuli_dir", "model_dir", "output_dir", "image_model")  # each pipeline's own


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--for", dest="pipeline", choices=list(PIPELINES), metavar="PIPELINE", help="look at what one pipeline needs: "
        + "; ".join(f"{name} ({pipeline.about})" for name, pipeline in PIPELINES.items()))
    add("--step", choices=("prepare", "train", "generate"),
        help="of --for, this step alone (default: all whose results are not there)")
    add("--checksums", action="store_true", help="read recordings and stores whole, and compare their checksums")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    add("--encoder", **flags.named_in(FEATURE_ENCODERS), default="csbrain", help="only csbrain needs --foundation_dir")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint, or OWNER/NAME")
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--clip_model", default=VIT_L, help="CLIP: local folder or hub address")
    add("--data_dir", default=default("data/demo"), help="demo: its recordings")
    add("--pth_dir", default=default("pth/demo"), help="demo and real: tiny models")
    for name in PLACES:
        add(f"--{name}", help="as in the scripts of the pipeline that --for names (default: the pipeline's)")
    # fmt: on
    args = parser.parse_args()
    args.own = {name: getattr(args, name) for name in PLACES if getattr(args, name)}
    for name in [*(["step"] if args.step else []), *args.own]:
        if args.pipeline in (None, *TINY) and (args.pipeline, name) != ("real", "raw_dir"):
            others = ", ".join(n for n in PIPELINES if n not in TINY)
            parser.error(f"--{name} goes with --for {others} (demo has --data_dir and --pth_dir)")
    if args.step == "generate" and len(PIPELINES[args.pipeline].commands) == 2:
        both = PIPELINES[args.pipeline].commands[1]
        parser.error(f"--step generate: {both} trains and draws; --step train looks at both")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # what is slow, or may be missing, is imported where it is used

# ---------------------------------------------------------------- the machine


def check_packages(path: Path = ROOT / "requirements.txt") -> list[Finding]:
    """Each package against its pin."""
    try:
        from packaging.requirements import Requirement

        pins = [Requirement(line) for line in path.read_text().splitlines() if line.split("#")[0].strip()]
        pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    except Exception as error:
        return [("missing", f"the packages cannot be compared with {path} ({reason(error)}); pip install -r {path}")]
    found = []
    for pin in pins:
        install = f"pip install '{pin.name}{pin.specifier}'"
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            mark = "notice" if pin.name in ("pytest", "ruff") else "missing"  # these two are for sh/test.sh alone
            found.append((mark, f"{pin.name} is not installed; {install}"))
        else:
            same = pin.specifier.contains(str(version), prereleases=True)
            other = "" if same else f", another version than {pin.specifier} in {path.name}; {install}"
            found.append(("ok" if same else "notice", f"{pin.name} {version}{other}"))
    return found


def check_device(device: str) -> Finding:
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


def check_4bit(device: str) -> Finding:
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
    low, high = 0.05, 0.12  # Gaussian weights: 0.086 to 0.093 measured; below, nothing was quantised
    text = f"4-bit product on {device}: relative error {error:.3f}, expected {low} to {high}"
    return ("ok", text) if low < error < high else ("wrong", f"{text}; --no_quantize goes without")


def check_memory(device: str, work: str, gb: float, sure: bool = True) -> Finding:
    """Total and free memory against what some work needs; without `sure`, too little is a notice."""
    if device == "cpu":
        import psutil

        total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    else:
        import torch

        free, total = torch.cuda.mem_get_info(device)
    mark = "ok" if free >= gb * 1e9 else "wrong" if sure and total < gb * 1e9 else "notice"
    return mark, f"memory, {device}: {amount(free / 1e9)} of {amount(total / 1e9)} free; {work} needs {amount(gb)}"


def check_disk(place: str, work: str, gb: float) -> Finding:
    """Free space at a place, which need not be there yet, against what some work writes."""
    path = Path(place).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.isdir(folder))
    free = shutil.disk_usage(there).free / 1e9
    text = f"disk, {place}: {amount(free)} free; {work} {f'needs {amount(gb)}' if gb else 'needs no more'}"
    if gb and not os.access(there, os.W_OK):
        return "wrong", f"{text}, but nothing can be written there"
    return "ok" if free >= gb else "wrong", text


# ---------------------------------------------------------------- what each step needs

Steps = dict[str, tuple[str, list[Need]]]  # step → its command, its needs
finding = functools.cache(finding_of)  # once at each thing


def need_data(dataset: str, args: argparse.Namespace, command: str, people: Sequence[str] = ()) -> list[Need]:
    """Recordings, store and photos, where the flags say, or else under data/; `people`: of seen images, whose."""
    facts, own, seen = facts_of(dataset), args.own, "images" if people else "stimuli"
    folder, by_hand = default(f"data/{facts.folder}"), not facts.get.startswith("python ")
    raw, store = own.get("raw_dir", f"{folder}/raw"), own.get("datasets_dir", f"{folder}/processed_lmdb")
    named = {} if by_hand else {"raw_dir": "--raw_dir"}
    named |= {"datasets_dir": "--lmdb_dir", "stimuli_dir": f"--{seen}_dir"}
    get = " ".join([command, *(f"{flag} {shlex.quote(own[name])}" for name, flag in named.items() if name in own)])
    ask = f"{facts.get} (docs/datasets.md), then " if by_hand else ""
    recordings = Need("raw", inputs.check_raw, (raw, dataset, store, args.checksums, people), ask + get)
    photos = (own.get("stimuli_dir", f"{folder}/{seen}"), dataset, store)
    photos = Need("stimuli", inputs.check_photos, photos, "your ImageNet, as WNID/WNID_N.JPEG" if by_hand else get)
    get += " --skip_download" if finding(recordings)[0] in FINE and not by_hand else ""
    return [recordings, Need("store", inputs.check_store, (store, dataset, args.checksums, people), get), photos]


def steps_of_tiny(name: str, args: argparse.Namespace) -> Steps:
    """The one step of a demo or of real. What its command leaves alone may be missing, but not damaged."""
    pipe, command, deep = PIPELINES[name], PIPELINES[name].commands[0], args.checksums
    made = {"get": f"delete it, then {command}", "made": True}
    place = default("data") if name == "real" else args.data_dir
    needs = [Need("device", check_device, ("cpu",)), Need("4bit", check_4bit, ("cpu",))]
    needs.append(Need("assets", inputs.check_assets, (str(ROOT / "demo/assets"),), "git checkout demo/assets"))
    needs.append(Need("memory", check_memory, ("cpu", name, pipe.memory)))
    needs.append(Need("disk", check_disk, (place, name, pipe.writes)))
    needs += [need_model(kind, f"{args.pth_dir}/{model}", **made) for kind, model in pipe.models]
    if name != "demo_images":
        needs.append(Need("csbrain", inputs.check_csbrain, (f"{args.pth_dir}/CSBrain.pth",), **made))
    for dataset in ("BCICIV2a", "VI") if name == "demo" else ():
        of = f"{place}/{facts_of(dataset).folder}"
        needs.append(Need("raw", inputs.check_raw, (f"{of}/raw", dataset, f"{of}/processed_lmdb", deep, ()), **made))
    if name == "real":
        of, given = f"{place}/BCICIV2b", args.own.get("raw_dir") or os.environ.get("EEG2IMAGE_2B_RAW")
        command = f"EEG2IMAGE_2B_RAW={shlex.quote(given)} {command}" if given else command
        told = (given or f"{of}/raw", "BCICIV2b", f"{of}/processed_lmdb", deep, (), *([True] if given else []))
        needs.append(Need("raw", inputs.check_raw, told, command if given else f"{command} downloads them (250 MB)"))
    return {"prepare": (command, needs)}


def steps_of(name: str, args: argparse.Namespace, device: str) -> Steps:
    """The steps of any other pipeline."""
    _, commands, memory, writes, models, dataset, trains, run, image = PIPELINES[name]
    facts, everyone = facts_of(dataset), load_description(dataset).everyone  # of seen images
    people = ("sub-08",) if "--subjects 8" in commands[0] else everyone  # whom the command reads
    recordings, trials, photos = need_data(dataset, args, commands[0], people)
    image, run_dir = need_model("image", args.own.get("image_model", image)), args.own.get("model_dir", default(run))
    drive, csbrain_gb = known_models()["CSBrain"]
    drive = f"put it there, from {drive} (docs/weights.md); --encoder eegnet goes without"
    csbrain = Need("csbrain", inputs.check_csbrain, (args.foundation_dir,), drive)

    decoder = [Need("device", check_device, (device,)), trials]
    decoder += [csbrain] if args.encoder == "csbrain" and not people else []
    decoder += [need_model("llm", args.llm)] if trains == "text" else []
    decoder += [Need("4bit", check_4bit, (device,))] if trains == "text" and not args.no_quantize else []
    seen = [photos] if inputs.photos_of(dataset) or people else []
    train = {
        "text": [*decoder],
        "mapper": [*decoder, need_model("clip", args.clip_model), image, *seen],
        "images": [*decoder, *seen, image, *(need_model(*model) for model in models)],
    }[trains]

    gb = 0 if finding(trials)[0] in FINE else facts.store_gb + (0 if finding(recordings)[0] in FINE else facts.raw_gb)
    gb *= len(people) / len(everyone) if people else 1
    to_fetch = [need for need in dict.fromkeys((*train, image)) if finding(need)[0] not in FINE]
    fetched_gb = sum(inputs.size_of_model(need.given) for need in to_fetch)
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
    preparing = f"preparing {dataset}" + (f" ({len(people)} people)" if people else "")
    training = f"training and drawing ({name})" if people else f"training ({trains})"
    sure = device != "cpu" and not people  # the figures are a GPU's; of seen images computed
    prepare = [recordings, Need("disk", check_disk, (str(Path(trials.given[0]).parent), preparing, gb))]
    if not people:
        of_csbrain = "CSBrain.pth", csbrain_gb if csbrain in to_fetch else 0
        train.append(Need("disk", check_disk, (str(Path(args.foundation_dir).parent), *of_csbrain)))
    train.append(Need("disk", check_disk, (cache, f"fetching the models of {name}", fetched_gb)))
    train.append(Need("disk", check_disk, (run_dir, training, writes)))
    train.append(Need("memory", check_memory, (device, training, memory, sure)))
    if people:
        return {"prepare": (trials.get, prepare), "train": (commands[1], train)}
    prepare.append(Need("memory", check_memory, ("cpu", f"{preparing} (--workers 2)", 2 * facts.worker_gb)))
    generate = [*decoder, image, *seen, Need("run", inputs.check_run, (run_dir, trains, dataset), commands[1])]
    generate.append(Need("disk", check_disk, (args.own.get("output_dir", default("outputs")), "drawing", 0.1)))
    generate.append(Need("memory", check_memory, (device, "drawing", 4, sure)))
    return {"prepare": (trials.get, prepare), "train": (commands[1], train), "generate": (commands[2], generate)}


# ---------------------------------------------------------------- what was found


def show(mark: str, text: str) -> None:
    """One finding, at once: the next one may take a while."""
    print(f"{mark:8} {text}", flush=True)


def verdict(name: str, steps: Steps, packages: list[str], given: bool) -> bool:
    """Print whether these steps can run, in the places `given`, or what they lack; `packages`: those missing."""
    about = f"{name} can{{}} run ({PIPELINES[name].about})"
    made = {RESULTS.get(step) for step in steps}  # kinds of needs
    lacking = [n for n in dict.fromkeys(n for _, needs in steps.values() for n in needs) if finding(n)[0] not in FINE]
    lacking = [n for n in lacking if not (n.made or n.kind in made) or (finding(n)[0] != "missing" and n.kind != "run")]
    if not lacking and not packages:
        note = ", with the places given here" if given else ""
        show("ok", f"{about.format('')}: {', then '.join(command for command, _ in steps.values())}{note}")
        return True
    mark = "wrong" if any(finding(n)[0] == "wrong" for n in lacking) else "missing"
    show(mark, f"{about.format('not')}; what it needs, and where from:")
    for n in lacking:
        mark, text = finding(n)
        overwrite = " --overwrite" if n.kind == "store" and mark == "wrong" else ""
        print(f"{'':9}- {text}" + (f" -> {n.get}{overwrite}" if n.get and NOT_CHECKED not in text else ""))
    print(*(f"{'':9}- {text}\n" for text in packages), sep="", end="")
    return False


def main(args: argparse.Namespace) -> None:
    """Look, print, and end with the exit code."""
    warnings.simplefilter("ignore")
    print("Python and packages")
    packages = [("ok", f"Python {platform.python_version()}, {platform.platform()}"), *check_packages()]
    for package in packages:
        show(*package)
    device = "cpu"
    with contextlib.suppress(Exception):  # the checks say what is the matter with torch
        import torch

        device = f"cuda:{args.cuda}" if args.cuda >= 0 and torch.cuda.is_available() else "cpu"
    try:
        names = [args.pipeline] if args.pipeline else PIPELINES
        steps = {n: steps_of_tiny(n, args) if n in TINY else steps_of(n, args, device) for n in names}
        data = [] if args.pipeline else [need_data(name, args, facts_of(name).get)[:2] for name in with_words()]
    except ImportError as error:  # without NumPy and LMDB not even the descriptions of the datasets can be read
        show("missing", f"nothing else was looked at ({error}): pip install -r requirements.txt")
        sys.exit(1 if args.pipeline else 0)

    needs = [n for of in steps.values() for step in of if args.step in (None, step) for n in of[step][1]]
    needs += [n for of in data for n in of if n.kind == "store" or load_description(n.given[1]).files]
    for title, kinds in SECTIONS.items():
        section = {n[:3]: n for kind in kinds for n in needs if n.kind == kind}
        print(f"\n{title}\n" if section else "", end="")
        for n in section.values():
            show(*finding(n))
    print("\nWhat can run")
    absent, can = [text for mark, text in packages if mark == "missing"], []
    for name, of in steps.items():
        there = {n.kind for _, needs in of.values() for n in needs if finding(n)[0] in FINE}
        left = [args.step] if args.step else [step for step in of if RESULTS.get(step) not in there]
        can.append(verdict(name, {step: of[step] for step in left}, absent, bool(args.own)))
    sys.exit(0 if all(can) or not args.pipeline else 1)


if __name__ == "__main__":
    run_script(lambda: main(args))
