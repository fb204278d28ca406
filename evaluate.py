"""Decoded trials → tables with intervals, chance, p-values, controls and comparisons; figures; a page to look at.

    python evaluate.py pth_downtasks/* --output_dir outputs/tables
    python evaluate.py pth_downtasks/* outputs/vi_images --images --report --output_dir outputs/tables
    python evaluate.py docs/results/*                               # the README's tables, from the rows that are kept
    python evaluate.py --ensemble RUNS/mean RUNS/seed*              # mean of several runs' probabilities, as a run
    python evaluate.py --audit data/BCICIV2a/processed_lmdb pth_downtasks/eeg_llm_bcic_new

Takes folders of training, generating and baseline scripts, folders of such folders, and .jsonl files; what holds no
decoded trials is named and skipped. A run's control is the folder of the same name with "_shuffled" behind it: the same
command with --shuffle_labels. Seeds of one command become one line, folds of leave-one-subject-out another. Leaves in
--output_dir: results.md, .csv and .tex, comparisons.csv, a confusion matrix and a reliability figure a run; of runs
that differ in --window a curve, in --regions a map of the head. --images compares drawn pictures with the stimuli
(images.csv). --report writes report.html, one file with all of it, every picture with its trial and EEG. --keep_rows
copies the rows, packed, from which all is made again.

--audit looks for what a control cannot see: people or trials in two splits, labels that can be read from order, keys or
means, an epoch chosen on test, files that do not belong together. It says what it checked and what it cannot check; a
breach ends with exit code 2.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from datasets.description import DATASETS, described
from datasets.splits import caution, check_protocol
from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("runs", nargs="*",
        help="folders of a training, generating or baseline script, .jsonl files, or OWNER/NAME on the hub")
    add("--control_suffix", default="_shuffled", help="what a control's folder has behind the run's name")
    add("--output_dir", help="folder for the tables and figures; without it they are printed only")
    add("--images", action="store_true", help="compare the pictures of generating scripts with the stimuli")
    add("--figures", action=argparse.BooleanOptionalAction, default=True, help="draw figures beside the tables")
    add("--report", action="store_true", help="write report.html, one page with tables, figures, pictures, EEG")
    add("--ensemble", metavar="FOLDER",
        help="write the rows of the runs' mean probabilities there, as a run of its own")
    add("--keep_rows", metavar="FOLDER", help="copy each run's rows, packed, and its run.json there")
    add("--stimuli_dir",
        help="folder of the stimulus photos (default: as the run had it; --audit: or images beside the store)")
    add("--metric_weights", default=default("pth/metrics"),
        help="for --images: folder of torchvision's and SwAV's weights")
    add("--clip_model", default="openai/clip-vit-large-patch14",
        help="for --images: CLIP, a local folder or hub address")
    add("--convnet",
        help="for --images: a ResNet or ConvNeXt in the hub's layout, whose first and last stage judge too")
    add("--audit", metavar="STORE", help="look for leaks in this store, and in the runs on it")
    add("--downstream_dataset", help="for --audit: the store's (default: as the store says)")
    add("--protocol", type=flags.checked(check_protocol), help="for --audit without runs (default: published)")
    add("--cache_dir", help="for --audit: the token cache (default: beside the store)")
    add("--cuda", type=int, default=0, help="for --audit: GPU that encodes some trials anew; -1: CPU")
    # fmt: on
    args = parser.parse_args()
    if not args.runs and not args.audit:
        parser.error("name runs, or a store with --audit")
    if args.report and not args.figures:
        parser.error("--report shows the figures; leave out --no-figures")
    if args.report and not args.output_dir:
        parser.error("--report needs --output_dir")
    if args.audit and (args.report or args.images or args.keep_rows or args.output_dir):
        parser.error("--audit makes no tables; leave out --output_dir, --images, --report and --keep_rows")
    if not args.control_suffix or {"/", "\\", "\0"} & set(args.control_suffix):
        parser.error(f"--control_suffix {args.control_suffix!r} is no end of a folder's name")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.store import open_store
from evaluation import decoded_runs, figures, tables
from evaluation.decoded_runs import Run
from stages.scores import percent
from utils.files import read_csv
from utils.paths import ROOT, written_whole

MOST_CLASSES = 60  # of a confusion matrix that can be read
NOTES = [
    "Intervals: Wilson's over trials, which speaks of these people; over the folds of leave-one-subject-out, "
    f"Student's over people. {tables.FEW}",
    "Chance is the best constant answer on these trials. p, binomial: exact, one-sided, of doing this well at chance. "
    "p, permuted: true labels change places within each recording, so that what the recording as a whole tells counts "
    "for nothing. Of several seeds: mean ± standard deviation, and the largest p.",
    "The control is trained and tested on labels that are permuted within each recording, in all splits; its level is "
    "the middle 95 % of what its own answers score when labels are permuted again. It catches a pipeline that hands "
    "labels around. It does not see a label that is written into the signal, copied trials, or an epoch chosen on "
    "test: for those, --audit.",
]
BY_RECORDING = (
    "Where each recording holds some of the classes only, knowing the recording is worth 'recording alone', and the "
    "control keeps that; 'within task' asks for the class among those of the trial's own task."
)

# ---------------------------------------------------------------- leaks


def look_for_leaks(args: argparse.Namespace) -> None:
    """Print the audit's findings; UserError on a breach."""
    from evaluation import audit  # reads models; tables need none
    from utils.device import pick_device

    store = open_store(args.audit)
    if not store.trials:
        raise UserError(f"{store.path} has no trials")
    runs = decoded_runs.read_runs([Path(place) for place in args.runs]) if args.runs else []
    asked = args.downstream_dataset or store.meta.get("dataset")
    name = asked or next((r.argument.get("downstream_dataset") for r in runs), None)
    description = described(name, store.meta.get("description"), str(args.audit))
    said = {run.name: "published" if run.protocol == "None" else run.protocol for run in runs}
    protocol_of = {name: args.protocol or check_protocol(protocol) for name, protocol in said.items()}
    protocols = list(dict.fromkeys(protocol_of.values())) or [args.protocol or "published"]

    # what the people saw, and what captioners say of it: as a run or the store says, else beside the store
    beside = store.path.resolve().parent
    folders = [args.stimuli_dir, *(run.recorded_place("images_dir") for run in runs), description.images_dir or None]
    images_dir = next(filter(Path.is_dir, map(Path, filter(None, [*folders, beside / "images"]))), None)
    files = [*(run.recorded_place("captions") for run in runs), beside / "captions.jsonl"]
    captions = next(filter(Path.is_file, filter(None, files)), None)

    print(f"audit of {args.audit} ({name}, {', '.join(protocols)})")
    breaches, device = 0, pick_device(args.cuda)
    places = images_dir, captions, args.cache_dir
    for finding in audit.findings(store, description, protocols, runs, protocol_of, *places, device):
        print(finding)
        breaches += finding.kind == "BREACH"
    if breaches:
        raise UserError(f"{breaches} breaches in {args.audit} or the runs on it; scores made with them say nothing")
    print("no breach found")


# ---------------------------------------------------------------- pictures, figures


def stimuli_of(run: Run, args: argparse.Namespace):  # noqa: ANN201 - stages.pictures.Stimuli
    """What the people of a run saw."""
    from stages.pictures import Stimuli

    description = decoded_runs.description_of(run)
    recorded = run.recorded_place("stimuli_dir") or run.recorded_place("images_dir") or Path()
    folder = Path(args.stimuli_dir) if args.stimuli_dir else recorded
    return Stimuli(description.stimuli, len(description.classes), folder)


def caution_of(run: Run) -> str:
    """What must stand beside a run's scores, as its dataset says."""
    asked = run.argument.get("downstream_dataset")
    if asked not in DATASETS and "dataset" not in run.record:
        return ""
    return caution(described(asked, run.record.get("dataset"), str(run.place)), run.protocol)


def score_images(
    drawn: Sequence[Run], controls: dict[Path, Run | None], args: argparse.Namespace
) -> tuple[list[dict], list[str]]:
    """A line a run and way of drawing; and in words which networks are not there, and which pictures are none."""
    from evaluation import image_metrics
    from evaluation.image_networks import feature_networks  # PyTorch: slow to import, and tables need none

    if not drawn:
        raise UserError("--images: none of these folders holds pictures; name folders of the generating scripts")
    networks, missing = feature_networks(Path(args.metric_weights), args.clip_model, args.convnet)
    read, values, lines, none = {}, {}, [], []
    for run in drawn:
        if not decoded_runs.description_of(run).stimuli and not run.rows[0].image:
            missing.append(f"{run.name}: nobody knows what was seen: the dataset has no stimuli")
            continue
        pictures, control = image_metrics.scored_pictures(run, stimuli_of(run, args), none), controls.get(run.place)
        if pictures is None:
            continue
        read[run.place] = pictures
        if control and any(control.place.glob("generated_*.png")):
            image_metrics.check_steps_of_control(run.argument, control.argument)
            control = image_metrics.scored_pictures(control, stimuli_of(control, args), none)
        else:
            control = None
        values[run.place] = image_metrics.values_of(pictures, networks, control=control)
        of_run = image_metrics.lines_of(pictures, values[run.place], control)
        noted = {"encoder": run.encoder_note} if run.encoder_note else {}
        lines += [{"run": run.name} | line | noted for line in of_run]
    for run, other in itertools.permutations([run for run in drawn if run.place in read], 2):
        a, b = read[run.place], read[other.place]
        if step := image_metrics.step_between(run.argument, other.argument, a.recipe, b.recipe):
            mine, its = (values[of.place][image_metrics.DRAWN] for of in (run, other))
            words = f"what {step} adds to {other.name}"
            lines.append({"run": run.name} | image_metrics.difference_line(words, a, mine, b.rows, its))
    warnings = [f"pictures not scored, because it is not there: {'; '.join(missing)}"] if missing else []
    return lines, warnings + ([f"left out of the scores, since no picture came out: {'; '.join(none)}"] if none else [])


def draw_figures(
    folder: Path, lines: Sequence[dict], of_group: Sequence[dict], runs: Sequence[Run], groups: Sequence[list[Run]]
) -> list[Path]:
    """Draw all lines, ablations, and two figures a run, in the order of a page. `of_group`: each group's first line."""
    made = [folder / "accuracies.png"]
    figures.accuracy_figure(lines, made[0])
    made += figures.ablation_figures(groups, of_group, folder)
    for run, name in zip(runs, decoded_runs.file_names(runs), strict=True):
        if run.n_classes > MOST_CLASSES:
            print(f"notice: no confusion matrix of {run.name}: it has more than {MOST_CLASSES} classes")
        else:
            made.append(folder / f"confusion_{name}.png")
            figures.confusion_figure(run, made[-1])
        if tables.with_probabilities(run.rows):
            made.append(folder / f"reliability_{name}.png")
            figures.reliability_figure(run, made[-1])
    return made


def main(args: argparse.Namespace) -> None:
    if args.audit:
        look_for_leaks(args)
        return
    places = [Path(place) for place in args.runs]
    if args.ensemble:
        from evaluation.ensembles import write_ensembles

        of_mean = [run for run in decoded_runs.read_runs(places) if "ensemble" not in run.record]
        places += [run.place for run in write_ensembles(of_mean, Path(args.ensemble), args.control_suffix)]
    runs, controls = decoded_runs.runs_and_controls(places, args.control_suffix)
    drawn = [run for run in runs if run.place.is_dir() and any(run.place.glob("generated_*.png"))]
    for run in drawn:
        if whole := decoded_runs.whole_of(run, runs):
            print(
                f"notice: the {len(run.rows)} trials of {run.name} are some of {whole.name}'s; they stand in no line "
                "of their own"
            )
            runs.remove(run)
    decoded_runs.tell_apart(runs)
    groups = decoded_runs.belong_together(runs)

    # ------------------------------------------------------------ numbers
    lines, of_group, by_person, by_class, warnings = [], [], [], [], []
    for group, name in zip(groups, decoded_runs.group_names(groups), strict=True):
        its = [control for run in group if (control := controls[run.place]) and not control.later_steps]
        rows = [row for run in group for row in run.rows]
        for readout in rows[0].readouts:
            of_controls = [control for control in its if readout in control.rows[0].readouts]
            lines.append(tables.group_line(group, readout, of_controls, name) | tables.linear_probe(group, runs))
            warnings += tables.warnings_of(name, rows, readout)
        if partly := tables.encoder_notes(group):
            warnings.append(f"{name}: the encoder's checkpoint: {partly}; the rest of the encoder is random")
        readout = group[0].main_readout
        of_group.append(next(line for line in reversed(lines) if line["readout"] == readout))
        by_person += [
            (name, readout, person, percent(accuracy), n)
            for person, (accuracy, n) in tables.by_person(rows, readout).items()
        ]
        by_class += [
            (name, readout, label, percent(accuracy), n, said)
            for label, (accuracy, n, said) in tables.by_class(rows, readout).items()
        ]
    compared = tables.comparisons(groups)
    image_lines, of_images = score_images(drawn, controls, args) if args.images else ([], [])
    real = {run.argument.get("downstream_dataset") for run in runs if not run.rows[0].simulated}
    published = [line for line in read_csv(ROOT / "docs/published.csv") if line["dataset"] in real]

    # ------------------------------------------------------------ in words
    sections = {"Results": tables.results_table(lines)}
    if compared:
        sections["Runs on the same trials (McNemar's test, p corrected by Holm)"] = tables.comparisons_table(compared)
    notes = NOTES + ([BY_RECORDING] if any("recording_alone" in line for line in lines) else [])
    notes += sorted({caution_of(run) for run in runs} - {""})
    if image_lines:
        from evaluation import image_metrics

        notes.append(image_metrics.NOTE)
        sections["Pictures against stimuli"] = image_metrics.images_table(image_lines)
    if published:
        sections["Published, not measured here"] = (list(published[0]), [list(line.values()) for line in published])
    sections["By person"] = (("run", "read-out", "person", "accuracy", "n"), by_person)
    sections["By class"] = (("run", "read-out", "class", "decoded as it", "n", "times answered"), by_class)
    warnings += of_images
    parts = [
        f"{'#' if title == 'Results' else '##'} {title}\n\n{tables.markdown(*table)}"
        for title, table in sections.items()
    ]
    parts[1:1] = [f"**Warning**: {warning}" for warning in warnings]
    text = "\n\n".join([*parts, "## What the columns mean", *notes]) + "\n"
    print(text)

    # ------------------------------------------------------------ files
    if args.keep_rows:
        for run, name in zip(runs, decoded_runs.file_names(runs), strict=True):
            decoded_runs.keep_rows(run, Path(args.keep_rows) / name)
            if control := controls[run.place]:
                decoded_runs.keep_rows(control, Path(args.keep_rows) / f"{name}{args.control_suffix}")
    if args.output_dir:
        folder = Path(args.output_dir)
        if args.report:
            from evaluation import report

            cards = [card for run in drawn for card in report.cards(run, stimuli_of(run, args))]
        made = draw_figures(folder, lines, of_group, runs, groups) if args.figures else []
        files = {
            "results.md": text,
            "results.csv": tables.as_csv(tables.CSV, lines),
            "results.tex": tables.results_tex(lines),
            "comparisons.csv": tables.as_csv(tables.COMPARED, compared),
        }
        if image_lines:
            columns = dict.fromkeys(name for line in image_lines for name in line)
            files["images.csv"] = tables.as_csv(list(columns), image_lines)
        if args.report:
            files["report.html"] = report.page(sections, warnings, notes, made, cards, drawn)
        for name in sorted(files, key="results.md".__eq__):  # results.md last: who finds it finds all
            with written_whole(folder / name) as unfinished:
                unfinished.write_text(files[name], encoding="utf-8", errors="backslashreplace")
        print(f"wrote {', '.join(files)} and {len(made)} figures in {folder}")


if __name__ == "__main__":
    locks = [Path(place) / ".lock" for place in (args.output_dir, args.keep_rows) if place]
    if args.ensemble:  # of folds the name is the beginning of several folders
        locks.append(lock_beside(args.ensemble))
    run_script(lambda: main(args), locks)
