"""What the benchmarks share: sides that take turns, ratios and their spread, memory of processes, the machine."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.recording import Trial
from datasets.store import write_store
from datasets.things_dataset import ELECTRODES
from utils.script import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
keep_freed_memory()  # as in the scripts, so that both sides of a ratio have it
MEMORY = {"VmHWM": "peak", "RssAnon": "private"}  # of /proc/PID/status: with pages of mapped files, and without


def new_parser(doc: str, rounds: int | None = 5) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with --rounds where there are any."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"repetitions of each side (default: {rounds})")
    return parser


def machine() -> str:
    """Processor, cores, threads of PyTorch and its version."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    name, load = (names or [platform.machine()])[0], os.getloadavg()[0]
    threads = f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, {threads}, load {load:.1f} at the start"


# ---------------------------------------------------------------- time


def in_turns(sides: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round. A round that is not counted warms up; who begins changes by round."""
    seconds, names = {name: [] for name in sides}, list(sides)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            sides[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and least to most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The ratio of two sides, round by round: median, and least to most."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def around(command: Sequence[object], folder: Path, sides: Mapping[str, Callable], rounds: int) -> tuple[list, list]:
    """Seconds of a training script's epochs, and of other sides, half of them before the script and half behind it.

    command : which trains `rounds` + 1 epochs into `folder`; the first warms up. What the training of each took, its
        timing.jsonl says.
    """
    before = in_turns(sides, -(-rounds // 2))
    run(command)
    lines = (folder / "timing.jsonl").read_text().splitlines()
    after = in_turns(sides, rounds // 2)  # a machine's pace drifts
    return [json.loads(line)["train_seconds"] for line in lines][1:], [before[name] + after[name] for name in sides]


# ---------------------------------------------------------------- memory


def run(command: Sequence[object]) -> dict[str, float]:
    """Run a script of the project to its end: seconds, and memory in GB at its highest, "peak" and "private".

    private : without pages of mapped files, which the system takes back when it needs them; looked at every 50 ms.
    """
    command = [sys.executable, *map(str, command)]
    started, most = time.perf_counter(), dict.fromkeys(MEMORY.values(), 0.0)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            most = {name: max(most[name], value) for name, value in memory(process.pid).items()}
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{Path(command[1]).name} ended with {process.returncode}:\n{said.read()[-2000:]}")
    return most | {"seconds": time.perf_counter() - started}


def memory(pid: int | str = "self") -> dict[str, float]:
    """GB that a process takes (Linux); zeros of one that has ended."""
    found = dict.fromkeys(MEMORY.values(), 0.0)
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in MEMORY:
                found[MEMORY[name]] = int(value.split()[0]) * 1024 / 1e9
    except (OSError, ProcessLookupError):
        pass
    return found


def apart(function: Callable, *arguments) -> tuple[object, float]:
    """What a function gives in a process of its own, and the peak memory, GB, of that process or its largest child."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable, arguments: tuple) -> tuple[object, float]:
    given = function(*arguments)
    return given, max(memory()["peak"], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9)


# ---------------------------------------------------------------- data


def things_store(folder: Path, n: int, n_times: int = 250, width: int = 1024) -> tuple[Path, Path]:
    """A THINGS-like store of `n` training trials of noise, 4 an image, 10 images a concept; and CLIP-like embeddings.

    Of the concepts a sixth, 100 at most, validates; there are 20 test trials.
    """
    rng, n_images = np.random.default_rng(0), -(-n // 4)
    images = [f"training_images/{k // 10:05d}_c{k // 10}/c{k // 10}_{k % 10}.jpg" for k in range(n_images)]
    tested = [f"test_images/{k:05d}_u{k}/u{k}.jpg" for k in range(20)]
    shown = [(k // 40, 1, images[k // 4]) for k in range(n)] + [(-1 - k, 2, tested[k]) for k in range(20)]
    classes = [f"c{k}" for k in range(-(-n_images // 10))] + [f"u{k}" for k in range(19, -1, -1)]  # u0 is the last

    def parts() -> Iterator[list]:
        for start in range(0, len(shown), 1000):
            block = shown[start : start + 1000]
            x = rng.standard_normal((len(block), len(ELECTRODES), n_times), dtype=np.float32)
            part = []
            for k, (label, run, image) in enumerate(block):
                key = f"sub-01-1-r{run}-t{start + k:06d}"
                part.append((Trial(key, label % len(classes), "sub-01", "1", run, start + k + 1, image), x[k]))
            yield part

    meta = {"sfreq": 250.0, "dataset": "THINGS", "electrodes": list(ELECTRODES), "classes": classes, "units": "no unit"}
    write_store(folder / "store", meta | {"preprocessing": {"tmin": 0.0, "tmax": n_times / 250}}, parts())
    vectors = {
        f"{kind}_features": rng.standard_normal((n_images + 20, width), dtype=np.float32) for kind in ("img", "text")
    }
    np.save(folder / "clip.npy", vectors | {"img": np.array(images + tested)})
    return folder / "store", folder / "clip.npy"
