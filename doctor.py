"""What this machine can run: packages, GPU, disk, memory, data and weights, and how to get what is missing.

    python doctor.py                             # everything
    python doctor.py --for vi                    # can the second pipeline run? Exit code 0: yes, 1: no
    python doctor.py --for bcic --step train --llm FOLDER --foundation_dir FILE
    python doctor.py --for bcic --checksums      # reads all recordings and trials, and compares their checksums

Nothing is written and nothing downloaded. Each line is a finding: ok; notice, which hinders nothing; missing; wrong.
"""

import argparse
import functools
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - said before the imports, which an older Python cannot read
    sys.exit(f"wrong    Python {platform.python_version()}; 3.10 or later is needed")

from datasets.description import load_description, with_words
from models import FEATURE_ENCODERS
from stages.machine import (
    FACTS,
    FINE,
    HUB,
    MODELS,
    NOT_LOOKED_AT,
    Facts,
    Need,
    check_4bit,
    check_assets,
    check_csbrain,
    check_device,
    check_disk,
    check_memory,
    check_model,
    check_packages,
    check_raw,
    check_run,
    check_stimuli,
    check_store,
    find_device,
    hub_cache,
    look_at,
    may_be_address,
    store_gb,
)
from stages.machine_images import ASK, IMAGE_FACTS, check_image_store, check_ip_adapter, check_photos, check_recordings
from utils import flags
from utils.paths import ROOT, default
from utils.script import run_script, start_script

STEPS = ("prepare", "train", "generate")
# name → what it is, its commands by step; dataset, what is trained, the run's folder, image model
PIPELINES = {
    "demo": ("simulated EEG, tiny models, on the CPU", ["bash sh/demo.sh"]),
    "demo_images": ("simulated EEG of seen images, tiny models, on the CPU", ["bash sh/demo_images.sh"]),
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
    "things": ("pipeline 4, THINGS-EEG2: EEG → CLIP space → SDXL-Turbo (ATM, NICE, UBP)",
        ["python prepare_data_things.py", "bash sh/things.sh"], "THINGS", "things", "pth_downtasks/things", "stabilityai/sdxl-turbo"),
    "imagenet": ("pipeline 5, EEG-ImageNet: EEG → classes; → text states → Stable Diffusion 1.4",
        ["python prepare_data_imagenet.py", "bash sh/imagenet.sh"], "EEGImageNet", "imagenet", "pth_downtasks/imagenet",
        "CompVis/stable-diffusion-v1-4"),
    "sgdm": ("pipeline 6, THINGS-EEG2: EEG → structure → ControlNet → Stable Diffusion 1.5 (SGDM)",
        ["python prepare_data_things.py --subjects 8", "bash sh/sgdm.sh sub-08"], "THINGS", "sgdm", "pth_downtasks/sgdm",
        "stable-diffusion-v1-5/stable-diffusion-v1-5"),
}  # fmt: skip
VIT_H, VIT_L = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-large-patch14"
OF_IMAGES = {  # pipeline of seen images → its models beside the image model, its IP-Adapter
    "things": ([("clip", VIT_H), ("clip", VIT_L), ("captioner", "microsoft/git-large-coco")],
        "sdxl_models/ip-adapter_sdxl_vit-h.safetensors"),
    "imagenet": ([("captioner", "Salesforce/blip-image-captioning-base")], None),
    "sgdm": ([("clip", VIT_H)], "models/ip-adapter_sd15.safetensors"),
}  # fmt: skip
HALF = ("stabilityai/sdxl-turbo",)  # fetched in half precision: half of 14 GB
TINY = ("demo", "demo_images", "real")  # one command each, with places of their own
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
    add(
        "--encoder",
        choices=list(FEATURE_ENCODERS),
        default="csbrain",
        help="all but csbrain go without --foundation_dir",
    )
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--clip_model", default=VIT_L, help="CLIP: local folder or hub address")
    add("--data_dir", default=default("data/demo"), help="demo: its recordings")
    add("--pth_dir", default=default("pth/demo"), help="demo and real: tiny models")
    for name in PLACES:
        add(f"--{name}", help="as in the scripts of the pipeline that --for names (default: the pipeline's)")
    args = parser.parse_args()
    single = args.pipeline in TINY
    for name in ("step", *PLACES):
        if getattr(args, name) and (not args.pipeline or (single and (args.pipeline, name) != ("real", "raw_dir"))):
            parser.error(
                f"--{name} goes with --for {', '.join(n for n in PIPELINES if n not in TINY)} (demo has --data_dir and --pth_dir)"
            )
    if args.step == "generate" and len(PIPELINES[args.pipeline][1]) == 2:
        parser.error(f"--step generate: {PIPELINES[args.pipeline][1][1]} trains and draws; --step train looks at both")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # what is slow, or may be missing, is imported where it is used

# ---------------------------------------------------------------- what each step needs

# GB of memory, on the GPU where there is one: docs/training.md. demo and real: two processes of 1.3 GB, measured
# things: SDXL-Turbo, or less with offload; sgdm: a ControlNet in full precision, 16 bytes a parameter, and its base (docs/methods.md)
MEMORY = {"text": 8, "mapper": 6, "pictures": 4, "tiny": 2.6, "things": 7, "imagenet": 4, "sgdm": 9.5}
# GB that is written. Training, with --keep all: parameters × 4 bytes × 20 epochs. Pictures: 20, with comparisons.
# demo: docs/results.md. real: recordings, store, checkpoints
# seen images, computed: parameters × 16 bytes (the best, and the last with its optimiser) × runs, and pictures
WRITES = {"text": 0.5, "mapper": 1.0, "pictures": 0.1, "demo": 1.8, "real": 0.8, "demo_images": 4,
          "things": 12, "imagenet": 40, "sgdm": 10}  # fmt: skip
# docs/weights.md: where CSBrain.pth is, its GB
SHARED_DRIVE, CSBRAIN_GB = "the shared drive that its authors' repository links (docs/weights.md)", 0.036


def need(kind: str, check: Callable, *told, **how) -> Need:
    """A need that `check(*told)` looks at; how: `get`, `made`."""
    return Need(kind, check, (str(told[0]), *told[1:]), **how)


def need_model(kind: str, name: str, **how) -> Need:
    """A model in a local folder or the hub's cache, under the address that it has now."""
    address = name if os.path.isdir(name) else HUB.get(name, (name, 0))[0]
    get = MODELS[kind][1] if may_be_address(name) else "name a folder that is there, or a hub address"
    get = get.replace("=True)", "=True, variant='fp16')") if address in HALF else get
    return need(kind, check_model, address, kind, **({"get": get.format(address)} | how))


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
    """The one step of a demo or of real: command, needs. What the command leaves alone may be missing, but not damaged."""
    command, pth, deep = PIPELINES[name][1][0], args.pth_dir, args.checksums
    how = {"get": f"delete it, then {command}", "made": True}
    needs = [
        need("device", check_device, "cpu"), need("4bit", check_4bit, "cpu"),
        need("assets", check_assets, ROOT / "demo/assets", get="git checkout demo/assets"),
        need_model("clip", f"{pth}/clip", **how), need_model("image", f"{pth}/stable-diffusion", **how), need("memory", check_memory, "cpu", name, MEMORY["tiny"]),
        need("disk", check_disk, default("data") if name == "real" else args.data_dir, name, WRITES[name]),
    ]  # fmt: skip
    if name == "demo_images":
        return {"prepare": (command, [*needs, need_model("captioner", f"{pth}/captioner", **how)])}
    needs += [need("csbrain", check_csbrain, f"{pth}/CSBrain.pth", **how), need_model("image", f"{pth}/amused", **how),
              need_model("llm", f"{pth}/TinyLlama-1.1B-Chat-v1.0", **how)]  # fmt: skip
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


def steps_of_images(name: str, args: argparse.Namespace, device: str) -> dict[str, tuple[str, list[Need]]]:
    """The two steps of a pipeline of seen images: command, needs."""
    _, commands, dataset, _, run, picture = PIPELINES[name]
    own = {place: getattr(args, place) for place in PLACES if name == args.pipeline and getattr(args, place)}
    facts, deep = IMAGE_FACTS[dataset], args.checksums
    folder = default(f"data/{facts.folder}")
    raw, store = own.get("raw_dir", f"{folder}/raw"), own.get("datasets_dir", f"{folder}/processed_lmdb")
    people = ("sub-08",) if "--subjects 8" in commands[0] else facts.people  # whom the command reads
    named = {"raw_dir": "--raw_dir", "datasets_dir": "--lmdb_dir", "stimuli_dir": "--images_dir"}
    named = named if dataset == "THINGS" else {name: named[name] for name in named if name != "raw_dir"}
    get = " ".join([commands[0], *(f"{flag} {shlex.quote(own[name])}" for name, flag in named.items() if name in own)])
    recordings = need(
        "raw",
        check_recordings,
        raw,
        dataset,
        deep,
        people,
        get=f"{ASK}, then {get}" if dataset == "EEGImageNet" else get,
    )
    get += " --skip_download" if dataset == "THINGS" and look(recordings)[0] in FINE else ""
    trials = need("store", check_image_store, store, dataset, deep, people, get=get)
    photos = need("stimuli", check_photos, own.get("stimuli_dir", f"{folder}/images"), dataset, store,
                  get=get if dataset == "THINGS" else "your ImageNet, as WNID/WNID_N.JPEG")  # fmt: skip
    others, adapter = OF_IMAGES[name]
    models = [need_model("image", own.get("image_model", picture)), *(need_model(*other) for other in others)]
    if adapter:
        fetch = f"hf download h94/IP-Adapter {adapter}"
        models.append(need("image", check_ip_adapter, "h94/IP-Adapter", adapter, get=fetch))
    stored, fetched = (look(n)[0] in FINE for n in (trials, recordings))
    share = len(people) / len(facts.people)
    new = 0 if stored else (facts.store_gb + (0 if fetched else facts.raw_gb)) * share
    to_fetch = sum(dict(HUB.values()).get(n.told[0], 0) for n in models if look(n)[0] not in FINE)
    return {
        "prepare": (get, [recordings, need("disk", check_disk, Path(store).parent, f"preparing {dataset} ({len(people)} people)", new)]),
        "train": (commands[1], [need("device", check_device, device), trials, photos, *models,
            need("disk", check_disk, hub_cache(), f"fetching the models of {name}", to_fetch),
            need("disk", check_disk, own.get("model_dir", default(run)), f"training and drawing ({name})", WRITES[name]),
            need("memory", check_memory, device, f"training and drawing ({name})", MEMORY[name], False)]),
    }  # fmt: skip


# ---------------------------------------------------------------- what was found

look = functools.cache(look_at)  # once at each thing
SECTIONS = {
    "Device": ("device", "4bit"), "Disk and memory": ("disk", "memory"), "Data": ("raw", "store", "stimuli"),
    "Weights": ("csbrain", "llm", "clip", "image", "captioner", "assets"), "Checkpoints of runs": ("run",),
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
        steps = {}
        for name in [args.pipeline] if args.pipeline else PIPELINES:
            of_images = name not in TINY and PIPELINES[name][2] in IMAGE_FACTS
            steps[name] = (steps_of_tiny(name, args) if name in TINY else
                           steps_of_images(name, args, device) if of_images else steps_of(name, args, device))  # fmt: skip
        data = [] if args.pipeline else [need_data(name, {}, args.checksums) for name in with_words()]
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
