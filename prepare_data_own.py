"""Recordings of your own, of any BIDS folder or MOABB data set → trial store. No Python to write.

    python prepare_data_own.py bids:FOLDER --task imagery --window 0 4 --lmdb_dir STORE
    python prepare_data_own.py "files:FOLDER/{subject}_{session}.edf" --window 0 4 --lmdb_dir STORE
    python prepare_data_own.py moabb:BNCI2014_004 --raw_dir FOLDER --lmdb_dir STORE
    python prepare_data_own.py bids:FOLDER … --show                              # look first: nothing is prepared

files: EDF, BDF, GDF, BrainVision, EEGLAB, FIF, Nihon Kohden, Persyst, Neuroscan CNT, XDF (with pyxdf), and the CSV that
headbands write. Events come from a table beside the recording (NAME_events.tsv: onset, trial_type), annotations,
or a trigger channel. What nobody says is chosen by rules that the closing lines state: classes, people, electrodes,
rate, reference. The store holds the description of its dataset; every other script takes it from there.
docs/own_data.md shows a whole example.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.locks import lock_beside
from utils.paths import make_room
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("source", help="bids:FOLDER, moabb:NAME, or files:PATTERN with {subject}, {session}, {run} and *")
    add("--lmdb_dir", required=True, help="folder of the store")
    add("--name", help="the dataset's name (default: the source's)")
    add("--show", action="store_true", help="print what is found, draw the first trials beside --lmdb_dir, and stop")
    of_source = parser.add_argument_group("which recordings").add_argument
    of_source("--task", help="bids: which task (default: the only one)")
    of_source("--subjects", nargs="+", help="bids, moabb: only these people (default: all)")
    of_source("--sessions", nargs="+", help="bids: only these sessions (default: all)")
    of_source("--raw_dir", type=Path, help="moabb: its download folder (default: where MOABB keeps its data)")
    event = parser.add_argument_group("events and classes").add_argument
    event("--events", nargs="+", metavar="VALUE=CLASS",
        help="which events are trials, and of which class (default: each value is a class)")
    event("--class_column", help="column of the table of events with the classes (default: trial_type, class, …)")
    event("--image_column", help="column of the table of events that says which picture was shown")
    event("--images_dir", type=Path, help="folder of the pictures that were shown (bids: default FOLDER/stimuli)")
    event("--split_by", choices=("image", "concept"), default="image",
        help="with --image_column: what tests is other images of the same classes, or other classes")
    event("--trigger", help="channel, or column of a CSV, with the events (default: annotations, else such a one)")
    event("--window", type=float, nargs=2, metavar=("FROM", "TO"),
        help="seconds after the event that a trial holds (default: 0 4, or what MOABB says)")
    event("--reject", type=flags.positive, metavar="MICROVOLTS", help="leave out trials with a larger amplitude")
    of_signal = parser.add_argument_group("signal")
    flags.add_rename_flag(of_signal)
    signal = of_signal.add_argument
    signal("--band", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="band-pass, Hz (default: 0.3 50, or 0.45 × rate)")
    signal("--reference", choices=("average", "none"),
        help="average: subtract the mean over electrodes (default: average from 16 electrodes on, else none)")
    signal("--electrodes", nargs="+", help="only these, in this order (default: all that every recording has)")
    signal("--sfreq", type=flags.positive, help="Hz, of a CSV without times (default: as recorded)")
    words = parser.add_argument_group("people, words and pictures").add_argument
    words("--people", metavar="TRAIN/VAL/TEST", help="who is in which, as in P1+P2+P3/P4/P5 (default: by rule)")
    words("--words", help="TOML or JSON file of keywords, sentences and prompts (default: from the classes' names)")
    words("--seen", action="store_true", help="the people saw something; the sentences say so (default: imagined)")
    words("--stimuli_dir", type=Path, help="folder of pictures named after classes")
    flags.add_prepare_flags(parser, workers=2)
    # fmt: on
    args = parser.parse_args()
    args.lmdb_dir = Path(args.lmdb_dir).resolve()
    if args.window and not args.window[1] > args.window[0]:
        parser.error(f"--window {args.window[0]:g} {args.window[1]:g} must end after it begins")
    if args.band and not 0 < args.band[0] < args.band[1]:
        parser.error(f"--band {args.band[0]:g} {args.band[1]:g}: expected two frequencies, the lower one first")
    if args.image_column and not args.images_dir and not args.source.startswith("bids:"):
        parser.error("--image_column needs --images_dir")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from dataclasses import replace

from datasets import own, own_sources
from datasets.description import DATASETS, from_record
from datasets.own_figure import draw_first_trials
from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import is_trial_store, read_words
from utils.errors import UserError
from utils.progress import progress


def find(args: argparse.Namespace) -> tuple[list, tuple[float, float] | None, object]:
    """The recordings; MOABB's window, and the project's own description of that data set, where there are such."""
    kind, place = own_sources.split_source(args.source)
    if kind == "bids":
        return own_sources.bids_files(Path(place), args.task, args.subjects, args.sessions), None, None
    if kind == "files":
        return own_sources.pattern_files(place), None, None
    known = own_sources.known_to_moabb(place)
    people = sorted(sum(known.people.values(), ())) if known else []
    files = own_sources.moabb_files(place, args.raw_dir, args.subjects, people)
    return files, own_sources.moabb_dataset(place, args.raw_dir).interval, known


def main(args: argparse.Namespace) -> None:
    # ------------------------------------------------------------ what is there
    files, usual_window, known = find(args)
    folder = args.source.partition(":")[2]
    images_dir = args.images_dir or Path(folder) / "stimuli"
    window = tuple(args.window or (known.window if known else usual_window or (0.0, 4.0)))
    how = own.Reading(
        window=window, renamed=dict(args.rename), trigger=args.trigger,
        class_column=args.class_column, image_column=args.image_column, table_rate=args.sfreq,
    )  # fmt: skip
    found = [own.recording_facts(file, how) for file in progress(files, desc="looking", unit="recording")]

    channels = {channel for f in found for channel in (*f.electrodes, *f.electrodes.values())}
    if nowhere := [f"{old}={new}" for old, new in args.rename if not {old, new} & channels]:
        raise UserError(f"--rename {nowhere[0]}: no recording has a channel of that name")

    # ------------------------------------------------------------ what it is: electrodes, classes, people, words
    asked = args.electrodes or (known.montage.electrodes if known else None)
    montage, said = own.common_electrodes(found, files, asked)
    names, class_of, more = own.classes_of(found, args.events, args.source)
    people = sorted({file.subject for file in files}, key=own.natural)
    dealt, still_more = own.deal_people(people, args.people)
    said += more + still_more
    facts = {
        "people": dealt,
        "protocol": own.usual_protocol(files, dealt),
        "seen": args.seen or bool(args.image_column),
    }
    if args.stimuli_dir:
        facts["stimuli"], more = own.stimuli_of(names, args.stimuli_dir)
        facts["images_dir"], said = str(args.stimuli_dir.resolve()), said + more
    if args.image_column:
        image_of, more = own.shown_pictures(found, args.image_column, images_dir)
        label_of = {image_of[row[args.image_column]]: class_of[text] for f in found
                    for row, (_, text) in zip(f.rows, f.events, strict=True)
                    if row.get(args.image_column) in image_of and text in class_of}  # fmt: skip
        facts |= {"part_of": own.deal_images(label_of, args.split_by == "concept"), "apart": args.split_by}
        facts["images_dir"], said, how = str(images_dir.resolve()), said + more, replace(how, image_of=image_of)
    rates = {round(f.sfreq) for f in found}
    sfreq = float(min(rates))
    if sfreq < own.LEAST_RATE:
        raise UserError(f"{files[0]}: {sfreq:g} samples a second; expected {own.LEAST_RATE:g} or more")
    if len(rates) > 1:
        said.append(f"rates: {', '.join(f'{rate:g}' for rate in sorted(rates))} Hz; all are brought to {sfreq:g} Hz")
    how = replace(how, electrodes=montage.electrodes, sfreq=sfreq, class_of=class_of)
    name = args.name or Path(folder.partition("{")[0].rstrip("/*") or "own").name
    description = own.describe(own.own_name(name), montage, names, how, **facts)
    if known and not args.name:
        description, said = own.as_known(known, how), [f"this is {known.name}: its words, people and electrodes"]
    if args.words:
        description = description.with_words(read_words(Path(args.words)), args.words)
    average = "average" if len(montage.electrodes) >= own.AVERAGED else "none"
    reference = args.reference or (known.reference if known else average)
    low, high = args.band or (0.3, min(50.0, 0.45 * sfreq))
    description = replace(description, reference=reference, closing=own.closing(said, args.lmdb_dir))
    settings = Preprocessing(*window, reference, low, high, reject=args.reject)
    if description.name not in DATASETS:
        from_record(description.as_record(), args.source)  # what every reader of the store will ask

    # ------------------------------------------------------------ recordings → filter → window → trials → store
    own.print_found(description, files, found, settings)
    if args.show:
        print(*said, sep="\n")
        picture = args.lmdb_dir.with_name(f"{args.lmdb_dir.name}_first_trials.png")
        draw_first_trials(description, files[0], settings, args.scale, picture)
        print(f"\ndrew {picture}; the same command without --show makes the store")
        return
    with make_room(args.lmdb_dir, is_trial_store, args.overwrite):
        prepare(description, files, args.lmdb_dir, settings, args.workers, args.scale)


if __name__ == "__main__":
    lock = lock_beside(args.lmdb_dir)
    go_on = "files that are prepared are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
