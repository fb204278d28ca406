"""What a text run's answer comes from: integrated gradients over electrodes, time and bands, by class and person.

    python attribute.py pth_downtasks/real/eegnet --datasets_dir data/BCICIV2b/processed_lmdb \
        --output_dir outputs/attribution

Reads trials as the run was trained on them. What is attributed is the probability of the class that a read-out names,
whether that is right or wrong; no true label comes near it. Leaves in --output_dir: attribution.csv (a line a person,
class, electrode and band: the mean share of the probability that it adds), topography.png and time_course.png.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from stages.rows import TEXT_READOUTS
from utils import flags
from utils.script import check_one_process, run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("run", help="folder of finetune_eeg_llm.py, projection_epochN.pth in it, or OWNER/NAME on the hub")
    add("--datasets_dir", required=True, help="trial store")
    add("--output_dir", required=True, help="folder for the table and the figures")
    add("--readout", choices=[name for name in TEXT_READOUTS if name != "keyword"], default="head",
        help="whose probability is attributed")
    add("--split", choices=("train", "val", "test"), default="test", help="whose trials")
    add("--num_samples", type=flags.at_least(1), default=200, help="trials, spread evenly over the split")
    add("--steps", type=flags.at_least(2), default=32, help="points between silence and a trial")
    add("--batch_size", type=flags.at_least(1), default=32, help="trials at once")
    add("--lora_dir", help="adapter folder or OWNER/NAME (default: lora_epochN beside the projection)")
    add("--llm", help="chat model: local folder or hub address (default: the one trained with)")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    flags.add_trained_encoder_flags(parser)
    flags.add_run_flags(parser)
    # fmt: on
    return parser.parse_args()


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from datasets.store import description_of_store
from datasets.trials import TrialDataset, part_as_trained
from evaluation.figures import time_course_figure, topography_figure
from evaluation.tables import as_csv, markdown
from models.attribution import by_band, mean_gradient
from stages import checkpoints
from utils.device import pick_device
from utils.errors import UserError
from utils.paths import written_whole
from utils.progress import progress

MOST = 10  # electrodes and bands that are printed


def main(args: argparse.Namespace) -> None:
    check_one_process()
    device, folder = pick_device(args.cuda), Path(args.output_dir)

    # ------------------------------------------------------------ run and trials, as in decoding
    path, lora_dir = checkpoints.find_text_checkpoint(args.run, args.lora_dir)
    path, checkpoint = checkpoints.read_run_checkpoint(path, "text")
    description = description_of_store(args.datasets_dir, checkpoint["dataset"])
    description = checkpoints.as_trained(description, path, checkpoint)
    dataset = TrialDataset(args.datasets_dir, args.split, checkpoint["protocol"], description)
    chosen = dataset.spread(args.num_samples)
    dataset = part_as_trained(dataset, checkpoint, path)
    foundation = args.foundation_dir if args.use_pretrained_weights else None
    how = foundation, args.allow_partial, args.encoder_seed
    encoder = checkpoints.checkpoint_encoder(checkpoint, path, dataset, *how)
    model = checkpoints.load_text_model(
        checkpoint, path, lora_dir, args.llm, not args.no_quantize, torch.float32, device, description, encoder.width
    )
    if args.readout == "head" and model.head is None:
        raise UserError(f"{path} was trained with --lambda_cls 0 and has no head; --readout likelihood")
    dataset = checkpoints.connect(model, checkpoint, encoder, dataset, None, False, device)  # gradients need the signal
    model.requires_grad_(False)
    model.read_prefix()

    # ------------------------------------------------------------ gradients along the way from silence to each trial
    sentences, electrodes = description.canonical, dataset.montage.electrodes
    added, of_bands, missed = defaultdict(list), defaultdict(list), []  # by person and label; by electrode and band too
    for batch in progress(DataLoader(Subset(dataset, chosen), args.batch_size), desc="attributing", unit="batch"):
        x = batch["x"].to(device)
        with torch.no_grad():
            before, silent = (model.probabilities(of, sentences)[args.readout] for of in (x, torch.zeros_like(x)))
        said = before.argmax(dim=1)  # (B,)
        rise = (before - silent)[torch.arange(len(x)), said].cpu().numpy()

        def probability(x: torch.Tensor, said: torch.Tensor = said) -> torch.Tensor:
            return model.probabilities(x, sentences)[args.readout][torch.arange(len(x)), said]

        gradient = mean_gradient(probability, x, args.steps)
        # patches of a second follow each other in time: (B, C, P, 200) → (B, C, T)
        x, gradient = (of.flatten(2).cpu().double().numpy() for of in (x, gradient))
        sfreq = x.shape[-1] * dataset.sfreq / dataset.n_times
        missed += np.abs((gradient * x).sum(axis=(1, 2)) - rise).tolist()
        parts = {band: (gradient * part).sum(axis=-1) for band, part in by_band(x, sfreq).items()}  # (B, C)
        for k, key in enumerate(zip(batch["subject"], said.tolist(), strict=True)):
            added[key].append(gradient[k] * x[k])  # (C, T)
            for band, of in parts.items():
                for c, electrode in enumerate(electrodes):
                    of_bands[(*key, electrode, band)].append(of[k, c])

    # ------------------------------------------------------------ table, figures
    columns = ("person", "class", "electrode", "band", "added", "n")
    lines = [
        (person, description.classes[label], electrode, band, float(np.mean(of)), len(of))
        for (person, label, electrode, band), of in sorted(of_bands.items())
    ]
    with written_whole(folder / "attribution.csv") as unfinished:
        unfinished.write_text(as_csv(columns, [dict(zip(columns, line, strict=True)) for line in lines]))
    classes = sorted({label for _, label in added})
    trials = {description.classes[k]: [x for key, of in added.items() if key[1] == k for x in of] for k in classes}
    mean_of = {f"{name}, n = {len(of)}": np.mean(of, axis=0) for name, of in trials.items()}  # (C, T)
    start = float((dataset.store.meta.get("preprocessing") or {}).get("tmin") or 0) + (dataset.window or [0])[0]
    times = start + (np.arange(x.shape[-1]) + 0.5) / sfreq
    time_course_figure({name: of.sum(axis=0) for name, of in mean_of.items()}, times, folder / "time_course.png")
    maps = {name: of.sum(axis=1) for name, of in mean_of.items()}
    topography_figure(maps, electrodes, folder / "topography.png")

    # ------------------------------------------------------------ in words
    whole = defaultdict(list)
    for (*_, electrode, band), of in of_bands.items():
        whole[electrode, band] += of
    most = sorted(((float(np.mean(of)), *key) for key, of in whole.items()), reverse=True)[:MOST]
    print(markdown(("electrode", "band", "adds to the probability"), [(e, b, f"{value:+.4f}") for value, e, b in most]))
    print(
        f"\n{len(missed)} {args.split} trials, read-out {args.readout}; what is added up misses the rise of a trial's "
        f"probability over silence by {np.mean(missed):.4f} on average ({args.steps} steps)"
    )
    besides = ["--mirror_average"] if checkpoint.get("mirror_average") else []
    besides += [f"--adapt {checkpoint['adapt']}"] if checkpoint.get("adapt", "none") != "none" else []
    if besides:
        print(f"notice: the answers of this run go through {' and '.join(besides)} as well; that is not attributed")
    print(f"wrote attribution.csv, time_course.png and topography.png in {folder}")


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"])
