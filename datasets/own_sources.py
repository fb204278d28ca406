"""Where recordings of one's own come from: a BIDS folder, a MOABB data set, files with names of a pattern."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.description import DATASETS, DatasetDescription, load_description
from datasets.own import Recorded, natural
from utils.errors import UserError, loading, reason

FIELDS = ("subject", "session", "run", "task")
FORM = "expected bids:FOLDER, moabb:NAME or files:PATTERN, as in files:recordings/{subject}_{session}.edf"


def split_source(source: str) -> tuple[str, str]:
    """("bids", FOLDER), ("moabb", NAME) or ("files", PATTERN); UserError for anything else."""
    kind, _, place = source.partition(":")
    if kind not in ("bids", "moabb", "files") or not place:
        folder = f"; a folder is given as bids:{source} or files:{source}/{{subject}}.edf"
        raise UserError(f"{source}: {FORM}{folder if Path(source).is_dir() else ''}")
    return kind, os.path.expanduser(place)


def plain(name: str) -> str:
    """A person's or session's name that a protocol can name: letters, digits, dots, dashes."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "1"


def numbered(files: Sequence[Recorded]) -> list[Recorded]:
    """The files in order of person, session and run, runs counted from 1 within each session.

    Raises UserError where two files are the same run.
    """
    ordered = sorted(files, key=lambda f: (natural(f.subject), natural(f.session), natural(str(f.run)), str(f.path)))
    made, runs = [], {}
    for file in ordered:
        of_session = runs.setdefault((file.subject, file.session), {})
        name = str(file.run)
        if name in of_session:
            raise UserError(f"{file.path} and {of_session[name]} are both run {name} of {file.subject}; keep one")
        of_session[name] = file.path
        made.append(replace(file, run=len(of_session)))
    return made


# ---------------------------------------------------------------- BIDS


def bids_files(
    root: Path, task: str | None, subjects: Sequence[str] | None, sessions: Sequence[str] | None
) -> list[Recorded]:
    """The EEG recordings of a BIDS folder, with the tables beside them or above them (inheritance).

    Raises UserError where there are none, or several tasks and none was chosen.
    """
    import mne_bids  # slow to import

    from readers.recordings import suffix_of, table_rows

    if not root.is_dir():
        raise UserError(f"{root} is no folder")
    with loading(str(root), "names follow BIDS: sub-…_ses-…_task-…_run-…_eeg.edf", "read as BIDS"):
        paths = mne_bids.find_matching_paths(root, datatypes="eeg", suffixes="eeg", ignore_nosub=True)
    paths = [path for path in paths if suffix_of(path.fpath) and path.fpath.is_file() and path.extension != ".eeg"]
    if not paths:
        raise UserError(f"{root} has no recording sub-…/eeg/sub-…_eeg.edf (or .bdf, .vhdr, .set, .fif); is it BIDS?")
    tasks = sorted({path.task or "" for path in paths})
    if task is None and len(tasks) > 1:
        raise UserError(f"{root} has the tasks {', '.join(tasks)}; --task chooses one")
    if task is not None and task not in tasks:
        raise UserError(f"--task {task}: {root} has the task {', '.join(tasks)}")
    chosen = [path for path in paths if task in (None, path.task)]
    for flag, asked, field in (("--subjects", subjects, "subject"), ("--sessions", sessions, "session")):
        there = sorted({getattr(path, field) or "1" for path in chosen}, key=natural)
        wanted = [re.sub(r"^(sub|ses)-", "", name) for name in asked or there]
        if missing := [name for name in wanted if name not in there]:
            raise UserError(f"{flag} {', '.join(missing)}: {root} has {', '.join(there)}")
        chosen = [path for path in chosen if (getattr(path, field) or "1") in wanted]
    files = []
    for path in chosen:
        table = path.find_matching_sidecar(suffix="events", extension=".tsv", on_error="ignore")
        channels = path.find_matching_sidecar(suffix="channels", extension=".tsv", on_error="ignore")
        kinds = [(row.get("name"), row.get("type")) for _, row in table_rows(Path(channels))[1]] if channels else []
        not_eeg = tuple(name for name, kind in kinds if name and (kind or "").upper() not in ("EEG", "N/A", ""))
        beside, table = tuple(Path(found) for found in (table, channels) if found), Path(table) if table else None
        origin = path.subject, path.session or "1", path.run or 1
        files.append(Recorded(Path(path.fpath), 0, 1, beside, *origin, table=table, not_eeg=not_eeg))
    return numbered(files)


# ---------------------------------------------------------------- files with names of a pattern


def pattern_files(pattern: str) -> list[Recorded]:
    """The files whose names fit a pattern: {subject}, {session}, {run} stand for a part of a name, * for anything.

    Without {subject} all are of one person, P1. A table of onsets beside a recording, with its name, is taken.
    Raises UserError where no file fits, or one that fits is no recording.
    """
    from readers.any_recording import table_beside
    from readers.recordings import TABLES, suffix_of

    if unknown := [name for name in re.findall(r"\{(\w*)\}", pattern) if name not in FIELDS]:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise UserError(f"files:{pattern}: {{{unknown[0]}}} is unknown; expected {known}")
    fixed = re.split(r"[{*]", pattern)[0]
    base = Path(fixed) if fixed.endswith("/") else Path(fixed).parent
    if not base.is_dir():
        raise UserError(f"files:{pattern}: {base} is no folder")
    if Path(pattern).is_dir():
        raise UserError(f"files:{pattern} is a folder; expected a pattern, as in files:{pattern}/{{subject}}.edf")
    known, expression = set(), ""
    for part in re.split(r"(\{\w+\}|\*\*/|\*)", os.path.normpath(pattern)):
        if part[:1] == "{":
            name = part[1:-1]
            expression += f"(?P={name})" if name in known else f"(?P<{name}>[^/]+?)"
            known.add(name)
        else:
            expression += {"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
    found = []
    there = sorted(path for path in base.rglob("*") if path.is_file())
    for path in there:
        fits = re.fullmatch(expression, os.path.normpath(path))
        if fits and not path.name.startswith("."):
            found.append((path, fits.groupdict()))
    if not found:
        names = ", ".join(path.name for path in there[:5])
        raise UserError(f"files:{pattern}: no file fits; {base} has {names or 'no files'}")
    tables = {path: table_beside(path) for path, _ in found}
    files, onsets = [], set(tables.values())
    for path, said in found:
        if path in onsets:  # a table of onsets that fits the pattern too
            continue
        if not suffix_of(path):
            raise UserError(f"files:{pattern}: {path} is no recording that is read here; make the pattern narrower")
        table = tables[path]
        if table and suffix_of(path) in TABLES and not table.stem.endswith(("_events", "_onsets")):
            table = None
        origin = plain(said.get("subject") or "P1"), plain(said.get("session") or "1"), said.get("run") or path.name
        files.append(Recorded(path, 0, 1, (table,) if table else (), *origin, table=table))
    return numbered(files)


# ---------------------------------------------------------------- MOABB


def known_to_moabb(name: str) -> DatasetDescription | None:
    """The project's own description of a data set of MOABB's, where it has one: its words, people and window."""
    return next((d for d in map(load_description, DATASETS) if d.moabb == name), None)


def moabb_dataset(name: str, raw_dir: Path | None) -> "moabb.datasets.base.BaseDataset":  # noqa: F821
    """A data set of MOABB's, which reads and downloads below `raw_dir` where that is given.

    Raises UserError where MOABB is not installed, or has no such data set.
    """
    if raw_dir:
        import mne

        raw_dir.mkdir(parents=True, exist_ok=True)
        settings = {*os.environ, *(mne.get_config() or {})}
        places = {key for key in settings if re.fullmatch(r"MNE_DATASETS_\w+_PATH", key)} | {"MNE_DATA"}
        os.environ |= dict.fromkeys(places, str(raw_dir.resolve()))
    os.environ.setdefault("MOABB_DOWNLOAD_PROVIDER", "upstream")  # else it asks a second host first, for minutes
    try:
        import moabb.datasets
        from moabb.datasets import fake
    except ImportError as error:
        hint = "pip install -r requirements-moabb.txt"
        raise UserError(f"moabb:{name}: MOABB is not installed ({error.name} is missing): {hint}") from None
    kind = getattr(moabb.datasets, name, None) or getattr(fake, name, None)
    if not isinstance(kind, type):
        known, asked = dir(moabb.datasets), re.sub(r"\W|_", "", name.lower())
        same = [one for one in known if one.lower().replace("_", "") == asked]
        same = same or [one for one in known if one[:3].lower() == asked[:3]][:8]
        others = ", ".join(same) or "BNCI2014_001, PhysionetMI and others, in its documentation"
        raise UserError(f"moabb:{name}: MOABB has no such data set; it has {others}")
    return kind()


def moabb_run(name: str, raw_dir: Path | None, subject: int, session: str, run: str) -> "mne.io.BaseRaw":  # noqa: F821
    """One run of a data set of MOABB's. Events are annotations with the classes' names."""
    import mne

    dataset = moabb_dataset(name, raw_dir)
    raw = _subject(dataset, subject)[session][run].copy()
    names = {code: event for event, code in dataset.event_id.items()}
    if len(mne.pick_types(raw.info, stim=True)):
        events = mne.find_events(raw, shortest_event=0, initial_event=True, verbose="ERROR")
        raw.set_annotations(mne.annotations_from_events(events, raw.info["sfreq"], names, raw.first_samp))
    return raw


_LAST: dict[tuple, dict] = {}  # the subject that was read last: its runs are asked for one after the other


def _subject(dataset, subject: int) -> dict:
    """{session: {run: recording}} of a person."""
    key = dataset.code, subject
    if key not in _LAST:
        _LAST.clear()
        with _whole_positions():
            _LAST[key] = dataset.get_data([subject])[subject]
    return _LAST[key]


@contextmanager
def _whole_positions() -> Iterator[None]:
    """Let MOABB read BNCI's files that hold the trials' samples as doubles: it takes them for indices as they are."""
    from moabb.datasets.bnci import base

    plain = base.loadmat

    def loadmat(*file, **how) -> dict:
        content = plain(*file, **how)
        for run in np.atleast_1d(content.get("data", [])):
            if hasattr(run, "trial"):
                run.trial = np.atleast_1d(run.trial).astype(int)
        return content

    base.loadmat = loadmat
    try:
        yield
    finally:
        base.loadmat = plain


def moabb_files(
    name: str, raw_dir: Path | None, subjects: Sequence[str] | None, people: Sequence[str]
) -> list[Recorded]:
    """All runs of a data set of MOABB's, which are read when they are asked for.

    people : sequence of str. Names by MOABB's order, of a data set that the project knows; else numbers are names.
    """
    dataset = moabb_dataset(name, raw_dir)
    name_of = {number: people[k] if people else f"{number}" for k, number in enumerate(dataset.subject_list)}
    wanted = subjects or list(name_of.values())
    if missing := [who for who in wanted if who not in name_of.values()]:
        raise UserError(f"--subjects {', '.join(missing)}: moabb:{name} has {', '.join(name_of.values())}")
    files, lacking, why = [], [], ""
    for number, who in name_of.items():
        if who not in wanted:
            continue
        try:
            sessions = _subject(dataset, number)
            there = dataset.data_path(number)
        except UserError:
            raise
        except Exception as error:  # no network, a site that is down, a damaged file: anything
            why = reason(error)
            lacking.append(who)
            continue
        there = [there] if isinstance(there, (str, Path)) else there or []
        paths = [path for path in map(Path, there) if path.is_file()]
        for session, runs in sessions.items():
            for run in runs:
                opened = partial(moabb_run, name, raw_dir, number, session, run)
                path = paths[0] if paths else Path(f"moabb-{name}-{who}-{session}-{run}")
                files.append(Recorded(path, 0, 1, tuple(paths[1:]), who, plain(str(session)), str(run), opened))
    if lacking and (not files or subjects):
        raise UserError(f"moabb:{name}: {', '.join(lacking)} cannot be had ({why})")
    if lacking:
        print(f"notice: {', '.join(lacking)} cannot be had and are left out ({why})")
    return numbered(files)
