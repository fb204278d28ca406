"""What the benchmarks share: sides that take turns, ratios with their spread, memory of other processes, the machine."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.recording import Trial
from datasets.store import write_store
from datasets.things_dataset import ELECTRODES

ROOT = Path(__file__).resolve().parent.parent
MEMORY = {"VmHWM": "peak", "RssAnon": "private"}  # of /proc/PID/status: with pages of mapped files, and without


def new_parser(doc: str, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with --rounds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def train_seconds(command: Sequence[object], folder: Path) -> list[float]:
    """Run a training script; what the training of each epoch took, as timing.jsonl says. The first warms up."""
    run(command)
    lines = (folder / "timing.jsonl").read_text().splitlines()
    return [json.loads(line)["train_seconds"] for line in lines][1:]


# ---------------------------------------------------------------- memory


def run(command: Sequence[object]) -> dict[str, float]:
    """Run a script of the project to its end: seconds, and memory in GB at its highest, "peak" and "private".

    private : without pages of mapped files, which the system takes back when it needs them; looked at every 50 ms.
    """
    command = [sys.executable, *map(str, command)]
    started, most = time.perf_counter(), dict.fromkeys(MEMORY.values(), 0.0)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        os.set_blocking(process.stderr.fileno(), False)
        said = ""
        while process.poll() is None:
            said += process.stderr.read() or ""
            most = {name: max(most[name], value) for name, value in memory(process.pid).items()}
            time.sleep(0.05)
        said += process.stderr.read() or ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:3])} … ended with {process.returncode}:\n{said[-2000:]}")
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
    """What a function gives in a process of its own, and that process's peak memory in GB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (function, arguments))


def _with_peak(function: Callable, arguments: tuple) -> tuple[object, float]:
    return function(*arguments), memory()["peak"]


# ---------------------------------------------------------------- data


def things_store(folder: Path, n: int, n_times: int = 250, repetitions: int = 4, width: int = 1024) -> Path:
    """A THINGS-like store of noise, its CLIP embeddings beside it as clip.npz: 10 images a concept, all by one person.

    n : int. Trials. Of 20 concepts one validates, and some test trials are there.
    """
    rng, per_concept = np.random.default_rng(0), 10 * repetitions
    n_concepts = max(4, -(-n // per_concept))
    training = [f"training_images/{k:05d}_c{k}/c{k}_{j}.jpg" for k in range(n_concepts) for j in range(10)]
    test = [f"test_images/{k:05d}_u{k}/u{k}.jpg" for k in range(20)]
    shown = [(image, 1) for image in training for _ in range(repetitions)][:n] + [(image, 2) for image in test]
    classes = [f"c{k}" for k in range(n_concepts)] + [f"u{k}" for k in range(20)]

    def parts() -> Iterator[list]:
        for start in range(0, len(shown), 1000):
            block = shown[start : start + 1000]
            x = rng.standard_normal((len(block), len(ELECTRODES), n_times), dtype=np.float32)
            yield [
                (Trial(f"sub-01-1-r{run}-t{start + k:06d}", classes.index(image.split("_")[-2].split("/")[0])
                       if run == 1 else n_concepts + int(image.split("/")[1][:5]), "sub-01", "1", run, start + k + 1,
                       image), x[k])
                for k, (image, run) in enumerate(block)
            ]  # fmt: skip

    meta = {"sfreq": 250.0, "dataset": "THINGS", "electrodes": list(ELECTRODES), "classes": classes, "units": "no unit"}
    meta |= {"preprocessing": {"tmin": 0.0, "tmax": n_times / 250}, "options": {"images": {}}, "simulated": True}
    write_store(folder / "store", meta, parts())
    rows = rng.standard_normal((len(training) + len(test), width), dtype=np.float32)
    np.save(folder / "clip.npy", {"img_features": rows, "img": np.array(training + test)})
    return folder / "store"
