"""Decoded trials → tables with intervals, chance, p-values, controls and comparisons; figures.

    python evaluate.py pth_downtasks/* --output_dir outputs/tables
    python evaluate.py --audit data/BCICIV2a/processed_lmdb pth_downtasks/eeg_llm_bcic_new

Takes folders of training, generating and baseline scripts, and .jsonl files; what holds no decoded trials is skipped.
A run's control is the folder of the same name with "_shuffled" behind it: the same command with --shuffle_labels. Seeds of
one command become one line, folds of leave-one-subject-out another. Leaves in --output_dir: results.md, .csv and .tex,
comparisons.csv, a confusion matrix and a reliability figure a run.

--audit looks for what a control cannot see: people or trials in two splits, labels that can be read from order, keys or
means, an epoch chosen on test, files that do not belong together. It says what it checked and what it cannot check; a
breach ends with exit code 2.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.description import DATASETS, SPLITS, load_description
from datasets.splits import PROTOCOLS, check_protocol
from utils import flags
from utils.errors import UserError, run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    parser.add_argument("runs", nargs="*", help="folders of a training, generating or baseline script, or .jsonl files")
    parser.add_argument(
        "--control_suffix", default="_shuffled", help="what a control's folder has behind the run's name"
    )
    parser.add_argument("--output_dir", help="folder for the tables and figures; without it they are printed only")
    parser.add_argument("--audit", metavar="STORE", help="look for leaks in this store, and in the runs on it")
    parser.add_argument(
        "--downstream_dataset", choices=list(DATASETS), help="for --audit: the store's (default: as the store says)"
    )
    parser.add_argument(
        "--protocol", type=flags.checked(check_protocol), help="for --audit without runs (default: published)"
    )
    parser.add_argument("--cache_dir", help="for --audit: the token cache (default: beside the store)")
    parser.add_argument("--cuda", type=int, default=0, help="for --audit: GPU that encodes some trials anew; -1: CPU")
    args = parser.parse_args()
    if not args.runs and not args.audit:
        parser.error("name runs, or a store with --audit")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from datasets.store import open_store
from datasets.trials import TrialDataset
from stages import tables
from stages.scores import percent
from stages.statistics import calibration, confusion
from stages.tables import Run
from utils.paths import written_whole

MOST_CLASSES = 60  # of a confusion matrix that can be read
NOTES = [
    "Intervals: Wilson's over trials, which speaks of these people; over the folds of leave-one-subject-out, Student's over "
    f"people. {tables.FEW}",
    "Chance is the best constant answer on these trials. p, binomial: exact, one-sided, of doing this well at chance. p, permuted: "
    "true labels change places within each recording, so that what the recording as a whole tells counts for nothing. Of "
    "several seeds: mean ± standard deviation, and the largest p.",
    "The control is trained and tested on labels that are permuted within each recording, in all splits; its level is the middle 95 % "
    "of what its own answers score when labels are permuted again. It catches a pipeline that hands labels around. It does not "
    "see a label that is written into the signal, copied trials, or an epoch chosen on test: for those, --audit.",
]
BY_RECORDING = ("Where each recording holds some of the classes only, knowing the recording is worth 'recording alone', and the "
                "control keeps that; 'within task' asks for the class among those of the trial's own task.")  # fmt: skip

# ---------------------------------------------------------------- figures


def plain(text: str) -> str:
    """Text for a figure: what matplotlib would take for a formula, or cannot draw, is what it is."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def confusion_figure(run: Run, path: Path) -> None:
    """How many trials of each true class were decoded as each class, or as none, by the first read-out."""
    readout, rows = run.main_readout, run.rows
    names = {row.true_label: row.true_name for row in rows}
    n_classes = round(1 / rows[0].readouts[readout].chance)
    counts = confusion([r.true_label for r in rows], [r.readouts[readout].label for r in rows], n_classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.5 + 0.8 * n_classes, 1 + 0.7 * n_classes), layout="constrained")
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for (i, j), n in np.ndenumerate(counts):
        axis.text(j, i, n, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    labels = [plain(names.get(k, str(k))) for k in range(n_classes)]
    axis.set_xticks(range(n_classes + 1), [*labels, "none"], rotation=30, ha="right")
    axis.set_yticks(range(n_classes), labels)
    axis.set(xlabel="decoded", ylabel="true", title=f"{plain(run.name)}, {plain(readout)}, n = {len(rows)}")
    save(figure, path)


def reliability_figure(run: Run, path: Path) -> None:
    """Accuracy by confidence, for every read-out with probabilities; on the dashed line probabilities can be believed."""
    figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
    axis.plot([0, 1], [0, 1], "--", color="grey", lw=1)
    for name in tables.with_probabilities(run.rows):
        confidence = [row.readouts[name].probabilities[row.readouts[name].label] for row in run.rows]
        error, bins = calibration(run.right(name), confidence)
        x, y, n = np.array(bins).T
        axis.plot(x, y, "-", lw=1, label=f"{plain(name)}, expected error {error:.3f}")
        axis.scatter(x, y, s=10 + 200 * n / n.sum())  # as large as its trials are many
    axis.set(
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
        title=f"{plain(run.name)}, n = {len(run.rows)}",
    )
    axis.legend(fontsize=8, loc="upper left")
    save(figure, path)


def accuracy_figure(lines: Sequence[dict], path: Path) -> None:
    """Accuracy, interval, chance and control of every line."""
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.35 * len(lines)), layout="constrained")
    for y, line in enumerate(lines):
        low, high = (
            100 * line[end] if line.get(end) is not None else 100 * line["accuracy"] for end in ("low", "high")
        )
        if "sd" in line:
            low, high = (100 * (line["accuracy"] + sign * line["sd"]) for sign in (-1, 1))
        axis.plot([low, high], [y, y], color="C0", lw=2)
        axis.plot(100 * line["accuracy"], y, "o", color="C0", label="accuracy, interval or sd" if y == 0 else None)
        axis.plot(100 * line["chance"], y, "|", color="black", ms=12, label="chance" if y == 0 else None)
        if "control" in line:
            axis.plot(100 * line["control"], y, "x", color="firebrick", label="control")
    axis.set(yticks=range(len(lines)), yticklabels=[plain(f"{line['run']}, {line['readout']}") for line in lines],
             xlabel="accuracy (%)", xlim=(0, 100))  # fmt: skip
    axis.invert_yaxis()
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one of each
    axis.legend(handles.values(), handles.keys(), fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, whole."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    plt.close(figure)


def look_for_leaks(args: argparse.Namespace) -> None:
    """Print the audit's findings; UserError on a breach."""
    from stages import audit  # reads models; tables need none
    from utils.device import pick_device

    store = open_store(args.audit)
    runs = tables.read_runs([Path(place) for place in args.runs]) if args.runs else []
    name = (
        args.downstream_dataset
        or store.meta.get("dataset")
        or next((r.argument.get("downstream_dataset") for r in runs), None)
    )
    if name not in DATASETS:
        raise UserError(f"{args.audit} does not say which dataset it is of; --downstream_dataset does")
    description = load_description(name)
    protocols = dict.fromkeys(check_protocol(str(run.argument.get("protocol", "published"))) for run in runs)
    protocols = [args.protocol] if args.protocol else list(protocols) or ["published"]
    splits = {protocol: audit.splits_of(store, description, protocol) for protocol in protocols}

    # ------------------------------------------------------------ what each check says
    print(f"audit of {args.audit} ({name}, {', '.join(protocols)})")
    breaches = 0

    def say(findings: Iterable) -> None:
        nonlocal breaches
        for finding in findings:
            print(finding)
            breaches += finding.kind == "BREACH"

    for protocol in protocols:
        say(audit.people_findings(splits[protocol], PROTOCOLS[protocol.partition(":")[0]][1]))
    say(audit.store_findings(store, splits[protocols[0]]))
    for run in runs:
        protocol = args.protocol or str(run.argument.get("protocol", "published"))
        say(audit.run_findings(run, store, splits[protocol]))
        if not breaches:  # trials that are not kept apart cannot be opened
            datasets = [
                TrialDataset(args.audit, mode, protocol, description, store)
                for mode in SPLITS
                if splits[protocol][mode]
            ]
            for dataset in datasets:
                dataset.look_at(run.argument.get("window"), run.argument.get("regions"))
            say(audit.token_findings(run, datasets, args.cache_dir, pick_device(args.cuda)))
    say(audit.decoding_findings(runs))
    for words in audit.CANNOT:
        print(audit.Finding("cannot", "by design", words))
    if breaches:
        raise UserError(f"{breaches} breaches in {args.audit} or the runs on it; scores made with them say nothing")
    print("no breach found")


def main(args: argparse.Namespace) -> None:
    if args.audit:
        look_for_leaks(args)
        return
    runs = tables.read_runs([Path(place) for place in args.runs])
    controls = {run.place: tables.read_control(run, args.control_suffix) for run in runs}
    beside = {control.place for control in controls.values() if control}  # stands in the line of its run
    runs = [run for run in runs if run.place not in beside]
    groups = tables.belong_together(runs)

    # ------------------------------------------------------------ numbers
    lines, by_person, by_class, warnings = [], [], [], []
    for group in groups:
        of_group = [controls[run.place] for run in group if controls[run.place]]
        name, rows = tables.group_name(group), [row for run in group for row in run.rows]
        for readout in rows[0].readouts:
            lines.append(tables.group_line(group, readout, of_group) | tables.linear_probe(group[0], runs))
            warnings += tables.warnings_of(name, rows, readout)
        readout = group[0].main_readout
        by_person += [(name, readout, person, percent(accuracy), n)
                      for person, (accuracy, n) in tables.by_person(rows, readout).items()]  # fmt: skip
        by_class += [(name, readout, label, percent(accuracy), n, said)
                     for label, (accuracy, n, said) in tables.by_class(rows, readout).items()]  # fmt: skip
    compared = tables.comparisons(groups)

    # ------------------------------------------------------------ in words
    notes = NOTES + ([BY_RECORDING] if any("recording_alone" in line for line in lines) else [])
    parts = ["# Results", tables.results_markdown(lines)]
    parts += [f"**Warning**: {warning}" for warning in warnings]
    if compared:
        parts += [
            "## Runs on the same trials (McNemar's test, p corrected by Holm)",
            tables.comparisons_markdown(compared),
        ]
    parts += ["## By person", tables.markdown(("run", "read-out", "person", "accuracy", "n"), by_person)]
    parts += [
        "## By class",
        tables.markdown(("run", "read-out", "class", "decoded as it", "n", "times answered"), by_class),
    ]
    parts += ["## What the columns mean", *notes]
    text = "\n\n".join(parts) + "\n"
    print(text)

    # ------------------------------------------------------------ files
    if args.output_dir:
        folder = Path(args.output_dir)
        files = {"results.md": text, "results.csv": tables.results_csv(lines), "results.tex": tables.results_tex(lines),
                 "comparisons.csv": tables.as_csv(tables.COMPARED, compared)}  # fmt: skip
        for name, content in files.items():
            with written_whole(folder / name) as unfinished:
                unfinished.write_text(content, encoding="utf-8", errors="backslashreplace")
        accuracy_figure(lines, folder / "accuracies.png")
        for run in runs:
            name = re.sub(r"[/\\\0]", "_", run.name)
            if 1 / run.rows[0].readouts[run.main_readout].chance > MOST_CLASSES + 0.5:
                print(f"notice: no confusion matrix of {run.name}: it has more than {MOST_CLASSES} classes")
            else:
                confusion_figure(run, folder / f"confusion_{name}.png")
            if tables.with_probabilities(run.rows):
                reliability_figure(run, folder / f"reliability_{name}.png")
        print(f"wrote {', '.join(files)} and figures in {folder}")


if __name__ == "__main__":
    run_script(lambda: main(args))
