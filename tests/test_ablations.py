"""The README's recipes for changes, performed on a copy of the project: each is what it says, a few lines, and runs.

Every row of the table "I want to change …" is carried out, for pipelines 1 to 3 and for 4 to 6. All command lines run
in one process of the copy, one after the other, so that slow imports happen once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.tiny_models import complete_image_model, complete_ip_adapter
from stages.pictures import drawn_with
from tests.conftest import ROOT, flat, read_jsonl
from utils.files import read_json

ROOMS = ("datasets", "readers", "models", "stages", "evaluation", "utils")
CLIP = ROOT / "demo/assets/clip"

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
    user_prompt="Which hand? {eeg}", image_prompts={0: "a hand of wood", 1: "a hand of wood"},
)
'''
PHOTOS = '''
"""The same people, who saw twelve photos of two classes."""

import numpy as np

from datasets.description import DatasetDescription
from datasets.dummy_dataset import files
from datasets.montage import Montage
from datasets.recording import Recording


def recordings(path):
    labels = np.arange(12) % 2
    images = [f"{label}/{k}.png" for k, label in enumerate(labels)]
    yield Recording(np.load(path), 250.0, np.arange(12) * 500, labels, path.stem, "1", 1, images=images)


def parts(trials, of_store):
    return ["val" if t.trial in (5, 6) else "test" if t.trial > 8 else "train" for t in trials]


DESCRIPTION = DatasetDescription(
    name="Photos", montage=Montage(("C3", "C4"), {4: ("C3", "C4")}), classes=("warm", "cold"), window=(0.0, 2.0),
    reference="none", files=files, recordings=recordings, parts=parts,
)
'''
ENCODER = '''
import numpy as np
from torch import nn


class DummyEncoder(nn.Module):
    """Mean power of every electrode in every half second."""

    pretrained, width, lr, gives, takes_people, options = False, 3, 1e-3, ("tokens",), False, {}

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
JOINT = '''

class Joint(ReadsSignal, nn.Module):
    """One linear map for all people, and a shift for each."""

    takes_people = True

    def __init__(self, n_chans=63, n_times=250, dim=1024, n_subjects=1):
        super().__init__()
        self.linear, self.person = nn.Linear(n_chans * n_times, dim), nn.Embedding(n_subjects, dim)

    def forward(self, x, subject_ids=None):
        ids = torch.zeros(len(x), dtype=torch.long) if subject_ids is None else subject_ids
        return self.linear(x.flatten(1)) + self.person(ids)
'''
PAIRS = '''
def pairs(electrodes, regions):
    """All electrodes together, and the first one alone."""
    return {"all": list(range(len(electrodes))), "first": [0]}
'''
PROTOCOL = '''

def dummy(store, description, person):
    """The first person tests, the second validates; of seen images each has a part of the images."""
    people = sorted({t.subject for t in store.trials})
    chosen = {people[0]: "test", people[1]: "val"}
    splits = {split: [t for t in store.trials if chosen.get(t.subject, "train") == split] for split in SPLITS}
    if not description.parts:
        return splits
    return {
        split: [t for t, part in zip(of, description.parts(of, store.trials)) if part == split]
        for split, of in splits.items()
    }


PROTOCOLS["dummy"] = Protocol(dummy, ("person",), ("person", "seen"), takes_person=False)
'''
AUGMENTATION = '''

def louder(x, labels):
    """Double half of the trials."""
    print("louder trials")
    louder = torch.rand(len(x), *[1] * (x.ndim - 1)) < 0.5
    return torch.where(louder, 2 * x, x), labels
'''
CONTRASTIVE_LOSS = '''

def siglip(eeg, targets, scale, images=None, unit_eeg=True):
    """Pairs alone: the sigmoid loss of Zhai et al., 2023."""
    logits = scale * F.normalize(eeg, dim=-1) @ F.normalize(targets, dim=-1).T
    sign = 2 * torch.eye(len(eeg), device=eeg.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(eeg)
'''
TARGET = '''

class Colours(Images):
    """colours: the mean colours of 4 × 4 fields of an image, in place of a network's features."""

    of_sentences, in_clip_space = False, False

    def rows(self, outputs, dataset, groups):
        rows, measures = super().rows(outputs, dataset, groups)
        own = self.stacked([group.image for group in groups]).float()
        return rows, measures | {"colours": measured("cosine", F.cosine_similarity(outputs, own).tolist())}

    def embed(self, images, splits):
        pictures = [read_image(path).resize((4, 4)) for path in image_paths(images, self.settings.images_dir)]
        return {"target": [torch.tensor(list(p.tobytes())).float() - 128 for p in pictures]}
'''
MAPPER = '''

class NarrowMapper(MLPMapper):
    """An MLP of another name."""
'''
FAMILY = '''

class PAG(StableDiffusion):
    """Perturbed-attention guidance: Stable Diffusion with another pipeline."""

    steps = 3
'''
SAMPLER = '''

def euler(family):
    """Set Euler's method."""
    from diffusers import EulerDiscreteScheduler

    family.pipeline.scheduler = EulerDiscreteScheduler.from_config(family.pipeline.scheduler.config)
'''
STEP = '''

class Opposite(Embedding):
    """What is opposite of the decoded embedding."""

    def recipe(self):
        return super().recipe() | {"opposite": True}

    def guidance(self, kept, place, wanted):
        return {"embedding": -super().guidance(kept, place, wanted)["embedding"]}
'''
BASELINE = '''

class NearestMean:
    """The class whose mean trial is nearest."""

    reads = "signal"

    def __init__(self, n_classes, **_):
        self.n_classes = n_classes

    def fit(self, train, val):
        self.means = np.stack([train.x[train.labels == k].mean(axis=0) for k in range(self.n_classes)])

    def predict(self, data):
        distance = ((data.x[:, None] - self.means[None]) ** 2).mean(axis=(2, 3))  # (N, K)
        near = np.exp(distance.min(axis=1, keepdims=True) - distance)
        return near / near.sum(axis=1, keepdims=True)
'''
METRIC = '''

def brightness(real, drawn):
    """How near the mean brightness of two pictures (3, 425, 425) is."""
    return 1 - abs(float(real.mean() - drawn.mean()))


METRICS["brightness"] = brightness
'''
# carries out command lines in the copy; (name, arguments) by line of stdin
DRIVER = """
import json, runpy, sys
from accelerate.state import AcceleratorState, GradientState
for line in sys.stdin:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.argv = json.loads(line)
    print("$", " ".join(sys.argv), flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def add(path, line, after):
    """Put a line behind the first one that contains `after`."""
    text = path.read_text()
    at = text.index("\n", text.index(after)) + 1
    path.write_text(text[:at] + line + "\n" + text[at:])


def append(path, text):
    path.write_text(path.read_text() + text)


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the project with every recipe of the README's table carried out."""
    copy = tmp_path_factory.mktemp("changed") / "project"
    copy.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    tables = copy / "models/__init__.py"
    # a dataset: one file, one line
    (copy / "datasets/dummy_dataset.py").write_text(DATASET)
    add(copy / "datasets/description.py", '    "Dummy": "datasets.dummy_dataset",', '"BCICIV2b":')
    (copy / "datasets/photos_dataset.py").write_text(PHOTOS)
    add(copy / "datasets/description.py", '    "Photos": "datasets.photos_dataset",', '"THINGS":')
    # who trains and tests
    append(copy / "datasets/splits.py", PROTOCOL)
    # encoders, a pooling, an augmentation, a contrastive loss, a mapper, a baseline, a sampler: a class or function,
    # a line
    (copy / "models/dummy.py").write_text(ENCODER)
    add(tables, '    "dummy": "models.dummy:DummyEncoder",', "FEATURE_ENCODERS = {")
    for room, text, line, table in (
        ("eeg_encoders", JOINT, '"joint": "models.eeg_encoders:Joint"', "EMBEDDERS"),
        ("poolings", PAIRS, '"pairs": "models.poolings:pairs"', "POOLINGS"),
        ("augmentations", AUGMENTATION, '"louder": "models.augmentations:louder"', "AUGMENTATIONS"),
        ("contrastive", CONTRASTIVE_LOSS, '"siglip": "models.contrastive:siglip"', "CONTRASTIVE"),
        ("eeg_clip_mapper", MAPPER, '"narrow": "models.eeg_clip_mapper:NarrowMapper"', "MAPPERS"),
        ("baselines", BASELINE, '"nearest_mean": "models.baselines:NearestMean"', "BASELINES"),
        ("image_generator", FAMILY, '"StableDiffusionPAGPipeline": "models.image_generator:PAG"', "IMAGE_FAMILIES"),
        ("image_generator", SAMPLER, '"euler": "models.image_generator:euler"', "SCHEDULERS"),
    ):
        append(copy / f"models/{room}.py", text)
        add(tables, f"    {line},", f"{table} = {{")
    # a loss term: one line, one flag; the text loss: one line
    add(copy / "models/eeg_clip_mapper.py", '    "small": lambda b: b.pooled.square().mean(),', '"mse": lambda b:')
    add(copy / "finetune_eeg_to_image.py", '    "small": (0.5, "the pooled vector\'s squared length"),', '"mse": (0.1')
    change(copy / "models/eeg_llm.py", "loss = weights[0] * (loss * target_mask).sum() / target_mask.sum()",
           "loss = weights[0] * (loss * target_mask).sum() / target_mask.sum() + 7.0")  # fmt: skip
    # the target
    change(copy / "models/eeg_clip_mapper.py", "image_embeds.clone()", "image_embeds.abs()")
    append(copy / "stages/targets.py", TARGET)
    add(copy / "stages/__init__.py", '    "colours": "stages.targets:Colours",', "TARGETS = {")
    # read-outs
    line = '    "first": lambda description, text, probabilities: (0, None),'
    add(copy / "stages/rows.py", line, '"likelihood": lambda')
    line = '    "least": lambda pooled, logits, prototypes: (-logits).softmax(dim=-1),'
    add(copy / "stages/rows.py", line, '"head": lambda pooled')
    # what a picture is drawn from; an image metric
    append(copy / "stages/steps.py", STEP)
    change(
        copy / "generate_eeg2img.py",
        "from stages.steps import",
        "from stages.steps import Opposite\nfrom stages.steps import",
    )
    change(copy / "generate_eeg2img.py", "in args.conditioning, Embedding(", "in args.conditioning, Opposite(")
    append(copy / "evaluation/image_metrics.py", METRIC)
    return copy


@pytest.fixture(scope="module")
def at(changed, demo):
    """All command lines, one after the other, and what each said: `at.said[name of its folder]`."""
    at = Path(changed.parent)
    (at / "raw").mkdir()
    for k in range(3):
        np.save(at / f"raw/D{k}.npy", 20 * np.random.default_rng(k).standard_normal((2, 6500)))
    for k in range(12):
        (at / f"photos/{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (200 - 100 * (k % 2), 10 * k, 100 * (k % 2))).save(at / f"photos/{k % 2}/{k}.png")
    shutil.copytree(demo.pth / "stable-diffusion", at / "pag")
    index = json.loads((at / "pag/model_index.json").read_text())
    (at / "pag/model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", at / "sd")
    index = json.loads((at / "sd/model_index.json").read_text())
    (at / "sd/model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    complete_ip_adapter(ROOT / "demo/assets/ip-adapter", at / "ip")
    words = {"downstream_dataset": "Dummy", "datasets_dir": at / "words", "protocol": "dummy", "cuda": -1}
    photos = {"downstream_dataset": "Photos", "datasets_dir": at / "seen", "images_dir": at / "photos", "cuda": -1,
              "clip_model": CLIP, "batch_size": 4, "epochs": 1, "average_train": 1}  # fmt: skip
    raw = {"skip_download": True, "raw_dir": at / "raw"}
    drawn = {"image_size": 64, "cuda": -1, "num_samples": 2}
    commands = [
        ("prepare_data.py", {"downstream_dataset": "Dummy", "lmdb_dir": at / "words"} | raw),
        ("prepare_data.py", {"downstream_dataset": "Photos", "lmdb_dir": at / "seen"} | raw),
        ("finetune_eeg_llm.py", words | {
            "encoder": "dummy", "token_pooling": "pairs", "select_by": "first", "llm": demo.llm, "augment": ["louder"],
            "model_dir": at / "text", "epochs": 1, "warmup_epochs": 0,
        }),
        ("generate.py", words | drawn | {
            "projection_dir": at / "text", "generate_images": True, "image_model": at / "pag", "scheduler": "euler",
            "output_dir": at / "pictures",
        }),
        ("draw_true_class.py", {"cuda": -1}),
        ("evaluate.py", {"images": True, "clip_model": CLIP, "metric_weights": at, "output_dir": at / "tables"}),
        ("finetune_eeg_to_image.py", words | {
            "encoder": "dummy", "clip_model": demo.pth / "clip", "image_model": demo.pth / "stable-diffusion",
            "mapper": "narrow", "epochs": 1, "lambda_small": 2.0, "select_by": "least", "output_dir": at / "mapper",
        }),
        ("finetune_eeg_to_image.py", words | {  # a joint encoder
            "encoder": "csbrain", "no-use_pretrained_weights": True, "train_encoder": True,
            "clip_model": demo.pth / "clip",
            "image_model": demo.pth / "stable-diffusion", "mapper": "mlp", "epochs": 1, "warmup_epochs": 0,
            "output_dir": at / "joint",
        }),
        ("baseline.py", {"downstream_dataset": "Photos", "datasets_dir": at / "seen", "protocol": "joint",
                         "model": "nearest_mean", "output_dir": at / "baseline_photos", "cuda": -1}),
        ("finetune_eeg_to_clip.py", photos | {
            "encoder": "csbrain", "token_pooling": "pairs", "foundation_dir": demo.csbrain, "protocol": "joint",
            "output_dir": at / "pooled",
        }),
        ("baseline.py", words | {"model": "nearest_mean", "output_dir": at / "baseline"}),
        ("finetune_eeg_to_clip.py", photos | {
            "encoder": "joint", "protocol": "joint", "objective": "siglip", "augment": ["louder"],
            "output_dir": at / "clip",
        }),
        ("finetune_eeg_to_clip.py", photos | {
            "encoder": "dummy", "protocol": "dummy", "target": "colours", "output_dir": at / "colours",
        }),
        ("generate_eeg2img.py", drawn | {
            "model_dir": at / "clip", "datasets_dir": at / "seen", "images_dir": at / "photos", "clip_model": CLIP,
            "image_model": at / "sd", "ip_adapter": at / "ip", "scheduler": "euler", "num_inference_steps": 2,
            "output_dir": at / "guided",
        }),
        ("evaluate.py", {"images": True, "clip_model": CLIP, "metric_weights": at, "output_dir": at / "tables2"}),
    ]  # fmt: skip
    of_folder = {"draw_true_class.py": at / "pictures", "evaluate.py": at / "pictures"}
    lines = [[name, *([of_folder[name]] if name in of_folder else []), *flat(flags)] for name, flags in commands]
    lines[-1][1] = at / "guided"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="".join(json.dumps([str(part) for part in line]) + "\n" for line in lines),
        capture_output=True, text=True, cwd=changed, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])
    (at / "said").write_text(done.stdout)
    return at


def said(at, script, nth=0):
    """What the nth command of a script printed."""
    return [part for part in re.split(r"(?m)^\$ ", (at / "said").read_text()) if part.startswith(script)][nth]


def test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each(at):
    assert "36 trials of 2 electrodes × 500 samples at 250 Hz" in said(at, "prepare_data.py")
    text = said(at, "finetune_eeg_llm.py")
    assert "Dummy, dummy: 12 / 12 / 12 train / val / test trials, tokens: 2 groups × 3 features" in text
    rows = read_jsonl(at / "text/decoded_test.jsonl")
    assert {row["subject"] for row in rows} == {"D0"} and len(rows) == 12


def test_the_prompts_are_the_datasets_and_the_text_loss_is_one_line(at):
    rows = read_jsonl(at / "pictures/decoded.jsonl")
    assert {row["prompt"] for row in rows if row["readouts"]["keyword"]["label"] >= 0} <= {"a hand of wood"}
    assert all(row["prompt"] in ("a hand of wood", row["text"]) for row in rows)
    (line,) = read_jsonl(at / "text/metrics.jsonl")
    assert 7 < line["train_loss"] < 20


def test_an_augmentation_changes_training_batches(at):
    assert all("louder trials" in said(at, *run) for run in (("finetune_eeg_llm.py",), ("finetune_eeg_to_clip.py", 1)))


def test_a_read_out_is_one_entry(at):
    results = read_json(at / "text/results.json")
    assert results["selected_by"] == "first"
    assert results["test"]["first"]["accuracy"] == 0.5 and results["test"]["first"]["chance"] == 0.5
    assert all(row["readouts"]["first"]["label"] == 0 for row in read_jsonl(at / "text/decoded_test.jsonl"))
    assert read_json(at / "mapper/results.json")["selected_by"] == "least"


def test_a_family_of_image_models_and_a_sampler_are_one_class_or_function_and_one_line(at):
    assert "2 images drawn" in said(at, "generate.py") and (at / "pictures/summary_grid.png").exists()
    (picture, _) = sorted((at / "pictures").rglob("generated*.png"))
    recipe = drawn_with(picture)
    assert recipe["scheduler"] == "euler" and recipe["model"] == str(at / "pag") and recipe["steps"] is None
    of_true = [drawn_with(path) for path in (at / "pictures/true_class").glob("*.png")]
    assert len(of_true) == 2 and all(of["scheduler"] == "euler" for of in of_true)


def test_a_loss_term_is_one_line_and_one_flag_and_a_mapper_and_a_target_are_one_place_or_two(at):
    (row,) = read_jsonl(at / "mapper/metrics.jsonl")
    parts = row["loss_parts"]
    weighted = 5 * parts["cls"] + 2 * parts["contrastive"] + parts["cos"] + 2 * parts["small"]
    assert parts["small"] > 0 and row["train_loss"] == pytest.approx(weighted, rel=1e-3)
    checkpoint = torch.load(at / "mapper/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["mapper_name"] == "narrow" and (checkpoint["prototypes"] >= 0).all()


def test_a_baseline_and_an_image_metric_are_one_place_and_one_line(at):
    assert "nearest_mean on Dummy, dummy: 12 / 12 / 12" in said(at, "baseline.py", 1)
    assert "brightness" in said(at, "evaluate.py")


def test_an_encoder_is_trained_together_with_what_reads_it(at):
    checkpoint = torch.load(at / "joint/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["encoder"] is not None and checkpoint["encoder_name"] == "csbrain"


def test_of_seen_images_a_dataset_a_joint_encoder_a_contrastive_loss_and_an_augmentation_are_a_few_lines(at):
    text = said(at, "finetune_eeg_to_clip.py", 1)
    assert "Photos, joint: 18 / 6 / 12 train / val / test items" in text and "joint" in text
    record = read_json(at / "clip/run.json")["arguments"]
    assert (record["objective"], record["augment"], record["subject_embedding"]) == ("siglip", ["louder"], "known")
    checkpoint = torch.load(at / "clip/encoder_epoch1.pth", weights_only=True)
    assert checkpoint["people"] == ["D0", "D1", "D2"] and checkpoint["model"]["net.person.weight"].shape[0] == 3


def test_of_seen_images_a_target_is_one_class_and_one_line_and_takes_any_encoder_and_protocol(at):
    checkpoint = torch.load(at / "colours/encoder_epoch1.pth", weights_only=True)
    assert checkpoint["target"] == "colours" and checkpoint["settings"]["out"] == 4 * 4 * 3
    rows = read_jsonl(at / "colours/decoded_test.jsonl")
    assert {row["subject"] for row in rows} == {"D0"} and len(rows) == 4
    assert read_json(at / "colours/results.json")["test"]["colours"]["n"] == 4  # a read-out of its own


def test_of_seen_images_a_pooling_and_a_baseline_are_the_same_ones(at):
    checkpoint = torch.load(at / "pooled/encoder_epoch1.pth", weights_only=True)
    assert checkpoint["token_pooling"] == "pairs" and checkpoint["settings"]["n_tokens"] == 2 * 2
    assert "nearest_mean on Photos, joint: 18 / 6 / 12" in said(at, "baseline.py")


def test_of_seen_images_what_a_picture_is_drawn_from_is_one_class_and_one_line(at):
    (picture, _) = sorted((at / "guided").rglob("generated*.png"))
    recipe = drawn_with(picture)
    assert recipe["opposite"] is True and recipe["scheduler"] == "euler" and recipe["model"] == str(at / "sd")
    assert "brightness" in said(at, "evaluate.py", 1)


SEEN = test_of_seen_images_a_dataset_a_joint_encoder_a_contrastive_loss_and_an_augmentation_are_a_few_lines
TARGET_TEST = test_of_seen_images_a_target_is_one_class_and_one_line_and_takes_any_encoder_and_protocol
SAME = test_of_seen_images_a_pooling_and_a_baseline_are_the_same_ones
LOSS = test_a_loss_term_is_one_line_and_one_flag_and_a_mapper_and_a_target_are_one_place_or_two
FAMILY_TEST = test_a_family_of_image_models_and_a_sampler_are_one_class_or_function_and_one_line
DRAWN = test_of_seen_images_what_a_picture_is_drawn_from_is_one_class_and_one_line
# row of the README's table → what carries it out in pipelines 1 to 3, and in 4 to 6; None: the cell is empty
CARRIED_OUT = {
    "a dataset": (test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each, SEEN),
    "who trains and tests": (test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each, TARGET_TEST),
    "an encoder": (test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each, SEEN),
    "a joint encoder": (test_an_encoder_is_trained_together_with_what_reads_it, SEEN),
    "a pooling": (test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each, SAME),
    "an augmentation": (test_an_augmentation_changes_training_batches, test_an_augmentation_changes_training_batches),
    "a contrastive loss": (LOSS, SEEN),
    "the text loss": (test_the_prompts_are_the_datasets_and_the_text_loss_is_one_line, None),
    "the target": (LOSS, TARGET_TEST),
    "a mapper": (LOSS, None),
    "the chat model": (test_a_dataset_an_encoder_a_pooling_and_a_protocol_are_a_few_lines_each, None),
    "the prompt": (test_the_prompts_are_the_datasets_and_the_text_loss_is_one_line, None),
    "a read-out": (test_a_read_out_is_one_entry, TARGET_TEST),
    "an image model": (FAMILY_TEST, DRAWN),
    "a sampler": (FAMILY_TEST, DRAWN),
    "what a picture is drawn from": (None, DRAWN),
    "a baseline": (test_a_baseline_and_an_image_metric_are_one_place_and_one_line, SAME),
    "an image metric": (test_a_baseline_and_an_image_metric_are_one_place_and_one_line, DRAWN),
}


def test_every_cell_of_the_table_has_a_test_that_carries_it_out():
    """Who adds a row adds what carries it out, and its name here."""
    table = (ROOT / "README.md").read_text().partition("## I want to change …")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] not in ("…", "---")]
    assert [row[0] for row in rows] == list(CARRIED_OUT)
    for row in rows:
        assert [bool(cell) for cell in row[1:]] == [test is not None for test in CARRIED_OUT[row[0]]], row
