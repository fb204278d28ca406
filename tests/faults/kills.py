"""SIGKILL a command at random moments and at its renames, go on each time, and compare with the undisturbed result.

    python -m tests.faults.kills PLACES.json WORK --kills 20 --seed 0              # every command of every pipeline
    python -m tests.faults.kills PLACES.json WORK --kills 20 --seed 0 --only prior "guided pictures"

PLACES.json names what `conftest.py` makes (see `Places`). What a script imports is imported once; each run of it is a
fork of this process, so a run costs what it does and no imports. Prints one JSON object: kills, runs, differences,
leftovers, processes left, and how often each thing was done.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import psutil
import torch

from tests.faults.commands import Stage, stages
from tests.faults.places import Places
from utils.paths import ROOT

NOT_COMPARED = {"timing.jsonl"}  # says how long it took
# Of a run that was killed behind its last act. Its work is whole, and the same command may do it a second time.
LEFT_BY_A_KILL = {"left over: .lock", "left over: out/.lock", "left over: run/.lock", "left over: tables/.lock"}
UNASKED = "missing: cache/"
RENAMES = ("replace", "rename", "fsync", "unlink")  # of module os: the moments at which files appear, last and go


def lines(path: Path) -> int:
    """Lines of a file, 0 without one."""
    return len(path.read_text().splitlines()) if path.exists() else 0


# ---------------------------------------------------------------- one run, killed or not


def run(stage: Stage, work: Path, on: bool, log: Path, after: float | None = None, at: int | None = None) -> dict:
    """One run of the script in a fork: killed `after` seconds, or at the `at`-th rename, or left alone."""
    script, *flags = map(str, stage.command(work, on))
    calls = log / "calls.txt"
    before = calls.read_text().count("\n") if calls.exists() else 0
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        stage.inside()
        count_calls(stage, calls)
        count_renames(log / "renames.txt", at)
        sys.argv = [script, *flags]
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        (log / "modules.txt").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 98)
    if after is not None:
        while (
            time.monotonic() - started < after
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return {"killed": os.WIFSIGNALED(status), "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started, "processes": left_of(child),
            "cpu": usage.ru_utime + usage.ru_stime,
            "calls": (calls.read_text().count("\n") if calls.exists() else 0) - before,
            "renames": lines(log / "renames.txt")}  # fmt: skip


def left_of(session: int) -> int:
    """Processes of a session that are there 3 seconds after its first process has ended."""
    until = time.monotonic() + 3
    while True:
        alive = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                alive += os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.05)


def count_calls(stage: Stage, calls: Path) -> None:
    """Note each call of what must not be done twice; workers note theirs as well."""
    if not stage.counted:
        return
    owner, name = stage.counted
    plain = getattr(owner, name)

    def noted(*args, **kwargs):
        with open(calls, "a") as file:
            file.write("x\n")
        return plain(*args, **kwargs)

    noted.__module__, noted.__qualname__, noted.__name__ = plain.__module__, plain.__qualname__, plain.__name__
    setattr(owner, name, noted)


def count_renames(log: Path, at: int | None) -> None:
    """Number the moments at which files appear, last and go; die at one: before it where even, else behind it."""
    log.unlink(missing_ok=True)
    mine, n = os.getpid(), 0

    def wrap(plain):
        def call(*args, **kwargs):
            nonlocal n
            if os.getpid() != mine:
                return plain(*args, **kwargs)
            n += 1
            number = n
            if at is None:
                with open(log, "a") as file:
                    file.write(f"{plain.__name__}\n")
            elif number == at and at % 2 == 0:
                os.kill(mine, signal.SIGKILL)
            result = plain(*args, **kwargs)
            if number == at:
                os.kill(mine, signal.SIGKILL)
            return result

        return call

    for name in RENAMES:
        setattr(os, name, wrap(getattr(os, name)))


# ---------------------------------------------------------------- many kills


def result_of(stage: Stage, work: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones as well, the folders' names, and what else the stage has left."""
    found = {f"kept: {name}": hashlib.sha256(content).hexdigest() for name, content in stage.kept().items()}
    for path in sorted(work.rglob("*")):
        if path.name not in NOT_COMPARED:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            found[str(path.relative_to(work))] = content
    return found


class Study:
    """Commands, killed in a folder; what one leaves undisturbed is made once, for those that read it as well."""

    def __init__(self, folder: Path, at: Places):
        self.folder, self.undisturbed = folder, cache(self.undisturbed)
        self.stages = stages(at, self.result)

    def places(self, name: str) -> tuple[Path, Path, Path]:
        """Where a command works, where it is logged, and where its undisturbed result is kept."""
        base = self.folder / name.replace(" ", "_")
        return base / "work", base / "log", base / "whole"

    def fresh(self, name: str) -> None:
        """An empty work folder, filled with what the command starts from."""
        for folder in self.places(name)[:2]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.stages[name].start(self.places(name)[0])

    def result(self, name: str) -> Path:
        """The work folder of a command that ran undisturbed."""
        self.undisturbed(name)
        return self.places(name)[2]

    def undisturbed(self, name: str) -> tuple[dict, dict[str, str]]:
        """What a run took, and what it left."""
        stage, (work, log, whole) = self.stages[name], self.places(name)
        for _ in range(1 + stage.warms):
            self.fresh(name)
            importlib.import_module(Path(stage.command(work, False)[0]).stem)  # else its imports are of what it takes
            done = run(stage, work, False, log)
            if done["code"] != 0:
                said = (log / "output.txt").read_text()[-2000:]
                raise RuntimeError(f"{name}: the undisturbed run ended with {done['code']}: {said}")
            for module in (log / "modules.txt").read_text().splitlines():
                with contextlib.suppress(Exception):  # some go by another name
                    importlib.import_module(module)
        shutil.copytree(work, whole, symlinks=True)
        return done, result_of(stage, work)

    def killed(self, name: str, kills: int, seed: int) -> dict:
        """Kill, go on, compare."""
        stage, (work, log, _) = self.stages[name], self.places(name)
        whole, expected = self.undisturbed(name)
        rng, faults = random.Random(f"{seed} {name}"), []
        report = Counter(kills=0, runs=0, at_renames=0, processes_left=0, cpu=whole["cpu"])
        first = rng.randint(0, 1)  # at a rename, or at any moment
        seconds, n_calls, n_done = whole["seconds"], whole["calls"], stage.done(self.result(name))
        while report["kills"] < kills:
            self.fresh(name)
            here, calls, on, whole_again = 0, 0, False, 0
            while True:
                report["runs"] += 1
                last = report["kills"] >= kills
                by_rename = not last and report["kills"] % 2 == first and whole["renames"]
                at_rename = {"at": rng.randint(1, max(1, whole["renames"]))}
                when = at_rename if by_rename else {"after": rng.uniform(0, 0.8 * seconds)}
                done = run(stage, work, on, log, **({} if last else when))
                calls, on = calls + done["calls"], True
                report["processes_left"] += done["processes"]
                report["cpu"] += done["cpu"]
                if not done["killed"]:
                    seconds = seconds if here else min(seconds, done["seconds"])  # the first run read its files anew
                    break
                here += 1
                report["kills"] += 1
                report["at_renames"] += bool(by_rename)
                whole_again += set(differences(expected, result_of(stage, work))) <= LEFT_BY_A_KILL
            said = (log / "output.txt").read_text()
            finished = "is already there" in said[-300:]  # it was killed behind its last rename
            if done["code"] != 0 and not finished:
                faults.append(f"a run that went on ended with {done['code']}: {said[-2000:]}")
            apart = differences(expected, result_of(stage, work))
            # what a cache lacks nobody has asked for again; whatever is there is compared
            if [one for one in apart if not one.startswith(UNASKED)]:
                faults.append(f"after {here} kills: {apart}")
            if stage.counted and calls > (1 + whole_again) * n_calls + here * stage.at_once:
                faults.append(f"{calls} calls after {here} kills, {n_calls} in an undisturbed run")
            if stage.done(work) > n_done + here:
                faults.append(f"{stage.done(work)} epochs after {here} kills, {n_done} in an undisturbed run")
            report["calls"] += calls
            report["chains"] += 1
        if faults:  # is it the kill?
            self.fresh(name)
            run(stage, work, False, log)
            if apart := differences(expected, result_of(stage, work)):
                faults.append(f"the same command twice, without a kill: {apart}")
        if report["processes_left"]:
            faults.append(f"{report['processes_left']} processes left")
        return {"faults": faults, "calls_undisturbed": n_calls, "seconds_undisturbed": round(seconds, 2), **report,
                "cpu": round(report["cpu"], 2)}  # fmt: skip


def differences(expected: dict, found: dict) -> list[str]:
    """Files that are missing, too many or different."""
    return [f"{'missing' if name not in found else 'left over' if name not in expected else 'different'}: {name}"
            for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", type=Path, help="JSON file: where the fixtures' files are")
    parser.add_argument("work", type=Path, help="an empty folder to work in")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs a command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--quick", action="store_true", help="leave out what is slow")
    parser.add_argument("--only", nargs="+", help="which commands (default: all)")
    args = parser.parse_args()
    study, reports = Study(args.work.resolve(), Places(**json.loads(args.places.read_text()))), {}
    for name in args.only or [name for name, stage in study.stages.items() if not (args.quick and stage.slow)]:
        started = time.monotonic()
        reports[name] = study.killed(name, args.kills, args.seed)
        reports[name]["seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps({name: reports[name]}), file=sys.stderr, flush=True)
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
