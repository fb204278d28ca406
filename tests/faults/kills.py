"""SIGKILL a stage at random moments and at its renames, go on each time, and compare with the undisturbed result.

    python tests/faults/kills.py preparation --demo FOLDER --work FOLDER --kills 20 --seed 0

What a script imports is imported once; each run of it is a fork of this process, so a run costs what it does and no
imports. Prints one JSON object: kills, runs, differences, leftovers, processes left, and how often each thing was done.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import psutil
import torch

import datasets.prepare
from models.eeg_llm import EEGLanguageModel
from models.image_generator import EEGImageGenerator
from stages.tokens import TokenCache

FEW = [f"A0{k}{session}.mat" for k in range(1, 5) for session in "TE"]  # recordings to prepare
NOT_COMPARED = {"timing.jsonl"}  # says how long it took
# Of a run that was killed behind its last act. Its work is whole, and the same command may do it a second time.
LEFT_BY_A_KILL = {"left over: .lock", "left over: out/.lock"}
RENAMES = ("replace", "rename", "fsync", "unlink")  # of module os: the moments at which files appear, last and go


@dataclass
class Stage:
    """A script's command, what it writes and what it must not do twice.

    start : callable. Fills an empty work folder.
    command : callable. Work folder, whether it goes on → script and arguments.
    results : callable. Work folder → folders whose files are compared.
    counted : (object, name of its function). What is counted, once a call.
    at_once : int. How many of them one kill may cost.
    """

    start: Callable[[Path], None]
    command: Callable[[Path, bool], list[str]]
    results: Callable[[Path], list[Path]]
    counted: tuple[object, str] | None
    at_once: int = 1
    done: Callable[[Path], int] = field(default=lambda work: 0)


def stages(demo: Path, store: Path, trained: Path, mapped_store: Path) -> dict[str, Stage]:
    """All stages on the small demo."""
    pth, raw = demo / "pth", demo / "data/BCICIV2a/raw"
    vi = demo / "data/VisualImagery"
    generate = ["generate.py", "--foundation_dir", pth / "CSBrain.pth", "--projection_dir", trained, "--image_model",
                pth / "stable-diffusion", "--cuda", "-1"]  # fmt: skip

    def few_files(work: Path) -> None:
        (work.parent / "raw").mkdir(exist_ok=True)
        for name in FEW:
            with contextlib.suppress(FileExistsError):
                (work.parent / "raw" / name).symlink_to(raw / name)

    def copy_store(work: Path) -> None:
        shutil.copytree(store, work / "processed_lmdb")

    def copy_decoded(work: Path) -> None:
        shutil.copytree(work.parent / "decoded", work / "out")

    return {
        "preparation": Stage(
            few_files,
            lambda work, on: ["prepare_data.py", "--skip_download", "--raw_dir", work.parent / "raw", "--lmdb_dir",
                              work / "store"],
            lambda work: [work], (datasets.prepare, "prepare_file"), at_once=4,
        ),
        "encoding": Stage(
            copy_store,
            lambda work, on: [*generate, "--datasets_dir", work / "processed_lmdb", "--split", "train", "--num_samples",
            1,
                              "--stage", "decode", "--max_new_tokens", 1, "--output_dir", work / "out"],
            lambda work: [work], (TokenCache, "_prepared"),
        ),
        "text training": Stage(
            lambda work: None,
            lambda work, on: ["finetune_eeg_llm.py", "--downstream_dataset", "BCICIV2a", "--datasets_dir", store,
                              "--model_dir", work / "run", "--foundation_dir", pth / "CSBrain.pth", "--llm",
                              pth / "TinyLlama-1.1B-Chat-v1.0", "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 8,
                              "--gradient_accumulation_steps", 1, "--max_new_tokens", 4, "--no_quantize", "--cuda", -1,
                              *(["--resume"] if on else [])],
            lambda work: [work], None,
            done=lambda work: lines(work / "run/timing.jsonl"),
        ),
        "mapper training": Stage(
            lambda work: None,
            lambda work, on: ["finetune_eeg_to_image.py", "--datasets_dir", mapped_store, "--stimuli_dir",
            vi / "stimuli",
                              "--output_dir", work / "run", "--foundation_dir", pth / "CSBrain.pth", "--clip_model",
                              pth / "clip", "--image_model", pth / "stable-diffusion", "--mapper", "mlp", "--epochs", 2,
                              "--warmup_epochs", 1, "--cuda", -1, *(["--resume"] if on else [])],
            lambda work: [work], None,
            done=lambda work: lines(work / "run/timing.jsonl"),
        ),
        "decoding": Stage(
            lambda work: None,
            lambda work, on: [*generate, "--datasets_dir", store, "--stage", "decode", "--num_samples", 12,
                              "--batch_size", 2, "--max_new_tokens", 8, "--output_dir", work / "out"],
            lambda work: [work], (EEGLanguageModel, "read"),
        ),
        "drawing": Stage(
            copy_decoded,
            lambda work, on: [*generate, "--datasets_dir", store, "--stage", "images", "--image_size", 64,
                              "--num_inference_steps", 2, "--output_dir", work / "out"],
            lambda work: [work], (EEGImageGenerator, "generate"),
        ),
    }  # fmt: skip


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
    _, status = os.waitpid(child, 0)
    return {"killed": os.WIFSIGNALED(status), "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started, "processes": left_of(child),
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


def digests(folders: list[Path]) -> dict[str, str]:
    """SHA-256 of every file, hidden ones as well, and the folders' names."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.name not in NOT_COMPARED:
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
                found[str(path.relative_to(folder))] = content
    return found


def fresh(stage: Stage, work: Path, log: Path) -> None:
    """An empty work folder, filled with what the stage starts from."""
    for folder in (work, log):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    stage.start(work)


def study(stage: Stage, base: Path, kills: int, seed: int) -> dict:
    """Kill, go on, compare."""
    rng, work, log = random.Random(seed), base / "work", base / "log"
    report = Counter(kills=0, runs=0, at_renames=0, processes_left=0)
    faults = []
    fresh(stage, work, log)
    whole = run(stage, work, False, log)
    if whole["code"] != 0:
        return {
            "faults": [f"the undisturbed run ended with {whole['code']}: {(log / 'output.txt').read_text()[-2000:]}"]
        }
    expected = digests(stage.results(work))
    for module in (log / "modules.txt").read_text().splitlines():
        with contextlib.suppress(Exception):  # some go by another name
            importlib.import_module(module)
    fresh(stage, work, log)
    again = run(stage, work, False, log)
    if digests(stage.results(work)) != expected:
        faults.append(f"the same command twice: {differences(expected, digests(stage.results(work)))}")
    seconds = min(whole["seconds"], again["seconds"])
    n_calls, n_done = whole["calls"], stage.done(work)
    n_renames = min(whole["renames"], again["renames"])  # the first run fills caches beside the store
    while report["kills"] < kills:
        fresh(stage, work, log)
        here, calls, on, whole_again = 0, 0, False, 0
        while True:
            report["runs"] += 1
            last = report["kills"] >= kills
            by_rename = not last and report["kills"] % 2 == 0
            when = {"at": rng.randint(1, n_renames)} if by_rename else {"after": rng.uniform(0, 0.8 * seconds)}
            done = run(stage, work, on, log, **({} if last else when))
            calls, on = calls + done["calls"], True
            report["processes_left"] += done["processes"]
            if not done["killed"]:
                break
            here += 1
            report["kills"] += 1
            report["at_renames"] += by_rename
            whole_again += set(differences(expected, digests(stage.results(work)))) <= LEFT_BY_A_KILL
        finished = "is already there" in (log / "output.txt").read_text()[-300:]  # it was killed behind its last rename
        if done["code"] != 0 and not finished:
            faults.append(f"a run that went on ended with {done['code']}: {(log / 'output.txt').read_text()[-2000:]}")
        if digests(stage.results(work)) != expected:
            faults.append(f"after {here} kills: {differences(expected, digests(stage.results(work)))}")
        if stage.counted and calls > (1 + whole_again) * n_calls + here * stage.at_once:
            faults.append(f"{calls} calls after {here} kills, {n_calls} in an undisturbed run")
        if stage.done(work) > n_done + here:
            faults.append(f"{stage.done(work)} epochs after {here} kills, {n_done} in an undisturbed run")
        report["calls"] += calls
        report["chains"] += 1
    if report["processes_left"]:
        faults.append(f"{report['processes_left']} processes left")
    return {"faults": faults, "calls_undisturbed": n_calls, "seconds_undisturbed": round(seconds, 2), **report}


def differences(expected: dict, found: dict) -> list[str]:
    """Files that are missing, too many or different."""
    return [f"{'missing' if name not in found else 'left over' if name not in expected else 'different'}: {name}"
            for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="which stages (default: all)")
    parser.add_argument("--demo", type=Path, required=True, help="folder with data/ and pth/ of prepare_demo.py")
    parser.add_argument("--store", type=Path, required=True, help="a small store of the BCIC-like recordings")
    parser.add_argument(
        "--vi_store", type=Path, required=True, help="a small store of the Visual-Imagery-like recordings"
    )
    parser.add_argument("--trained", type=Path, required=True, help="a run of finetune_eeg_llm.py")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs a stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    every = stages(args.demo, args.store, args.trained, args.vi_store)
    reports = {}
    for name in args.stages or every:
        base = args.work / name.replace(" ", "_")
        base.mkdir(parents=True)
        if name == "drawing":  # what is drawn
            decode = Stage(lambda work: None, every["decoding"].command, every["decoding"].results, None)
            fresh(decode, base / "once", base / "log")
            run(decode, base / "once", False, base / "log")
            (base / "once/out").rename(base / "decoded")
        started = time.monotonic()
        reports[name] = study(every[name], base, args.kills, args.seed) | {
            "seconds": round(time.monotonic() - started, 1)
        }
        print(json.dumps({name: reports[name]}), file=sys.stderr, flush=True)
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
