"""What several tests need: the real command lines, a small demo, and the real recordings where they are at hand."""

import contextlib
import gc
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from utils.locks import only_one
from utils.script import keep_freed_memory

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may be fetched
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores
keep_freed_memory()  # as the scripts do
ROOT = Path(__file__).resolve().parent.parent


def read_jsonl(path) -> list[dict]:
    """A JSON object a line."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def pytest_collection_modifyitems(items):
    """The longest file first: it makes what others read, while the second process tests what reads none of it."""
    items.sort(key=lambda item: item.path.name != "test_kills.py")


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_stays():
    """Libraries and what earlier modules hold are left out of garbage collection, which looks through all of it each
    time (0.5 s).
    """
    gc.collect()
    gc.freeze()


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
        for stream in ("stdout", "stderr"):  # a script wraps them for as long as it runs
            monkeypatch.setattr(sys, stream, getattr(sys, stream))
        capfd.readouterr()
        code, handlers = 0, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for number, handler in handlers.items():  # a script's own are for the rest of its process
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Finished(code, out, err)

    return run


def run_process(name: str, *args, cwd=None, **options) -> Finished:
    """Run a script as a user does, in a process of its own."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, **options)
    return Finished(done.returncode, done.stdout, done.stderr)


def run_inside(name: str, *args) -> Finished:
    """Run a script's command line inside this process, for what several tests need; an AssertionError shows how it
    failed.
    """
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    before, code = sys.argv, 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = [name, *map(str, args)]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code == 0, (name, out.getvalue()[-2000:], err.getvalue()[-2000:])
    return Finished(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def process():
    return run_process


@dataclass
class Demo:
    folder: Path
    raw: Path
    store: Path
    pth: Path

    @property
    def csbrain(self) -> Path:
        return self.pth / "CSBrain.pth"

    @property
    def llm(self) -> Path:
        return self.pth / "TinyLlama-1.1B-Chat-v1.0"

    @property
    def stimuli(self) -> Path:
        return self.raw.parent / "stimuli"

    def training(self, model_dir, **flags) -> list[str]:
        """finetune_eeg_llm.py's arguments for a short run on BCIC-like data."""
        return flat({
            "downstream_dataset": "BCICIV2a", "datasets_dir": self.store, "model_dir": model_dir,
            "foundation_dir": self.csbrain, "llm": self.llm, "token_pooling": "hemisphere", "epochs": 2,
            "warmup_epochs": 1, "batch_size": 8, "gradient_accumulation_steps": 2, "cuda": -1, "keep": ["all"],
        } | flags)  # fmt: skip

    def mapping(self, output_dir, **flags) -> list[str]:
        """finetune_eeg_to_image.py's arguments for a short run."""
        return flat({
            "datasets_dir": self.store, "stimuli_dir": self.stimuli, "output_dir": output_dir,
            "foundation_dir": self.csbrain, "clip_model": self.pth / "clip",
            "image_model": self.pth / "stable-diffusion",
            "mapper": "mlp", "epochs": 3, "warmup_epochs": 1, "lr": 1e-3, "joint_lr": 5e-4, "cuda": -1, "keep": ["all"],
        } | flags)  # fmt: skip

    def generation(self, model_dir, output_dir, **flags) -> list[str]:
        """generate.py's arguments."""
        return flat({
            "datasets_dir": self.store, "foundation_dir": self.csbrain, "projection_dir": model_dir,
            "image_model": self.pth / "stable-diffusion", "output_dir": output_dir, "num_samples": 4,
            "num_inference_steps": 4, "image_size": 64, "cuda": -1, "generate_images": True,
        } | flags)  # fmt: skip

    def vi_generation(self, output_dir, **flags) -> list[str]:
        """generate_vi.py's and generate_vi_eeg2img.py's arguments, without the checkpoint."""
        return flat({
            "datasets_dir": self.store, "stimuli_dir": self.stimuli, "foundation_dir": self.csbrain,
            "image_model": self.pth / "stable-diffusion", "output_dir": output_dir, "num_samples": 4,
            "num_inference_steps": 4, "image_size": 64, "cuda": -1,
        } | flags)  # fmt: skip


def small_store(
    path: Path, description, people, trials: int = 4, sfreq: float = 200.0, seconds: float = 1.0, seed: int = 0
):
    """A store of noise: every person has `trials` trials, of all classes in turn, in one session and run."""
    from datasets.recording import Trial
    from datasets.store import write_store

    rng = np.random.default_rng(seed)
    shape = len(description.montage.electrodes), round(seconds * sfreq)
    rows = [
        (Trial(f"{person}-T-r1-t{k:03d}", k % len(description.classes), person, "T", 1, k + 1),
         (20 * rng.standard_normal(shape)).astype(np.float32))
        for person in people for k in range(trials)
    ]  # fmt: skip
    write_store(path, {"sfreq": sfreq, "dataset": description.name}, [rows])
    return path


def flat(flags: dict) -> list[str]:
    parts = []
    for name, value in flags.items():
        if value is True:
            parts += [f"--{name}"]
        elif isinstance(value, list):
            parts += [f"--{name}", *map(str, value)]
        elif value is not None:
            parts += [f"--{name}", str(value)]
    return parts


SIZES = ("--trials_per_run", 4, "--trials_per_class", 1, "--llm_steps", 200, "--effect", 1, "--spread", 0)


def demo_in(folder: Path, room: str) -> Demo:
    return Demo(folder, folder / "data" / room / "raw", folder / "data" / room / "processed_lmdb", folder / "pth")


def make_demo(folder: Path, room: str, prepare: str) -> None:
    dataset = {"VisualImagery": "VI"}.get(room, room)
    demo = demo_in(folder, room)
    run_inside("prepare_demo.py", "--data_dir", folder / "data", "--pth_dir", demo.pth, "--datasets", dataset, *SIZES)
    stored = run_process(prepare, "--skip_download", "--raw_dir", demo.raw, "--lmdb_dir", demo.store)
    assert stored.code == 0, stored.err


def once(tmp_path_factory, name: str, make) -> Path:
    """A folder that `make(folder)` fills, once for all test processes of this session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with only_one(base / f".{name}.lock", "makes the same files"):
        if not (base / name / ".made").exists():
            make(base / name)
            (base / name / ".made").touch()
    return base / name


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    """A small embedded default, made by the real command lines: BCIC-like, 24 trials a recording."""
    folder = once(tmp_path_factory, "demo", lambda folder: make_demo(folder, "BCICIV2a", "prepare_data.py"))
    return demo_in(folder, "BCICIV2a")


@pytest.fixture(scope="session")
def few(demo, tmp_path_factory) -> Path:
    """Eight trials a person of the demo, 40 / 16 / 16, for what is slow."""
    from datasets.store import open_store, write_store

    def make(folder):
        store = open_store(demo.store)
        rows = [(t, store.read(t).copy()) for t in store.trials if t.session == "E" and t.run <= 2]
        write_store(folder / "processed_lmdb", {k: store.meta[k] for k in ("sfreq", "dataset", "electrodes")}, [rows])

    return once(tmp_path_factory, "few", make) / "processed_lmdb"


@pytest.fixture(scope="session")
def vi_demo(demo, tmp_path_factory) -> Demo:
    """The same for Visual Imagery: 10 trials a session, 300 / 60 / 60."""
    once(
        tmp_path_factory,
        "vi_demo",
        lambda folder: (folder.mkdir(), make_demo(demo.folder, "VisualImagery", "prepare_data_vi.py")),
    )
    return demo_in(demo.folder, "VisualImagery")


@pytest.fixture(scope="session")
def vi_few(vi_demo, tmp_path_factory) -> Path:
    """Four people of it, two that train and one each that validates and tests, for what is slow."""
    from datasets.store import open_store, write_store

    def make(folder):
        store = open_store(vi_demo.store)
        rows = [(t, store.read(t).copy()) for t in store.trials if t.subject in ("S01", "S02", "S17", "S20")]
        write_store(folder / "processed_lmdb", {"sfreq": store.sfreq, "dataset": "VI"}, [rows])

    return once(tmp_path_factory, "vi_few", make) / "processed_lmdb"


@pytest.fixture(scope="session")
def vi_pth(demo) -> Path:
    """The folder of tiny models."""
    return demo.pth


def train_once(tmp_path_factory, name: str, script: str, flags) -> Path:
    """The folder of a training run; `flags(folder)` are its arguments."""
    return once(tmp_path_factory, name, lambda folder: run_inside(script, *flags(folder)))


@pytest.fixture(scope="session")
def trained(demo, tmp_path_factory) -> Path:
    """A short training run on the demo."""
    return train_once(tmp_path_factory, "trained", "finetune_eeg_llm.py", lambda run: demo.training(run, epochs=3))


@pytest.fixture(scope="session")
def vi_trained(vi_demo, tmp_path_factory) -> Path:
    """A short text training run on Visual Imagery."""
    flags = {"downstream_dataset": "VI", "token_pooling": "region", "warmup_lr": 2e-3, "lr": 2e-3, "epochs": 2}
    return train_once(tmp_path_factory, "vi_trained", "finetune_eeg_llm.py", lambda run: vi_demo.training(run, **flags))


@pytest.fixture(scope="session")
def mapped(vi_demo, tmp_path_factory) -> Path:
    """A short mapper training run."""
    return train_once(tmp_path_factory, "mapped", "finetune_eeg_to_image.py", vi_demo.mapping)


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub asks in this process, with an empty cache of its own and a token that may write."""
    from huggingface_hub import constants

    from tests.hub_server import LocalHub, serving
    from utils import hub as of_project

    hub, answers = LocalHub(), of_project.hub_trouble
    with serving(hub) as address:
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        answers.cache_clear()
        yield hub
    answers.cache_clear()


@contextlib.contextmanager
def interrupted_before(epoch: int, monkeypatch):
    """A training that is interrupted as its `epoch`-th epoch begins."""
    import utils.seeds

    plain = utils.seeds.seed_everything

    def seed_everything(*parts):
        if parts[1:2] == (epoch,):
            raise KeyboardInterrupt
        plain(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(utils.seeds, "seed_everything", seed_everything)
        yield


def edited(file, change):
    """Change the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
