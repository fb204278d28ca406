"""What several tests need: the real command lines, a small demo, and the real recordings where they are at hand."""

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may be fetched
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared():
    """The folder with real recordings and golden vectors."""
    folder = os.environ.get("EEG2IMAGE_SHARED")
    if not folder:
        pytest.skip("EEG2IMAGE_SHARED is not set")
    return Path(folder)


@dataclass
class Finished:
    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line on stderr that says what is wrong; progress bars aside."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def script(capfd, monkeypatch):
    """Run a script's real command line inside this process (importing the libraries anew takes many seconds)."""

    def run(name: str, *args) -> Finished:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return Finished(code, out, err)

    return run


def run_process(name: str, *args, cwd=None, **options) -> Finished:
    """Run a script as a user does, in a process of its own."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, **options)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def process():
    return run_process


@dataclass
class Demo:
    raw: Path
    store: Path
    csbrain: Path
    llm: Path
    diffusion: Path

    def training(self, model_dir, **flags) -> list[str]:
        """finetune_eeg_llm.py's arguments for a short run."""
        flags = {
            "downstream_dataset": "BCICIV2a", "datasets_dir": self.store, "model_dir": model_dir,
            "foundation_dir": self.csbrain, "llm": self.llm, "token_pooling": "hemisphere", "epochs": 2,
            "warmup_epochs": 1, "batch_size": 8, "gradient_accumulation_steps": 2, "cuda": -1,
        } | flags  # fmt: skip
        return [part for name, value in flags.items() for part in flag(name, value)]

    def generation(self, model_dir, output_dir, **flags) -> list[str]:
        """generate.py's arguments."""
        flags = {
            "datasets_dir": self.store, "foundation_dir": self.csbrain, "projection_dir": model_dir,
            "image_model": self.diffusion, "output_dir": output_dir, "num_samples": 4, "image_steps": 4,
            "image_size": 64, "cuda": -1, "generate_images": True,
        } | flags  # fmt: skip
        return [part for name, value in flags.items() for part in flag(name, value)]


def flag(name: str, value) -> list[str]:
    if value is True:
        return [f"--{name}"]
    return [] if value is None else [f"--{name}", str(value)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    """A small embedded default, made by the real command lines: 24 trials a recording."""
    folder = tmp_path_factory.mktemp("demo")
    made = run_process(
        "prepare_demo.py", "--data_dir", folder / "data", "--pth_dir", folder / "pth", "--trials_per_run", 4,
        "--llm_steps", 120,
    )  # fmt: skip
    assert made.code == 0, made.err
    raw, store = folder / "data/BCICIV2a/raw", folder / "data/BCICIV2a/processed_lmdb"
    stored = run_process("prepare_data.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store)
    assert stored.code == 0, stored.err
    pth = folder / "pth"
    return Demo(raw, store, pth / "CSBrain.pth", pth / "TinyLlama-1.1B-Chat-v1.0", pth / "stable-diffusion-2-1")


@pytest.fixture(scope="session")
def trained(demo, tmp_path_factory) -> Path:
    """A short training run on the demo."""
    model_dir = tmp_path_factory.mktemp("runs") / "run"
    done = run_process("finetune_eeg_llm.py", *demo.training(model_dir, epochs=3))
    assert done.code == 0, done.err
    return model_dir
