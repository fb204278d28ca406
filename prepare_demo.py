"""The embedded default: simulated raw recordings, and tiny models in place of the published weights.

    python prepare_demo.py --data_dir data/demo --pth_dir pth/demo

Writes BCIC-like .mat files (9 people, both sessions), Visual-Imagery-like BDF and FIF files (22 people) with ten drawn
stimuli, on demand THINGS- and EEG-ImageNet-like recordings with their images (2 and 4 people), CSBrain.pth (published
names and shapes, made by rule), a small chat model in TinyLlama's folder layout (trained here on text, for a minute),
and small Stable Diffusion, aMUSEd and CLIP models in their folder layouts (shipped; train_demo_images.py made them).
Nothing here is the published data or weights, and no accuracy on it says anything about real EEG. What is there already
is left alone.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from utils import flags
from utils.errors import UserError
from utils.files import read_json
from utils.paths import ROOT, default, written_whole
from utils.script import run_script, start_script

LLM = "TinyLlama-1.1B-Chat-v1.0"
# what each folder of a model has at least
MODELS = {
    LLM: "model.safetensors",
    "stable-diffusion": "model_index.json",
    "amused": "model_index.json",
    "clip": "model.safetensors",
    "stable-diffusion-shapes": "model_index.json",
    "ip-adapter": "models/ip-adapter_sd15.safetensors",
    "controlnet": "config.json",
    "captioner": "model.safetensors",
    "classifier": "model.safetensors",
    "clip-classes": "model.safetensors",
}
OF_SHAPES = list(MODELS)[4:]  # for pictures of seen images; the other pipelines need none of them
NAMES = ("BCICIV2a", "BCICIV2b", "VI", "THINGS", "EEGImageNet")


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--data_dir", default=default("data/demo"), help="folder for the recordings")
    add("--pth_dir", default=default("pth/demo"), help="folder for the tiny models")
    add("--datasets", nargs="*", choices=NAMES, default=["BCICIV2a", "VI"], help="whose recordings to write")
    add(
        "--models",
        nargs="*",
        choices=("CSBrain.pth", *MODELS),
        default=["CSBrain.pth", *(name for name in MODELS if name not in OF_SHAPES)],
        help="which tiny models to put into --pth_dir (default: those that drawing seen images does not need alone)",
    )
    add("--runs", type=flags.at_least(1), default=6, help="BCIC-like: task runs a recording (the real ones have 6)")
    add("--trials_per_run", type=flags.at_least(1), default=12, help="BCIC-like: trials a run (the real ones have 48)")
    add("--trials_per_class", type=flags.at_least(1), default=3,
        help="VI-like: trials a class and session (the real ones have 40)")
    add("--effect", type=float, help="share of the strongest simulated effect; 1: decoders reach the ceiling "
        "(default: a dataset's own, which leaves them room: 0.7 for motor imagery, 0.45 for visual imagery; not of "
        "seen images)")
    add("--spread", type=float, default=0.3, help="how much people differ in it: 0.5 from half to one and a half of it")
    add("--mixing", type=flags.number, default=0.0, help="motor imagery: how much sessions differ in how their "
        "electrodes mix; from 0, nothing to align, to 2")
    add("--llm_steps", type=flags.at_least(1), default=600, help="steps of text training of the chat model")
    add("--seed", type=int, default=0, help="of people, signals and models")
    # fmt: on
    args = parser.parse_args()
    if not 0 <= (args.effect or 0) <= 2 or not 0 <= args.spread <= 1 or not 0 <= args.mixing <= 2:
        parser.error("--effect goes from 0 to 2, --spread from 0 to 1, --mixing from 0 to 2")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import numpy as np

from datasets.description import DatasetDescription, load_description
from datasets.prepare import SIMULATED
from demo import imagenet_like, things_like
from demo.bcic_like import DemoSize, write_bcic2b_like, write_bcic_like
from demo.drawings import drawing
from demo.tiny_models import complete_image_model, complete_ip_adapter, write_csbrain
from demo.vi_like import VIDemoSize, write_vi_like
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.loading import quiet
from models.tiny_llm import write_language_model
from stages.inputs import check_csbrain

BCIC, VI = load_description("BCICIV2a"), load_description("VI")


def main(args: argparse.Namespace) -> None:
    data, pth = Path(args.data_dir), Path(args.pth_dir)
    if data.resolve() == pth.resolve():
        raise UserError(f"--data_dir and --pth_dir are both {data}; recordings and models need a folder each")
    sizes = {"runs": args.runs, "trials_per_run": args.trials_per_run, "trials_per_class": args.trials_per_class}
    motor = {"mixing": args.mixing}
    plain = {"spread": args.spread} | ({} if args.effect is None else {"effect": args.effect})
    same_settings(data, {"seed": args.seed} | sizes | {"effect": args.effect, "spread": args.spread} | motor)
    same_settings(pth, {"seed": args.seed, "llm_steps": args.llm_steps})

    quiet()

    # recordings
    for name in args.datasets:
        raw = data / {"VI": "VisualImagery"}.get(name, name) / "raw"
        with written_whole(raw / SIMULATED) as unfinished:
            unfinished.write_text(
                "The recordings in this folder are simulated: prepare_demo.py made them. No person was recorded.\n"
            )
    size = DemoSize(args.runs, args.trials_per_run, **plain, **motor)
    if "BCICIV2a" in args.datasets:
        write_missing(data / "BCICIV2a/raw", BCIC, write_bcic_like, size, args.seed)
    if "BCICIV2b" in args.datasets:
        write_missing(data / "BCICIV2b/raw", load_description("BCICIV2b"), write_bcic2b_like, size, args.seed)
    if "VI" in args.datasets:
        raw, stimuli = data / "VisualImagery/raw", data / "VisualImagery/stimuli"
        n_all, n_new = write_vi_like(raw, VIDemoSize(trials_per_class=args.trials_per_class, **plain), args.seed)
        print(f"{raw}: {n_all} recordings, {n_new} of them written now")
        for label, name in VI.stimuli.items():
            if not (stimuli / name).exists():
                picture = drawing(VI.classes[label], np.random.default_rng((args.seed, label)), 256)
                with written_whole(stimuli / name) as unfinished:
                    picture.save(unfinished, format="JPEG", quality=92)
        print(f"{stimuli}: {len(VI.stimuli)} drawn stimuli")

    if "THINGS" in args.datasets:
        write_things(data / "THINGS", args.seed)
    if "EEGImageNet" in args.datasets:
        folder, size = data / "EEGImageNet", imagenet_like.ImageNetDemoSize()
        imagenet_like.draw_images(folder / "images", size, args.seed)
        new = imagenet_like.write_imagenet_like(folder / "raw/EEG-ImageNet_demo.pth", size, args.seed)
        new += imagenet_like.write_imagenet_like(folder / "raw/drift_only.pth", replace(size, effect=0.0), args.seed)
        new += imagenet_like.write_imagenet_like(folder / "raw/EEG-ImageNet_day2.pth", size, args.seed, day=2)
        print(
            f"{folder}: 3 files of {size.people} people, {new} of them written now; in drift_only.pth no class has an "
            "effect"
        )

    # tiny models
    for folder, file in MODELS.items():  # what is there is used as it is
        if (pth / folder).exists() and not (pth / folder / file).is_file():
            raise UserError(
                f"{pth / folder} is there, and is no model (it has no {file}); delete it or choose another folder"
            )
    if "CSBrain.pth" in args.models:
        if not (pth / "CSBrain.pth").exists():
            write_csbrain(pth / "CSBrain.pth", args.seed)
        check_csbrain(str(pth / "CSBrain.pth"))
        print(f"{pth / 'CSBrain.pth'}: published names and shapes, weights made by rule")

    llm = pth / LLM
    if LLM in args.models and not llm.exists():
        conversations = [*BCIC.conversations, *VI.conversations]  # 2b's are among 2a's
        write_language_model(llm, conversations, args.seed, args.llm_steps)
    if LLM in args.models:
        print(f"{llm}: a small chat model that has read text only")

    for name in [name for name in MODELS if name in args.models and name != LLM]:
        shipped, folder = ROOT / "demo/assets" / name, pth / name
        if not folder.exists():
            if not any(
                (shipped / file).exists() for file in ("config.json", "model_index.json", "factors.safetensors")
            ):
                raise UserError(f"{shipped} is not there; restore it from the repository or run train_demo_images.py")
            if name == "ip-adapter":
                complete_ip_adapter(shipped, folder)
            elif (shipped / "config.json").exists():
                with written_whole(folder) as unfinished:
                    shutil.copytree(shipped, unfinished)
            else:
                complete_image_model(shipped, folder)
        print(f"{folder}: small, from drawn pictures")


def write_things(folder: Path, seed: int) -> None:
    """Drawn images, and recordings made from their layouts and from what the shipped CLIP makes of them."""
    size = things_like.ThingsDemoSize()
    paths = things_like.draw_images(folder / "images", size, seed)
    embed = CLIPImageTargetBuilder(str(ROOT / "demo/assets/clip"), folder).load()
    vectors = {
        part: np.concatenate([embed(things_like.read_pictures(of[k : k + 64])).numpy() for k in range(0, len(of), 64)])
        for part, of in paths.items()
    }
    components = things_like.principal_components(vectors, size.components)
    layouts = things_like.layouts(paths)
    n_all, n_new = things_like.write_things_like(folder / "raw", components, layouts, size, seed)
    print(
        f"{folder}: {n_all} recordings of {size.people} people, {n_new} of them written now; "
        f"{sum(map(len, paths.values()))} drawn images"
    )


def write_missing(raw: Path, description: DatasetDescription, write: Callable, size: DemoSize, seed: int) -> None:
    """Write the raw files of a BNCI-like dataset that are not there yet."""
    missing = tuple(name for name in description.all_files if not (raw / name).exists())
    write(raw, size, seed, missing)
    print(f"{raw}: {len(description.all_files)} recordings, {len(missing)} of them written now")


def same_settings(folder: Path, settings: dict) -> None:
    """Refuse to mix what was made with other settings; note the settings where nothing is yet."""
    note = folder / "demo.json"
    before_these = {"effect": 1.0, "spread": 0.0, "mixing": 0.0}  # what a folder was made with that does not say
    if note.exists() and before_these | (made := read_json(note)) != before_these | settings:
        raise UserError(f"{folder} was made with {json.dumps(made)[:200]}; delete it or choose another folder")
    with written_whole(note) as unfinished:
        unfinished.write_text(json.dumps(settings) + "\n")


if __name__ == "__main__":
    locks = [Path(args.data_dir) / ".lock", Path(args.pth_dir) / ".lock"]
    run_script(lambda: main(args), locks, "what is written is kept; the same command writes the rest")
