"""Many runs of one training script: which there are, which are finished, and running those that are not."""

import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from utils.engines import HEAD, PAUSE, TOOK
from utils.errors import UserError, reason

RUN = "{run}"  # in a command: the run's own name, as for the run of another sweep that it goes on from
CONTROL = "_shuffled"  # behind a run's name: evaluate.py looks for its control there


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep."""

    name: str  # its folder below the sweep's
    folder: Path
    command: tuple[str, ...]  # what makes it
    setting: str  # what is varied, in words; runs of one setting share tokens and targets

    @property
    def log(self) -> Path:
        """Beside the folder, which has to be empty when a run begins."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def finished(self) -> bool:
        return (self.folder / "results.json").exists()

    @property
    def has_begun(self) -> bool:
        """Whether its tokens and targets are cached: training scripts write run.json when they have all they read."""
        return (self.folder / "run.json").exists()

    def log_lines(self) -> list[str]:
        """What it said, without empty lines."""
        if not self.log.is_file():
            return []
        return [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]

    @property
    def last_line(self) -> str:
        return (self.log_lines() or ["it has written nothing"])[-1].strip()[:300]


def flags_of(command: Sequence[str]) -> set[str]:
    """The flags that a command's script has, as its -h says. UserError where there is no script that says it."""
    script = next((word for word in command if word.endswith(".py")), None)
    if script is None or not Path(script).is_file() or (command[0] != "python" and not shutil.which(command[0])):
        raise UserError(f"{' '.join(command)[:80]}: expected -- python SCRIPT FLAGS …, with a script that is there")
    said = subprocess.run([sys.executable, script, "-h"], capture_output=True, text=True)
    if said.returncode:
        raise UserError(f"{script} -h fails; it must say its flags: {' '.join(said.stderr.split())[-200:]}")
    return set(re.findall(r"(?<![\w-])--\w[\w-]*", said.stdout))


def list_runs(
    folder: Path,
    command: Sequence[str],
    known: set[str],
    protocols: Sequence[str] = (),
    seeds: Sequence[int] = (),
    varied: Sequence[Sequence[str]] = (),
    controls: bool = False,
) -> list[SweptRun]:
    """All runs of a sweep: FOLDER/FLAG-VALUE/PERSON_seedN, without the parts that are not asked for.

    command : sequence of str. The training script and its flags. known : set of str. The flags that the script has.
    varied : sequence of (flag, value, …). Flag without its dashes; one without values is left out and given in turn.
    controls : bool. Whether each run is there a second time, with shuffled labels.
    Raises UserError where the script has no such flag, or two runs would have one folder.
    """
    output = next((flag for flag in ("--output_dir", "--model_dir") if flag in known), None)
    if output is None:
        neither = f"{' '.join(command)[:80]} has neither --output_dir nor --model_dir"
        raise UserError(f"{neither}; expected a training script")
    needs = [f"--{flag}" for flag, *_ in varied] + ["--seed"] * bool(seeds) + ["--shuffle_labels"] * controls
    if missing := [flag for flag in needs if flag not in known]:
        raise UserError(f"the command's script has no {', '.join(missing)}; its -h lists what can be varied")
    if protocols and "--protocol" not in known and not any(RUN in word for word in command):
        raise UserError(f"the command's script takes no --protocol; write {RUN} where a person's run is to stand")
    if output in command:
        raise UserError(f"the command says {output}; leave it out, since each run has a folder of its own")
    kinds = {protocol.partition(":")[0] for protocol in protocols}
    if controls and ("--shuffle_labels" in command or "shuffle_labels" in (flag for flag, *_ in varied)):
        raise UserError("--controls adds --shuffle_labels to a second run of each; leave it out of the command")
    choices = [_choices(known, *flag_and_values) for flag_and_values in varied]

    parts, runs = (product(*choices), protocols or [""], seeds or [None], [False, True][: 1 + controls]), []
    for chosen, protocol, seed, control in product(*parts):
        setting = "_".join(name for name, _ in chosen)
        kind, _, person = protocol.partition(":")
        who = f"{kind}-{person}" if person and len(kinds) > 1 else person or kind
        name = "_".join(part for part in (_as_name(who), "" if seed is None else f"seed{seed}") if part)
        name = f"{setting}/{name}".strip("/") + CONTROL * control
        more = [word for _, words in chosen for word in words]
        more += ["--protocol", protocol] if protocol and "--protocol" in known else []
        more += ["--seed", str(seed)] if seed is not None else []
        more += ["--shuffle_labels"] * control + ["--resume"] * ("--resume" in known and "--resume" not in command)
        place = folder / name
        words = [word.replace(RUN, name) for word in command] + more + [output, str(place)]
        runs.append(SweptRun(name, place, tuple(words), setting))
    names = [run.name.removesuffix(CONTROL) and run.name for run in runs]
    if twice := [name for name in dict.fromkeys(names) if not name or names.count(name) > 1]:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        hint = "say --protocol, --seeds or --vary, and nothing twice"
        raise UserError(f"{twice[0] or folder}{more}: each run needs a name of its own; {hint}")
    return runs


def _choices(known: set[str], flag: str, *values: str) -> list[tuple[str, list[str]]]:
    """For each value of a flag its part of a folder's name, and its words; a value may be several words."""
    if not values:  # of what is on by default, without means --no-FLAG
        return [(f"no_{flag}", [f"--no-{flag}"] * (f"--no-{flag}" in known)), (flag, [f"--{flag}"])]
    return [(f"{flag}-{_as_name(value)}", [f"--{flag}", *shlex.split(value)]) for value in values]


def _as_name(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def check_commands(runs: Sequence[SweptRun]) -> None:
    """Raise UserError where a finished run was made by another command, as its log says."""
    for run in runs:
        *wanted, output, _ = run.command  # the log lies beside the folder, however the sweep's was spelled
        heads = [_words(line) for line in run.log_lines() if line.startswith(HEAD)] if run.finished else []
        made = [words[:-2] for words in heads if words[-2:-1] == [output] and Path(words[-1]).name == run.folder.name]
        if made and [w for w in made[-1] if w != "--resume"] != [w for w in wanted if w != "--resume"]:
            other = f"{run.folder} was made by another command ({run.log} says it)"
            raise UserError(f"{other}; choose another --output_dir")


def _words(line: str) -> list[str]:
    """The command that a log's line says; nothing where a script printed a line that begins alike, or it is cut off."""
    try:
        return shlex.split(line.removeprefix(HEAD))
    except ValueError:
        return []


def minutes_of(runs: Sequence[SweptRun]) -> float | None:
    """About how long one run takes: the median of those that are finished."""
    took = [re.fullmatch(rf"{TOOK}(\d+) s", run.last_line) for run in runs if run.finished]
    known = [float(seconds[1]) for seconds in took if seconds]
    return statistics.median(known) / 60 if known else None


def run_all(runs: Sequence[SweptRun], engine, folder: Path) -> Iterator[tuple[SweptRun, str]]:
    """Run what is not finished; yields each run when it has ended, and in words how it failed, "" where it did not.

    engine : of `utils.engines.ENGINES`. folder : Path. Where the commands run.
    The first run of a setting begins alone: it encodes and caches what the others then read. They begin when its
    run.json is there. Where this process is interrupted, the runs end as well.
    """
    waiting, running = [run for run in runs if not run.finished], {}
    cached = {run.setting for run in runs if run.has_begun}
    try:
        while waiting or running:
            cached |= {run.setting for run in running if run.setting not in cached and run.has_begun}
            begun, ready = {run.setting for run in running}, []
            for run in waiting:
                if run.setting in cached or run.setting not in begun:
                    ready.append(run)
                    begun.add(run.setting)
            ready = ready[: engine.slots - len(running)]
            if ready:
                waiting = [run for run in waiting if run not in ready]
                jobs = [(list(run.command), str(run.log.absolute()), str(folder.absolute())) for run in ready]
                running |= dict(zip(ready, engine.start(jobs), strict=True))
            time.sleep(PAUSE)
            for run in [run for run, job in running.items() if job.done()]:
                cached |= {run.setting} if run.has_begun else set()
                yield run, _failure(run, running.pop(run))
    finally:
        engine.stop(list(running.values()))


def _failure(run: SweptRun, job) -> str:
    """How a run failed, in words; "" where it did not."""
    try:
        code = job.result()
    except Exception as error:  # an engine's own: its worker was lost, its job cancelled
        return f"{reason(error)}; {run.last_line}"
    if code == 0:
        return "" if run.finished else f"it has left no results.json; {run.last_line}"
    return f"{f'signal {-code}' if code < 0 else f'exit code {code}'}: {run.last_line}"
