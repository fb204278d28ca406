"""The README's recipes for changes, performed on a copy of the project: each is what it says, a few lines, and runs."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, flat, read_jsonl
from utils.files import read_json

ROOMS = ("datasets", "models", "stages", "utils")

DATASET = '''
"""Two electrodes, two classes; a person a file of random samples."""

import dataclasses

import numpy as np

from datasets.bciciv2b_dataset import DESCRIPTION as BCICIV2B
from datasets.montage import Montage
from datasets.recording import Recording


def files(raw_dir):
    return sorted(raw_dir.glob("D?.npy"))


def recordings(path):
    signal = np.load(path)
    onsets = np.arange(12) * 500
    yield Recording(signal, 250.0, onsets, np.arange(12) % 2, path.stem, "1", 1)


DESCRIPTION = dataclasses.replace(
    BCICIV2B, name="Dummy", montage=Montage(("C3", "C4"), {4: ("C3", "C4")}), window=(0.0, 2.0), people={},
    test_sessions=(), files=files, recordings=recordings, addresses=(), all_files=(), closing=None, reference="none",
)
'''
ENCODER = '''
import numpy as np
from torch import nn


class DummyEncoder(nn.Module):
    """Mean power of every electrode in every half second."""

    pretrained, width, lr = False, 3, 1e-3

    def __init__(self, n_chans):
        super().__init__()
        self.electrode_order, self.linear = list(range(n_chans)), nn.Linear(1, 3)

    @classmethod
    def build(cls, electrodes, **_):
        return cls(len(electrodes))

    def prepare(self, x, sfreq):
        n = int(sfreq // 2)
        return (x[:, : x.shape[1] // n * n].reshape(len(x), -1, n) ** 2).mean(-1).astype(np.float32)

    def trainable_parameters(self):
        return list(self.parameters())

    def forward(self, x):
        return self.linear(x[..., None].log1p())
'''
PAIRS = '''
def pairs(electrodes, regions):
    """All electrodes together, and the first one alone."""
    return {"all": list(range(len(electrodes))), "first": [0]}
'''
PROTOCOL = '''
def dummy(store, description, person):
    """The first person tests, the second validates."""
    people = sorted({t.subject for t in store.trials})
    chosen = {people[0]: "test", people[1]: "val"}
    return {split: [t for t in store.trials if chosen.get(t.subject, "train") == split] for split in SPLITS}


PROTOCOLS["dummy"] = (dummy, "person")
'''
FAMILY = '''

class PAG(StableDiffusion):
    """Perturbed-attention guidance: Stable Diffusion with another pipeline."""

    steps = 3
'''


def add(path, line, after):
    """Put a line behind the first one that contains `after`."""
    text = path.read_text()
    at = text.index("\n", text.index(after)) + 1
    path.write_text(text[:at] + line + "\n" + text[at:])


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the project with every recipe of the README's table carried out."""
    copy = tmp_path_factory.mktemp("changed") / "project"
    copy.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    # a dataset: one file, one line
    (copy / "datasets/dummy_dataset.py").write_text(DATASET)
    add(copy / "datasets/description.py", '    "Dummy": "datasets.dummy_dataset",', '"BCICIV2b":')
    # an encoder, a pooling, a family of image models: one class or function, one line
    (copy / "models/dummy.py").write_text(ENCODER)
    add(copy / "models/__init__.py", '    "dummy": "models.dummy:DummyEncoder",', '"eegnet":')
    with open(copy / "models/poolings.py", "a") as file:
        file.write(PAIRS)
    add(copy / "models/__init__.py", '    "pairs": "models.poolings:pairs",', '"hemisphere":')
    with open(copy / "models/image_generator.py", "a") as file:
        file.write(FAMILY)
    line = '    "StableDiffusionPAGPipeline": "models.image_generator:PAG",'
    add(copy / "models/__init__.py", line, '"AmusedPipeline":')
    # a protocol
    with open(copy / "datasets/splits.py", "a") as file:
        file.write(PROTOCOL)
    # read-outs
    line = '    "first": lambda description, text, probabilities: (0, None),'
    add(copy / "stages/rows.py", line, '"likelihood": lambda')
    line = '    "least": lambda pooled, logits, prototypes: (-logits).softmax(dim=-1),'
    add(copy / "stages/rows.py", line, '"head": lambda')
    # a loss term: one line, one flag
    add(copy / "models/eeg_clip_mapper.py", '    "small": lambda b: b.pooled.square().mean(),', '"mse": lambda b:')
    add(copy / "finetune_eeg_to_image.py", '    "small": (0.5, "the pooled vector\'s squared length"),', '"mse": (0.1')
    return copy


@pytest.fixture(scope="module")
def run(changed):
    def run(name, **flags):
        command = [sys.executable, str(changed / name), *flat(flags)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def store(changed, run):
    """The dummy dataset's store, made by the project's own script: three people."""
    raw = changed.parent / "raw"
    raw.mkdir()
    for k in range(3):
        np.save(raw / f"D{k}.npy", 20 * np.random.default_rng(k).standard_normal((2, 6500)))
    said = run(
        "prepare_data.py", downstream_dataset="Dummy", skip_download=True, raw_dir=raw, lmdb_dir=raw.parent / "store"
    )
    assert "36 trials of 2 electrodes × 500 samples at 250 Hz" in said
    return raw.parent / "store"


@pytest.fixture(scope="module")
def text_run(demo, changed, run, store):
    """One epoch with the dummy dataset, encoder, pooling, protocol and read-out at once."""
    model_dir = changed.parent / "text"
    said = run("finetune_eeg_llm.py", downstream_dataset="Dummy", datasets_dir=store, protocol="dummy", encoder="dummy",
               token_pooling="pairs", select_by="first", llm=demo.llm, model_dir=model_dir, epochs=1, warmup_epochs=0,
               cuda=-1)  # fmt: skip
    return model_dir, said


def test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each(text_run):
    model_dir, said = text_run
    assert "Dummy, dummy: 12 / 12 / 12 train / val / test trials, tokens: 2 groups × 3 features" in said
    rows = read_jsonl(model_dir / "decoded_test.jsonl")
    assert {row["subject"] for row in rows} == {"D0"} and len(rows) == 12


def test_a_read_out_is_one_entry(text_run):
    model_dir, said = text_run
    results = read_json(model_dir / "results.json")
    assert results["selected_by"] == "first"
    assert results["test"]["first"]["accuracy"] == 0.5 and results["test"]["first"]["chance"] == 0.5
    assert all(row["readouts"]["first"]["label"] == 0 for row in read_jsonl(model_dir / "decoded_test.jsonl"))


def test_a_family_of_image_models_is_one_class_and_one_line(text_run, demo, changed, run, store):
    folder = changed.parent / "pag"
    shutil.copytree(demo.pth / "stable-diffusion", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    said = run("generate.py", downstream_dataset="Dummy", datasets_dir=store, protocol="dummy", projection_dir=text_run[0],
               num_samples=2, generate_images=True, image_model=folder, image_size=64, cuda=-1,
               output_dir=changed.parent / "pictures")  # fmt: skip
    assert "2 images drawn" in said and (changed.parent / "pictures/summary_grid.png").exists()


def test_a_loss_term_is_one_line_and_one_flag(demo, changed, run, store):
    output_dir = changed.parent / "mapper"
    run("finetune_eeg_to_image.py", downstream_dataset="Dummy", datasets_dir=store, protocol="dummy", encoder="dummy",
        output_dir=output_dir, clip_model=demo.pth / "clip", image_model=demo.pth / "stable-diffusion", mapper="mlp",
        epochs=1, lambda_small=2.0, select_by="least", cuda=-1)  # fmt: skip
    (row,) = read_jsonl(output_dir / "metrics.jsonl")
    parts = row["loss_parts"]
    weighted = 5 * parts["cls"] + 2 * parts["contrastive"] + parts["cos"] + 2 * parts["small"]
    assert parts["small"] > 0 and row["train_loss"] == pytest.approx(weighted, rel=1e-3)
    assert read_json(output_dir / "results.json")["selected_by"] == "least"
