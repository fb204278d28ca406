"""Decoded trials → a table of accuracies with intervals, chance, p-values and shuffled-labels twins, and a figure.

    python evaluate.py pth_downtasks/eeg_llm_bcic_new --output_dir outputs/tables

A run's twin is the folder of the same name with "_shuffled" behind it: the same command with --shuffle_labels.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the back end is chosen
import numpy as np  # noqa: E402

from utils.errors import UserError, run_script  # noqa: E402
from utils.paths import written_whole  # noqa: E402
from utils.records import read_jsonl  # noqa: E402
from utils.statistics import Accuracy, chance_interval, readouts_of, score_readouts  # noqa: E402


def read_decoded(place: Path) -> list[dict]:
    """Rows of a run's test trials, or of what generate.py decoded."""
    for path in (place, place / "decoded_test.jsonl", place / "decoded.jsonl"):
        if path.is_file():
            rows = read_jsonl(path)
            if not rows:
                raise UserError(f"{path} has no trials, so there is no accuracy")
            return rows
    raise UserError(f"{place} has no decoded_test.jsonl or decoded.jsonl; train or decode first")


def score(rows: list[dict]) -> dict[str, Accuracy]:
    """All read-outs' accuracies; the classes are as many as there are probabilities."""
    return score_readouts(rows, 1 / len(rows[0]["probabilities"]))


def confusion_figure(rows: list[dict], title: str, path: Path) -> None:
    """How many trials of each true class were decoded as each class, or as none, by the first read-out."""
    readout = readouts_of(rows)[0]
    names = {row["true_label"]: row["true_name"] for row in rows}
    n_classes = len(rows[0]["probabilities"])
    counts = np.zeros((n_classes, n_classes + 1))
    for row in rows:
        counts[row["true_label"], row[f"{readout}_label"]] += 1  # −1 is the last column
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.5 + 0.8 * n_classes, 1 + 0.7 * n_classes), layout="constrained")
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for (i, j), n in np.ndenumerate(counts.astype(int)):
        axis.text(j, i, n, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    labels = [names.get(k, str(k)) for k in range(n_classes)]
    axis.set_xticks(range(n_classes + 1), [*labels, "none"], rotation=30, ha="right")
    axis.set_yticks(range(n_classes), labels)
    axis.set(xlabel="decoded", ylabel="true", title=f"{title}, n = {len(rows)}")
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of finetune_eeg_llm.py or generate.py, or .jsonl files")
    parser.add_argument("--twin_suffix", default="_shuffled", help="what a twin's folder has behind the run's name")
    parser.add_argument("--output_dir", help="folder for table.md and a confusion matrix a run")
    args = parser.parse_args()

    lines = [
        "| run | read-out | accuracy | n | 95 % interval | chance | p | shuffled twin (n) | 95 % of guessing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    people = []
    for run in map(Path, args.runs):
        rows = read_decoded(run)
        twin_dir = run.with_name(run.name + args.twin_suffix)
        twin_rows = read_decoded(twin_dir) if twin_dir.exists() else None
        for readout in readouts_of(rows):
            s = score(rows)[readout]
            low, high = chance_interval(s.n, s.chance)
            twin = "not run"
            if twin_rows:
                t = score(twin_rows)[readout]
                low, high = chance_interval(t.n, t.chance)
                verdict = "at chance" if low <= t.accuracy <= high else "NOT at chance"
                twin = f"{100 * t.accuracy:.1f} % ({t.n}), {verdict}"
            p = f"{s.p:.2g}" if s.p >= 1e-4 else "< 0.0001"
            lines.append(
                f"| {run.name} | {readout} | {100 * s.accuracy:.1f} % | {s.n} | {100 * s.low:.1f} to {100 * s.high:.1f} % "
                f"| {100 * s.chance:.0f} % | {p} | {twin} | {100 * low:.1f} to {100 * high:.1f} % |"
            )
        by_person = defaultdict(list)
        for row in rows:
            by_person[row["subject"]].append(row)
        each = ", ".join(f"{subject} {100 * score(of)[readouts_of(of)[0]].accuracy:.1f} % (n = {len(of)})"
                         for subject, of in sorted(by_person.items()))  # fmt: skip
        people.append(f"{run.name}, {readouts_of(rows)[0]}, by person: {each}")
        if args.output_dir:
            confusion_figure(rows, run.name, Path(args.output_dir) / f"confusion_{run.name}.png")

    print("\n".join(lines), *people, sep="\n")
    if args.output_dir:
        with written_whole(Path(args.output_dir) / "table.md") as unfinished:
            unfinished.write_text("\n".join([*lines, "", *people]) + "\n")
        print(f"wrote {Path(args.output_dir) / 'table.md'} and the confusion matrices")


if __name__ == "__main__":
    run_script(main)
