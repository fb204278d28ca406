"""Damaged files: what the project reads, of every kind, is damaged by seed and read in a process of its own.

    python -m tests.faults.mutations PLACES.json FOLDER --number 3000 --seed 7
    python -m tests.faults.mutations PLACES.json FOLDER --seed 7 --only "store:31"      # one of them again

PLACES.json names what `conftest.py` makes (see `Places`). A damaged file may do no harm, or be refused in one line.
It may give another result where its format has no checksum. It may not end in a traceback or a signal, or never, run
code, write elsewhere, or take 2 GB more than the healthy file. `test_mutations.py` runs this; a mutation depends on
nothing but the seed, its kind, its number and the healthy file.
"""

import argparse
import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults import kinds, seen_kinds
from tests.faults.damage import RAN, damage
from tests.faults.kinds import Kind, digest
from tests.faults.places import Places
from tests.faults.reading import not_reached, reached_by
from utils.paths import ROOT
from utils.script import run_script, start_script

KINDS = kinds.KINDS | seen_kinds.KINDS
LIMIT = 60.0  # seconds for one file
MORE = 2 << 30  # bytes of memory that a damaged file may take more than the healthy one
MEMORY = 6 << 30  # bytes of address space for one file, besides what the process has: a crash before the machine's
LONGEST = 2000  # characters of a refusal

# ---------------------------------------------------------------- one file in a process of its own

SAME, REFUSED, OTHER = "same result", "refused", "other result"
BAD = ("traceback", "signal", "hang", "poor refusal", "wrote elsewhere", "ran code", "memory")
CLASSES = (SAME, REFUSED, OTHER, *BAD)


@dataclass
class Outcome:
    """What came of reading a file: one of CLASSES, and what was said."""

    kind: str
    told: str = ""
    seconds: float = 0.0


def read_apart(
    read: Callable[[], object],
    folder: Path,
    healthy: str | None,
    file: str = "",
    limit: float = LIMIT,
    most: float = float("inf"),
) -> Outcome:
    """Read in a forked child, as a script does, and class what comes of it.

    folder : Path. The only place that may be written to.
    healthy : str, optional. Digest of what the healthy files give.
    file : str. The damaged one; a refusal has to name it, or the folder, or something in the folder.
    most : float. Bytes by which the child, or a process that it started, may grow.
    """
    started, before = time.monotonic(), memory("VmRSS")
    said = folder / "said.txt"
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _read_and_leave(read, folder, said, sink)
    os.close(sink)
    told, hangs = b"", False
    while True:
        left = started + limit - time.monotonic()
        ready, _, _ = select.select([source], [], [], max(left, 0))
        part = os.read(source, 1 << 16) if ready else b""
        if not part:
            hangs = not ready
            break
        told += part
    os.close(source)
    if hangs:
        os.kill(child, signal.SIGABRT)  # it says where it was
        time.sleep(0.5)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # it had no group of its own yet
            os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    outcome = _classed(told, status, hangs, said, (str(folder), Path(file).name or str(folder)), healthy)
    grew = 1024 * usage.ru_maxrss - before
    if (folder / "home" / RAN).exists():
        outcome = Outcome("ran code", outcome.told)
    elif grew > most and outcome.kind in (SAME, REFUSED, OTHER):
        outcome = Outcome("memory", f"{grew / 2**30:.1f} GB more, {outcome.kind}\n{outcome.told}")
    outcome.seconds = time.monotonic() - started
    return outcome


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`; 0 where the system does not say."""
    status = Path("/proc/self/status")
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", status.read_text())[1]) if status.exists() else 0


def forget_peak() -> None:
    """Begin the most memory anew."""
    if (peaks := Path("/proc/self/clear_refs")).exists():
        peaks.write_text("5")


def _classed(told: bytes, status: int, hangs: bool, said: Path, names: tuple, healthy: str | None) -> Outcome:
    text = said.read_text(errors="replace") if said.exists() else ""
    if hangs:
        return Outcome("hang", text[-4000:])
    if os.WIFSIGNALED(status):
        return Outcome("signal", f"{signal.Signals(os.WTERMSIG(status)).name}\n{text[-4000:]}")
    if not told:
        return Outcome("traceback", f"it left with {status} and said nothing\n{text[-4000:]}")
    found = json.loads(told)
    if found["elsewhere"]:
        return Outcome("wrote elsewhere", "\n".join(found["elsewhere"][:5]))
    if "traceback" in found:
        return Outcome("traceback", found["traceback"])
    if "digest" in found:
        return Outcome(SAME if found["digest"] == healthy else OTHER, found["digest"])
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error:")]
    line = lines[0] if lines else text[-4000:]
    fine = found["code"] == 2 and len(lines) == 1 and text.rstrip().endswith(line.rstrip()) and "Traceback" not in text
    fine = fine and len(line) <= LONGEST and line.isprintable() and any(name in line for name in names)
    return Outcome(
        REFUSED if fine else "poor refusal",
        line if fine else f"code {found['code']}, {len(line)} characters: {line[:600]!r}",
    )


def brief(error: BaseException) -> str:
    """Type and message of an exception, and its last frames; of those in this project more."""
    frames = traceback.extract_tb(error.__traceback__)
    chosen = {*range(len(frames) - 3, len(frames)), *[k for k, f in enumerate(frames) if str(ROOT) in f.filename][-4:]}
    lines = [
        f"  {frames[k].filename}:{frames[k].lineno} {frames[k].name}: {frames[k].line}"
        for k in sorted(chosen)
        if k >= 0
    ]
    return "\n".join([f"{type(error).__name__}: {str(error)[:600]}", *lines])


def _read_and_leave(read: Callable, folder: Path, said: Path, sink: int) -> None:
    """The child's whole life."""
    found: dict = {"elsewhere": []}
    try:
        os.setsid()
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            os.environ[name] = str(folder / "home")
        (folder / "home").mkdir(exist_ok=True)
        tempfile.tempdir = None
        os.chdir(folder / "home")
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        faulthandler.enable(file=2)
        _watch_writing(folder, found["elsewhere"])
        start_script(lambda: None)
        run_script(lambda: found.update(digest=digest(read())))
    except SystemExit as stop:
        found["code"] = stop.code
    except BaseException as error:
        found["traceback"] = brief(error)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            data = memoryview(json.dumps(found, default=repr).encode())
            while data:
                data = data[os.write(sink, data) :]
            os._exit(0)


def _watch_writing(folder: Path, elsewhere: list[str]) -> None:
    """Note what Python code of this process writes, makes or removes outside a folder."""
    own = os.path.realpath(folder)
    one, two = slice(1), slice(2)  # which arguments are paths
    paths = {"os.remove": one, "os.rmdir": one, "os.mkdir": one, "os.truncate": one, "os.chmod": one, "os.rename": two,
             "os.link": two, "os.symlink": slice(1, 2)}  # fmt: skip
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, mode, how = args
            if set(mode or "") & set("wax+") or (how or 0) & writing:
                note(event, path, "")
        elif event in paths:
            folder_fd = args[-1] if event != "os.truncate" and isinstance(args[-1], int) else -1
            base = f"/proc/self/fd/{folder_fd}" if folder_fd >= 0 else ""
            for path in args[paths[event]]:
                note(event, path, base)

    def note(event: str, path: object, base: str) -> None:
        if isinstance(path, int):  # a descriptor of what is open already
            return
        head, tail = os.path.split(os.path.join(base, os.fsdecode(path)))
        found = os.path.join(os.path.realpath(head), tail)
        found = os.path.realpath(found) if event == "open" else found  # through a link
        if not found.startswith((f"{own}/", "/dev/null", "/dev/tty", "/proc/self")) and found != own:
            elsewhere.append(f"{event} {found}")

    sys.addaudithook(hook)


# ---------------------------------------------------------------- many of them


@dataclass
class Mutation:
    """One damaged file: how to make it again, and what came of it."""

    kind: str
    number: int
    file: str
    way: str
    outcome: Outcome

    def __str__(self) -> str:
        return f'--only "{self.kind}:{self.number}": {self.file}, {self.way}: {self.outcome.kind}\n{self.outcome.told}'


@dataclass
class Healthy:
    """Healthy files of a kind.

    files : list of str. Those that are damaged, in the folder. digest : str. What they give.
    grew : int. Bytes that reading them took.
    """

    folder: Path
    files: list[str]
    digest: str
    grew: int


class Bench:
    """Healthy files of all kinds in a folder, and what they give; reads damaged ones.

    reached : set. What code reading them runs, see `reading.reached_by`.
    """

    def __init__(self, folder: Path, at: Places, names: Sequence[str]):
        self.folder, self.at, self.reached = folder, at, set()
        self.healthy: dict[str, Healthy] = {}
        made: dict[tuple, tuple[Path, str, int]] = {}  # kinds that differ in the damage alone share their files
        for name in names:
            kind = KINDS[name]
            if (kind.make, kind.read) not in made:
                made[kind.make, kind.read] = self.read_healthy(kind, name)
            place, found, grew = made[kind.make, kind.read]
            fitting = {path for pattern in kind.files.split() for path in place.rglob(pattern) if path.is_file()}
            if not fitting:
                raise RuntimeError(f"no file to damage of the kind {name}")
            self.healthy[name] = Healthy(place, sorted(str(path.relative_to(place)) for path in fitting), found, grew)
        sys.stdout.flush()
        self.before = self.listing()

    def read_healthy(self, kind: Kind, name: str) -> tuple[Path, str, int]:
        """The folder of a kind's healthy files, what they give, and the bytes that reading them took."""
        place = self.folder / "healthy" / re.sub(r"[^a-z0-9]+", "_", name.lower())
        place.mkdir(parents=True)
        kind.make(place, self.at)
        work = self.laid_out(place, {})
        forget_peak()
        before = memory("VmRSS")
        found = reached_by(lambda: kind.read(work, self.at), self.reached)  # imports what the children need, as well
        grew = memory("VmHWM") - before
        shutil.rmtree(work.parent)
        return place, digest(found), grew

    def laid_out(self, healthy: Path, damaged: dict[str, bytes]) -> Path:
        """A folder to read from: copies; files of more than 1 MB that nobody damages are links."""
        work = self.folder / "work/in"
        shutil.rmtree(work.parent, ignore_errors=True)
        work.mkdir(parents=True)
        for path in healthy.rglob("*"):
            inside = str(path.relative_to(healthy))
            if path.is_dir():
                (work / inside).mkdir(exist_ok=True)
                continue
            (work / inside).parent.mkdir(parents=True, exist_ok=True)
            if inside in damaged:
                (work / inside).write_bytes(damaged[inside])
            elif path.stat().st_size > 1 << 20 and path.suffix != ".mdb":
                (work / inside).symlink_to(path)
            else:
                shutil.copy(path, work / inside)
        return work

    def listing(self) -> dict[str, tuple]:
        """The healthy files, and what lies beside the work folder, with sizes and times."""
        places = (self.folder, self.folder / "work")
        found = [*(self.folder / "healthy").rglob("*"), *(path for place in places for path in place.glob("*"))]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.is_file()}

    def mutation(self, seed: int, name: str, number: int) -> Mutation:
        """Damage one file of a kind and read it."""
        kind, healthy = KINDS[name], self.healthy[name]
        place, file = healthy.folder, healthy.files[(number + seed) % len(healthy.files)]
        rng = np.random.default_rng([seed, zlib.crc32(f"{name} {file}".encode()), number])
        way, data = damage(rng, (place / file).read_bytes(), file, kind.damage)
        work = self.laid_out(place, {file: data})
        outcome = read_apart(lambda: kind.read(work, self.at), work, healthy.digest, file, most=healthy.grew + MORE)
        made = Mutation(name, number, file, way, outcome)
        if is_bad(made):
            kept = self.folder / "bad" / f"{place.name}-{seed}-{number}-{Path(file).name}"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(data)
            outcome.told += f"\nthe damaged file is kept: {kept}"
        return made


def is_bad(mutation: Mutation) -> bool:
    """Whether this must not happen."""
    return mutation.outcome.kind in BAD or (mutation.outcome.kind == OTHER and KINDS[mutation.kind].checksum)


def table(mutations: Sequence[Mutation]) -> str:
    """Counts by kind and class; seconds."""
    counts = Counter((m.kind, m.outcome.kind) for m in mutations)
    seconds = Counter()
    for m in mutations:
        seconds[m.kind] += m.outcome.seconds
    width = max(map(len, KINDS)) + 2
    heads = {name: len(name) + 2 for name in (*CLASSES, "all", "s each")}
    lines = [" " * width + "".join(f"{name:>{size}}" for name, size in heads.items())]
    for kind in [*dict.fromkeys(m.kind for m in mutations), "all"]:
        row = {name: sum(counts[k, name] for k in KINDS if kind in (k, "all")) for name in CLASSES}
        n, took = sum(row.values()), sum(seconds[k] for k in KINDS if kind in (k, "all"))
        row |= {"all": n, "s each": f"{took / n:.2f}"}
        star = "*" if kind != "all" and KINDS[kind].checksum else " "
        lines.append(
            f"{kind:{width - 1}}{star}" + "".join(f"{row[name] or '·':>{size}}" for name, size in heads.items())
        )
    return "\n".join([*lines, "* with a checksum: no other result is allowed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", help="JSON file: where the fixtures' files are")
    parser.add_argument("folder", help="an empty folder to work in")
    parser.add_argument("--number", type=int, default=300, help="mutations, spread evenly over kinds and their files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="KIND or KIND:NUMBER")
    parser.add_argument(
        "--quick", action="store_true", help="leave out kinds that are slow, or of which faults are known"
    )
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    only, _, one = (args.only or "").partition(":")
    known = {name: kind.aside for name, kind in KINDS.items() if kind.aside}
    names = [only] if only else [name for name in KINDS if not (args.quick and name in known)]
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    out, said = os.dup(1), os.open(folder / "healthy.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)  # what the healthy files make the readers say
    bench = Bench(folder, Places(**json.loads(Path(args.places).read_text())), names)
    os.dup2(out, 1)
    sys.stdout.reconfigure(errors="backslashreplace")  # a message may hold half a character
    took = f"{time.monotonic() - started:.0f} s, {time.process_time():.0f} s of a core"
    n_files = sum(len(of.files) for of in bench.healthy.values())
    print(f"{len(names)} kinds, {n_files} files, made and read in {took}; seed {args.seed}", flush=True)
    for name in known.keys() - set(names) if args.quick else ():
        print(f"left out, see {Path(seen_kinds.__file__).name}: {name}: {known[name]}")
    jobs = [(names[k % len(names)], k // len(names)) for k in range(args.number)]
    mutations = []
    for job in [(only, int(one))] if one else jobs:
        mutations.append(bench.mutation(args.seed, *job))
        if is_bad(mutations[-1]):
            print(f"\n--seed {args.seed} {mutations[-1]}", flush=True)
    print(f"\n{table(mutations)}")
    after = bench.listing()
    touched = sorted(name for name in {*after, *bench.before} if after.get(name) != bench.before.get(name))
    for name in touched:
        print(f"{name} was changed, made or removed by a reader")
    files = {name: of.files for name, of in bench.healthy.items()}
    (folder / "found.json").write_text(json.dumps({"files": files, "not_reached": sorted(not_reached(bench.reached))}))
    sys.exit(1 if touched or any(map(is_bad, mutations)) else 0)


if __name__ == "__main__":
    main()
