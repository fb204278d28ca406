"""Small stores of seen images with a simulated effect, for the tests of training, retrieval and pictures."""

import json
from contextlib import contextmanager

import numpy as np
from PIL import Image

from datasets.eeg_imagenet_dataset import ELECTRODES as IMAGENET
from datasets.recording import Trial
from datasets.store import write_store
from datasets.things_dataset import ELECTRODES as THINGS
from datasets.things_dataset import concept_of
from stages import runs
from tests.conftest import ROOT, flat, once, run_inside

CLIP = ROOT / "demo/assets/clip"
SCRIPT = "finetune_eeg_to_clip.py"
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8}  # fmt: skip
COLOURS = [(k * 67 % 256, k * 131 % 256, k * 29 % 256) for k in range(40)]


def draw(path, k, j):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (64, 64), COLOURS[k])
    picture.paste(COLOURS[k + 7], (8 + 6 * j, 8 * (k % 6), 40 + 6 * j, 8 * (k % 6) + 20))
    picture.save(path)


def things_store(folder, people=("sub-01", "sub-02"), seed=0):
    """16 training concepts × 2 images × 4 repetitions, 6 test images × 8; 63 electrodes, 0.4 s at 250 Hz, no unit."""
    images = [f"training_images/{k:05d}_t{k}/t{k}_{j}.png" for k in range(16) for j in range(2)]
    images += [f"test_images/{k:05d}_u{k}/u{k}.png" for k in range(6)]
    for image in images:
        k = int(image.split("/")[1][:5]) + (16 if image.startswith("test") else 0)
        draw(folder / "images" / image, k, int(image[-5]) if image.startswith("train") else 0)
    from models.eeg_clip_mapper import CLIPImageTargetBuilder

    embed = CLIPImageTargetBuilder(str(CLIP), folder).load()
    vectors = embed([Image.open(folder / "images" / image).convert("RGB") for image in images]).numpy()
    vectors = (vectors - vectors.mean(axis=0)) @ np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[2][
        :6
    ].T
    vectors /= vectors.std(axis=0)
    classes = list(dict.fromkeys(concept_of(image) for image in images))
    rng, trials = np.random.default_rng(seed), []
    for person in people:
        response = rng.standard_normal((6, 63, 100)) * np.hanning(100)
        number = 0
        for repetition in range(8):
            for image, vector in zip(images, vectors, strict=True):
                test = image.startswith("test")
                if repetition < (8 if test else 4):
                    number += 1
                    session, run = str(repetition % 4 + 1), 2 if test else 1
                    x = np.tensordot(vector, response, 1) * 0.15 + rng.standard_normal((63, 100))
                    trial = Trial(
                        f"{person}-{session}-r{run}-t{number:05d}",
                        classes.index(concept_of(image)),
                        person,
                        session,
                        run,
                        number,
                        image,
                    )
                    trials.append((trial, x.astype(np.float32)))
    meta = {"sfreq": 250.0, "dataset": "THINGS", "electrodes": list(THINGS), "classes": classes, "units": "no unit",
            "preprocessing": {"tmin": 0.0, "tmax": 0.4}, "simulated": True}  # fmt: skip
    write_store(folder / "processed_lmdb", meta, [trials])
    return folder / "processed_lmdb"


def imagenet_store(folder, people=("S00", "S01", "S02"), days=1, seed=0):
    """6 classes (2 coarse, 4 fine) × 10 images in blocks; 62 electrodes, 0.501 s at 1000 Hz, microvolts; a class
    changes a rhythm.
    """
    classes, rng, trials, captions = [f"c{k}" for k in range(6)], np.random.default_rng(seed), [], []
    t = np.arange(501) / 1000
    gain = rng.uniform(0, 3, (6, 3, 62))
    for k in range(6):
        for j in range(10):
            draw(folder / "images" / f"c{k}" / f"c{k}_{j}.png", k, 0)
            captions.append({"image": f"c{k}/c{k}_{j}.png", "caption": f"a picture of thing {'abcdef'[k]}"})
    for person in people:
        for day in range(1, days + 1):
            number = 0
            for k in rng.permutation(6):
                for j in range(10):
                    number += 1
                    x = 10 * rng.standard_normal((62, 501))
                    for band, hz in enumerate((10, 20, 40)):
                        x += 8 * gain[k, band][:, None] * np.sin(2 * np.pi * hz * t + rng.uniform(0, 6))
                    trial = Trial(
                        f"{person}-{day}-r1-t{number:05d}", int(k), person, str(day), 1, number, f"c{k}/c{k}_{j}.png"
                    )
                    trials.append((trial, x.astype(np.float32)))
    meta = {"sfreq": 1000.0, "dataset": "EEGImageNet", "electrodes": list(IMAGENET), "classes": classes,
        "simulated": True,
            "granularities": {"coarse": [4, 5], "fine0": [0, 1, 2, 3]}, "preprocessing": {"tmin": 0.0,
            "tmax": 0.501}}  # fmt: skip
    write_store(folder / "processed_lmdb", meta, [trials])
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return folder / "processed_lmdb"


def save_model(folder, name, processor, **more):
    """A random vision model whose last norm changes something, and its image processor."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TINY | more)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for key, parameter in model.named_parameters():
        if "post_layernorm" in key or key.startswith("layernorm"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    size = {"crop_size": {"height": 32, "width": 32}} if processor.startswith(("CLIP", "Bit")) else {}
    edge = {"shortest_edge": 32} if size else {"height": 32, "width": 32}
    processor = getattr(transformers, processor)(size=edge, **size)
    processor.save_pretrained(folder)
    return model, processor


def training(folder, run, **more):
    """finetune_eeg_to_clip.py's arguments for a short run on THINGS-like trials."""
    return flat({
        "datasets_dir": folder / "processed_lmdb", "images_dir": folder / "images", "clip_model": CLIP,
        "setting": "joint", "encoder": "ubp",
        "batch_size": 64, "lr": 1e-3, "epochs": 6, "cuda": -1, "output_dir": run,
    } | more)  # fmt: skip


def train_with_control(things, folder):
    """A short run and its control."""
    for name, more in (("ubp", {}), ("ubp_shuffled", {"shuffle_labels": True})):
        run_inside(SCRIPT, *training(things, folder / name, **more))


def seen_things(tmp_path_factory):
    """The folder of `things_store`, once for all test processes."""
    return once(tmp_path_factory, "seen_things", lambda folder: (folder.mkdir(), things_store(folder)))


def seen_runs(things, tmp_path_factory):
    """The folder of `train_with_control`, once for all test processes."""
    return once(tmp_path_factory, "seen_trained", lambda folder: train_with_control(things, folder))


@contextmanager
def interrupted_after(epochs, monkeypatch):
    """A training that is interrupted when it writes down its history of so many epochs."""
    real = runs.save_history

    def dies(history, *args):
        if len(history) == epochs:
            raise KeyboardInterrupt
        return real(history, *args)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_history", dies)
        yield
