"""The embedded default: small raw recordings with a planted effect, and stand-ins for the published weights.

    python prepare_demo.py --data_dir data/demo --pth_dir pth/demo

Writes BCIC-like .mat files (9 people, both sessions), Visual-Imagery-like BDF and FIF files (22 people) with ten drawn
stimuli, CSBrain.pth (published names and shapes, made by rule), a small chat model in TinyLlama's folder layout (trained
here on text, for a minute), and small Stable Diffusion, aMUSEd and CLIP models in their folder layouts (shipped;
train_demo_images.py made them). Nothing here is the published data or weights, and no accuracy on it says anything about
real EEG. What is there already is left alone.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.recordings import BCIC_FILES
from datasets.synthetic import DemoSize, write_bcic_like
from datasets.synthetic_vi import VIDemoSize, write_vi_like
from datasets.visual_imagery_llm_dataset import DESCRIPTION as VI
from models.stand_ins import complete_image_model, write_csbrain, write_language_model
from utils.drawing import drawing
from utils.errors import UserError, run_script
from utils.flags import check_at_least
from utils.paths import ROOT, default, written_whole

DATASETS = ("BCICIV2a", "VI")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=default("data/demo"), help="folder for the recordings")
    parser.add_argument("--pth_dir", default=default("pth/demo"), help="folder for the stand-ins")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS, help="whose recordings to write")
    parser.add_argument("--runs", type=int, default=6, help="BCIC-like: task runs a recording (the real ones have 6)")
    parser.add_argument(
        "--trials_per_run", type=int, default=12, help="BCIC-like: trials a run (the real ones have 48)"
    )
    parser.add_argument("--trials_per_class", type=int, default=3,
                        help="VI-like: trials a class and session (the real ones have 40)")  # fmt: skip
    parser.add_argument("--llm_steps", type=int, default=600, help="steps of text training of the chat model")
    parser.add_argument("--seed", type=int, default=0, help="of people, signals and stand-ins")
    args = parser.parse_args()
    check_at_least(parser, args, runs=1, trials_per_run=1, trials_per_class=1, llm_steps=1)
    data, pth = Path(args.data_dir), Path(args.pth_dir)
    sizes = {"runs": args.runs, "trials_per_run": args.trials_per_run, "trials_per_class": args.trials_per_class}
    same_settings(data, {"seed": args.seed} | sizes)
    same_settings(pth, {"seed": args.seed, "llm_steps": args.llm_steps})

    # recordings
    if "BCICIV2a" in args.datasets:
        raw = data / "BCICIV2a/raw"
        missing = [name for name in BCIC_FILES if not (raw / name).exists()]
        write_bcic_like(raw, DemoSize(runs=args.runs, trials_per_run=args.trials_per_run), args.seed, missing)
        print(f"{raw}: {len(BCIC_FILES)} recordings, {len(missing)} of them written now")
    if "VI" in args.datasets:
        raw, stimuli = data / "VisualImagery/raw", data / "VisualImagery/stimuli"
        n_all, n_new = write_vi_like(raw, VIDemoSize(trials_per_class=args.trials_per_class), args.seed)
        print(f"{raw}: {n_all} recordings, {n_new} of them written now")
        for label, name in VI.stimuli.items():
            if not (stimuli / name).exists():
                picture = drawing(VI.classes[label], np.random.default_rng((args.seed, label)), 256)
                with written_whole(stimuli / name) as unfinished:
                    picture.save(unfinished, format="JPEG", quality=92)
        print(f"{stimuli}: {len(VI.stimuli)} drawn stimuli")

    # stand-ins
    if not (pth / "CSBrain.pth").exists():
        write_csbrain(pth / "CSBrain.pth", args.seed)
    print(f"{pth / 'CSBrain.pth'}: published names and shapes, weights made by rule")

    llm = pth / "TinyLlama-1.1B-Chat-v1.0"
    if not llm.exists():
        conversations = [
            (d.system_prompt, d.user_prompt, d.keywords[label], d.phrasings[label])
            for d in (BCIC, VI)
            for label in range(len(d.classes))
        ]
        write_language_model(llm, conversations, args.seed, args.llm_steps)
    print(f"{llm}: a small chat model that has read text only")

    for name in ("stable-diffusion", "amused", "clip"):
        shipped, folder = ROOT / "assets" / name, pth / name
        if not folder.exists():
            if not (shipped / "config.json").exists() and not (shipped / "model_index.json").exists():
                raise UserError(f"{shipped} is not there; restore it from the repository or run train_demo_images.py")
            if name == "clip":
                with written_whole(folder) as unfinished:
                    shutil.copytree(shipped, unfinished)
            else:
                complete_image_model(shipped, folder)
        print(f"{folder}: small, from drawn pictures")


def same_settings(folder: Path, settings: dict) -> None:
    """Refuse to mix what was made with other settings; note the settings where nothing is yet."""
    note = folder / "demo.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise UserError(f"{folder} was made with {note.read_text().strip()}; delete it or choose another folder")
    with written_whole(note) as unfinished:
        unfinished.write_text(json.dumps(settings) + "\n")


if __name__ == "__main__":
    run_script(main)
