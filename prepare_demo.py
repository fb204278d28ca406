"""The embedded default: small raw recordings with a planted effect, and stand-ins for the published weights.

    python prepare_demo.py --data_dir data/demo --pth_dir pth/demo

Writes BCIC-like .mat files (9 people, both sessions), CSBrain.pth (published names and shapes, made by rule), a small
chat model in TinyLlama's folder layout (trained here on text, for a minute) and a small Stable Diffusion in its folder
layout (shipped; train_demo_images.py made it). Nothing here is the published data or weights, and no accuracy on it
says anything about real EEG. What is there already is left alone.
"""

import argparse
import json
import shutil
from pathlib import Path

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.recordings import BCIC_FILES
from datasets.synthetic import DemoSize, write_bcic_like
from models.stand_ins import write_csbrain, write_language_model
from utils.errors import UserError, run_script
from utils.paths import ROOT, default, written_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=default("data/demo"), help="folder for the recordings")
    parser.add_argument("--pth_dir", default=default("pth/demo"), help="folder for the stand-ins")
    parser.add_argument("--runs", type=int, default=6, help="task runs a recording (the real ones have 6)")
    parser.add_argument("--trials_per_run", type=int, default=12, help="trials a run (the real ones have 48)")
    parser.add_argument("--llm_steps", type=int, default=400, help="steps of text training of the chat model")
    parser.add_argument("--seed", type=int, default=0, help="of people, signals and stand-ins")
    args = parser.parse_args()
    raw, pth = Path(args.data_dir) / "BCICIV2a/raw", Path(args.pth_dir)
    same_settings(Path(args.data_dir), {"seed": args.seed, "runs": args.runs, "trials_per_run": args.trials_per_run})
    same_settings(pth, {"seed": args.seed, "llm_steps": args.llm_steps})

    # recordings
    missing = [name for name in BCIC_FILES if not (raw / name).exists()]
    write_bcic_like(raw, DemoSize(runs=args.runs, trials_per_run=args.trials_per_run), args.seed, missing)
    print(f"{raw}: {len(BCIC_FILES)} recordings, {len(missing)} of them written now")

    # stand-ins
    if not (pth / "CSBrain.pth").exists():
        write_csbrain(pth / "CSBrain.pth", args.seed)
    print(f"{pth / 'CSBrain.pth'}: published names and shapes, weights made by rule")

    llm = pth / "TinyLlama-1.1B-Chat-v1.0"
    if not llm.exists():
        conversations = [
            (d.system_prompt, d.user_prompt, d.keywords[label], d.phrasings[label])
            for d in (BCIC,)
            for label in range(len(d.classes))
        ]
        write_language_model(llm, conversations, args.seed, args.llm_steps)
    print(f"{llm}: a small chat model that has read text only")

    diffusion = pth / "stable-diffusion-2-1"
    if not diffusion.exists():
        shipped = ROOT / "assets/stable-diffusion"
        if not (shipped / "model_index.json").exists():
            raise UserError(f"{shipped} is not there; restore it from the repository or run train_demo_images.py")
        with written_whole(diffusion) as unfinished:
            shutil.copytree(shipped, unfinished)
    print(f"{diffusion}: a small Stable Diffusion of drawn pictures")


def same_settings(folder: Path, settings: dict) -> None:
    """Refuse to mix what was made with other settings; note the settings where nothing is yet."""
    note = folder / "demo.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise UserError(f"{folder} was made with {note.read_text().strip()}; delete it or choose another folder")
    with written_whole(note) as unfinished:
        unfinished.write_text(json.dumps(settings) + "\n")


if __name__ == "__main__":
    run_script(main)
