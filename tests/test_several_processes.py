"""Several processes: what one process makes of the same batches, and what is left when one is killed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from PIL import Image

from datasets.description import load_description
from demo.tiny_models import complete_image_model
from stages import runs
from tests.conftest import ROOT, flat, once, read_jsonl, small_store
from tests.processes import ended, run_script, started
from tests.seen_images import SCRIPT, seen_runs, seen_things, training
from utils.files import read_json


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    return seen_things(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(things, tmp_path_factory):
    return seen_runs(things, tmp_path_factory)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The shipped image model of coloured shapes."""
    place = ROOT / "demo/assets/stable-diffusion-shapes"
    return once(tmp_path_factory, "shapes", lambda folder: complete_image_model(place, folder))


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    """Two montages, of which the second one has electrodes in one region only."""

    def make(folder):
        two_a, two_b = load_description("BCICIV2a"), load_description("BCICIV2b")
        small_store(folder / "2a", two_a, ["A01", "A06", "A08"], trials=5)
        small_store(folder / "2b", two_b, ["B01", "B06", "B08"])

    return once(tmp_path_factory, "two_montages", make)


def leave_nothing_to_chance():
    """Dropout, noise, times and masks differ from process to process: to compare with one process they go."""
    torch.nn.Dropout.forward, attention = lambda self, x: x, torch.nn.MultiheadAttention.forward

    def without_dropout(self, *args, **more):
        self.dropout = 0.0
        return attention(self, *args, **more)

    torch.nn.MultiheadAttention.forward = without_dropout
    torch.randn_like, torch.randn = torch.zeros_like, lambda *shape, **_: torch.zeros(*shape)
    torch.rand = lambda *shape, **_: torch.linspace(0.5, 1, shape[-1]).expand(shape)
    torch.randint = lambda low, high, shape, **_: torch.full(shape, (low + high) // 2)


def made_by(n: int, folder, script: str, *args) -> None:
    def work(rank: int) -> None:
        leave_nothing_to_chance()
        run_script(script, *args)(rank)

    codes = ended(started(n, work, folder.with_suffix(".log")))
    assert codes == [0] * n, folder.with_suffix(".log").read_text()[-3000:]


@pytest.mark.parametrize(
    "what, processes", [("contrast", 3), ("prior", 2), ("vae", 2), ("controlnet", 2), ("csbrain", 2)]
)
def test_several_processes_train_what_one_does_on_the_same_batches(
    things, trained, shapes, stores, tmp_path, what, processes
):
    seen = {"datasets_dir": things / "processed_lmdb", "images_dir": things / "images", "cuda": -1, "epochs": 1}

    def command(folder, size):
        if what == "contrast":  # 112 items: the last batch has 4, and a process one of them
            how = {"encoder": "sgdm", "setting": "within", "subject": "sub-01", "channels": "occipital", "tmax": 0.2,
                   "optimizer": "sgd", "lr": 0.1, "epochs": 1}  # fmt: skip
            return SCRIPT, training(things, folder, **how, batch_size=size)
        if what == "csbrain":
            of = {"datasets_dir": [stores / "2a", stores / "2b"], "epochs": 1, "warmup": 1, "cuda": -1, "lr": 1e-4}
            return "pretrain_csbrain.py", flat(of | {"output_dir": folder, "batch_size": size})
        if what == "vae":  # 28 images
            how = {"what": what, "widths": [4, 8, 16], "hidden": 32}
            return "train_structure.py", flat(seen | how | {"output_dir": folder, "batch_size": size})
        if what == "controlnet":  # 28 images
            how = {"what": what, "image_model": shapes, "lr": 1e-4}
            return "train_structure.py", flat(seen | how | {"output_dir": folder, "batch_size": size})
        how = {"model_dir": trained / "ubp", "output_dir": folder, "batch_size": size,
               "average_train": 4, "prior_steps": 2, "samples": 1, "warmup": 1, "lr": 1e-4}  # fmt: skip
        return "train_prior.py", flat(seen | how)

    size = {"contrast": 12, "prior": 13, "vae": 9, "controlnet": 9, "csbrain": 2}[what]
    for n in (1, processes):
        script, args = command(tmp_path / str(n), size * processes // n)
        made_by(n, tmp_path / str(n), script, *args)
    one, several = tmp_path / "1", tmp_path / str(processes)
    for a, b in zip(read_jsonl(one / "metrics.jsonl"), read_jsonl(several / "metrics.jsonl"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        for name, score in a["val"].items():
            key = "value" if "measure" in score else "accuracy"
            assert b["val"][name][key] == pytest.approx(score[key], rel=1e-3, abs=1e-5), name
            assert b["val"][name]["n"] == score["n"], name
    a, b = (torch.load(folder / "last.pth", weights_only=True)["model"] for folder in (one, several))
    apart = torch.cat([(a[name] - b[name]).flatten() for name in a]).abs()
    # Adam moves a weight whose gradient is rounding alone by up to a whole step, either way
    assert apart.max() < 1e-4 and (apart > 1e-5).float().mean() < 1e-4
    assert read_json(several / "run.json")["num_processes"] == processes
    if (one / "decoded_test.jsonl").exists():
        a, b = (read_jsonl(folder / "decoded_test.jsonl") for folder in (one, several))
        assert [row["index"] for row in b] == list(range(len(a)))
        ranks = [[row["readouts"]["retrieval"]["rank"] for row in rows] for rows in (a, b)]
        assert ranks[0] == ranks[1]


def test_two_processes_train_the_text_that_one_does(demo, few, tmp_path):
    """Through both phases, the encoder in the second one; sentences have 13 to 17 tokens, so processes have others."""
    for n in (1, 2):
        how = {"batch_size": 6 // n, "gradient_accumulation_steps": 1, "datasets_dir": few, "train_encoder": True,
               "epochs": 3, "warmup_epochs": 2}  # fmt: skip
        made_by(n, tmp_path / str(n), "finetune_eeg_llm.py", *demo.training(tmp_path / str(n), **how))
    one, two = (read_jsonl(tmp_path / f"{n}/metrics.jsonl") for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-6)
        assert b["val"]["likelihood"]["n"] == a["val"]["likelihood"]["n"] == 16
    assert len(two) == 3 and two[1]["train_loss"] < two[0]["train_loss"]
    assert read_json(tmp_path / "2/run.json")["num_processes"] == 2
    said = (tmp_path / "2.log").read_text()
    assert "2 process(es)" in said and said.count("best epoch") == 1
    one, two = (read_jsonl(tmp_path / f"{n}/decoded_test.jsonl") for n in (1, 2))
    assert [row["index"] for row in two] == list(range(16))  # every trial once
    for a, b in zip(one, two, strict=True):
        alike = [row["readouts"]["likelihood"]["probabilities"] for row in (a, b)]
        assert alike[1] == pytest.approx(alike[0], abs=1e-3)


def test_a_baseline_is_one_process(stores, tmp_path):
    flags = flat({"model": "csp_lda", "datasets_dir": stores / "2b", "output_dir": tmp_path / "run", "cuda": -1})
    assert ended(started(2, run_script("baseline.py", *flags), tmp_path / "log")) == [2, 2]
    assert "start it without accelerate launch" in (tmp_path / "log").read_text()


def test_when_a_process_is_killed_the_run_ends_and_goes_on_to_the_same_bytes(things, tmp_path):
    flags = {"setting": "within", "subject": "sub-01", "encoder": "nice", "channels": "occipital", "epochs": 3,
             "batch_size": 20}  # fmt: skip

    def work(rank: int, folder, killed: bool = False, **more) -> None:
        if killed and rank == 1:
            plain = runs.Run.trained

            def dies(run, *args):
                if len(run.history) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(run, *args)

            runs.Run.trained = dies
        run_script(SCRIPT, *training(things, folder, **flags, **more))(rank)

    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log"
    assert ended(started(2, lambda rank: work(rank, whole), log)) == [0, 0], log.read_text()
    log.unlink()
    assert ended(started(2, lambda rank: work(rank, cut, killed=True), log)) == [2, -9], log.read_text()
    assert "error: another process of this run has ended" in log.read_text() and "Traceback" not in log.read_text()
    assert len(read_jsonl(cut / "metrics.jsonl")) == 1
    log.unlink()
    assert ended(started(1, lambda rank: work(rank, cut, resume=True), log)) == [2]
    assert "it had 2 process(es), which share a batch, and has 1" in log.read_text()
    assert ended(started(2, lambda rank: work(rank, cut, resume=True), log)) == [0, 0], log.read_text()
    for name in ("metrics.jsonl", "last.pth", "decoded_test.jsonl", "results.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_one_process_killed_ends_the_run_and_the_same_command_goes_on(script, tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(16):
        Image.new("RGB", (32, 32), (16 * k, 255 - 8 * k, 99)).save(tmp_path / f"images/{k:02d}.png")
    output, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"
    how = {"images_dir": tmp_path / "images", "model": ROOT / "demo/assets/captioner", "batch_size": 1, "cuda": -1}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--main_process_port", "0", str(ROOT / "caption_images.py"), *flat(how | {"output": output})]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen(launch, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    workers, until = [], time.monotonic() + 200
    while not (output.exists() and output.stat().st_size) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
        workers = workers if len(workers) == 2 else psutil.Process(run.pid).children()
    workers[1].kill()
    assert run.wait(timeout=100) != 0, (tmp_path / "log").read_text()
    assert not [worker for worker in workers if worker.is_running()]
    assert 0 < output.read_text().count("\n") < 16
    for file in (output, whole):
        assert script("caption_images.py", *flat(how | {"output": file})).code == 0
    assert output.read_bytes() == whole.read_bytes()
