"""Decoded trials → a table of accuracies with intervals, chance, p-values and shuffled-label controls, and figures.

    python evaluate.py pth_downtasks/eeg_llm_bcic_new --output_dir outputs/tables

A run's control is the folder of the same name with "_shuffled" behind it: the same command with --shuffle_labels.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from utils import flags
from utils.errors import UserError, run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of a training or generating script, or .jsonl files")
    parser.add_argument(
        "--control_suffix", default="_shuffled", help="what a control's folder has behind the run's name"
    )
    parser.add_argument("--output_dir", help="folder for table.md and a confusion matrix a run")
    return parser.parse_args()


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from stages.rows import Row, read_rows
from stages.scores import Accuracy, chance_interval, p_value, percent, score_rows
from utils.files import read_json
from utils.paths import written_whole

MOST_CLASSES = 60  # of a confusion matrix that can be read


def read_decoded(place: Path) -> list[Row]:
    """Rows of a run's test trials, or of what a generating script decoded."""
    for path in (place, place / "decoded_test.jsonl", place / "decoded.jsonl"):
        if path.is_file():
            return read_rows(path)
    raise UserError(f"{place} has no decoded_test.jsonl or decoded.jsonl; train or decode first")


def read_control(place: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows of the control of a run; UserError where it is none: labels not shuffled, or other trials."""
    control = read_decoded(place)
    record = place / "run.json"
    arguments = read_json(record).get("arguments") if record.is_file() else {"shuffle_labels": True}
    if not isinstance(arguments, dict) or not arguments.get("shuffle_labels"):
        raise UserError(f"{place} is not a shuffled-label control: it was made without --shuffle_labels; move it away")
    trials, others = ([(r.subject, r.session, r.run, r.trial) for r in of] for of in (rows, control))
    if trials != others:
        raise UserError(f"{place} is not the control of this run: it was tested on other trials; move it away")
    return control


def table_line(run: str, readout: str, s: Accuracy, control: Accuracy | None) -> str:
    """One line of the table. The control keeps what the recording tells, so its level is the recording's line."""
    level = s.chance if s.recording_line is None else s.recording_line
    low, high = chance_interval((control or s).n, level)
    told = "not run"
    if control:
        place = "ABOVE" if control.accuracy > high else "at" if control.accuracy >= low else "below"
        told = f"{percent(control.accuracy)} ({control.n}), {place} its level"
    within = s.within_task
    by_task = [percent(s.task.accuracy), f"{percent(within.accuracy)} ({within.n})" if within else "no trials",
               percent(s.recording_line)] if s.recording_line is not None else ["", "", ""]  # fmt: skip
    return " | ".join([
        f"| {run}", readout, percent(s.accuracy), str(s.n), str(s.people),
        f"{100 * s.low:.1f} to {percent(s.high)}", percent(s.chance, 0), p_value(s.p).removeprefix("p = ").removeprefix("p "),
        *by_task, told, f"{percent(level)}: {100 * low:.1f} to {percent(high)} |",
    ])  # fmt: skip


def by_person(run: str, rows: Sequence[Row]) -> str:
    """Accuracy of the first read-out for every person."""
    people = defaultdict(list)
    for row in rows:
        people[row.subject].append(row)
    readout = next(iter(rows[0].readouts))
    each = ", ".join(f"{person} {percent(score_rows(of)[readout].accuracy)} (n = {len(of)})"
                     for person, of in sorted(people.items()))  # fmt: skip
    return f"{run}, {readout}, by person: {each}"


def plain(text: str) -> str:
    """Text for a figure: what matplotlib would take for a formula, or cannot draw, is what it is."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def confusion_figure(rows: Sequence[Row], title: str, path: Path) -> None:
    """How many trials of each true class were decoded as each class, or as none, by the first read-out."""
    readout = next(iter(rows[0].readouts))
    names = {row.true_label: row.true_name for row in rows}
    n_classes = round(1 / rows[0].readouts[readout].chance)
    counts = np.zeros((n_classes, n_classes + 1))
    for row in rows:
        counts[row.true_label, row.readouts[readout].label] += 1  # −1 is the last column
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.5 + 0.8 * n_classes, 1 + 0.7 * n_classes), layout="constrained")
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for (i, j), n in np.ndenumerate(counts.astype(int)):
        axis.text(j, i, n, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    labels = [plain(names.get(k, str(k))) for k in range(n_classes)]
    axis.set_xticks(range(n_classes + 1), [*labels, "none"], rotation=30, ha="right")
    axis.set_yticks(range(n_classes), labels)
    axis.set(xlabel="decoded", ylabel="true", title=f"{plain(title)}, n = {len(rows)}")
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    plt.close(figure)


def main(args: argparse.Namespace) -> None:
    heads = ("run", "read-out", "accuracy", "n", "people", "95 % interval", "chance", "p", "task", "within task (n)",
             "recording alone", "shuffled-label control (n)", "control's level: 95 % of guessing")  # fmt: skip
    lines = [" | ".join(heads).join(("| ", " |")), "|" + " --- |" * len(heads)]
    people, by_recording = [], False
    for run in (Path(place).absolute() for place in args.runs):
        rows = read_decoded(run)
        control_dir = run.with_name(run.name + args.control_suffix)
        control = score_rows(read_control(control_dir, rows)) if control_dir.exists() else {}
        for readout, score in score_rows(rows).items():
            lines.append(table_line(run.name, readout, score, control.get(readout)))
            by_recording |= score.recording_line is not None
        people.append(by_person(run.name, rows))
        if args.output_dir and min(readout.chance for readout in rows[0].readouts.values()) < 1 / MOST_CLASSES:
            print(f"notice: no confusion matrix of {run.name}: it has more than {MOST_CLASSES} classes")
        elif args.output_dir:
            confusion_figure(rows, run.name, Path(args.output_dir) / f"confusion_{run.name}.png")

    notes = [
        "The control permutes labels within each recording, in all splits: a pipeline that hands labels around scores above "
        "its level. It does not show a label that is written into the signal, copied trials, or an epoch chosen on test."
    ]
    if by_recording:
        notes.append(
            "Where each recording holds some of the classes only, knowing the recording is worth the line 'recording "
            "alone'. The control keeps that, so its level is this line and not chance; a weak decoder's control lies below."
        )
    print("\n".join(lines), *people, *notes, sep="\n")
    if args.output_dir:
        with written_whole(Path(args.output_dir) / "table.md") as unfinished:
            unfinished.write_text(
                "\n".join([*lines, "", *(f"{line}\n" for line in (*people, *notes))]),
                encoding="utf-8",
                errors="backslashreplace",
            )
        print(f"wrote {Path(args.output_dir) / 'table.md'} and the confusion matrices")


if __name__ == "__main__":
    run_script(lambda: main(args))
