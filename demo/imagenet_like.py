"""EEG-ImageNet-like recordings with a simulated effect and a simulated drift, in the authors' .pth layout.

A class changes the power of five bands by region, alike in all people; a person's block, the photos of one class in a
row, has a drift of its own on top. With the drift alone a class can be told within a person, and not across people: the
block confound.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import torch

from datasets.description import load_description
from datasets.eeg_imagenet_dataset import ELECTRODES, GROUP, N_TIMES, PEOPLE, SFREQ
from datasets.electrodes import montage_of
from demo.drawings import DRAWINGS, drawing
from models.differential_entropy import BANDS
from utils.files import write_jsonl
from utils.paths import written_whole

CLASSES = tuple(
    DRAWINGS
)  # 14, which the tiny image model can draw: the last 8 make a fine group, the first 6 are coarse
FINE = CLASSES[-GROUP:]


@dataclass(frozen=True)
class ImageNetDemoSize:
    """How much to write, and how plain.

    effect : float. Standard deviation of a class's change of log power, over regions and bands, alike in all people.
    drift : float. The same of a block of one person.
    """

    people: int = 4
    images: int = 10  # a class; 50 in the data set
    effect: float = 0.35
    drift: float = 0.45
    noise: float = 0.5  # of a trial


def wnid(name: str) -> str:
    """A label of the form of ImageNet's, which no class of it has."""
    return f"n9{CLASSES.index(name):07d}"


def labels() -> list[str]:
    """As in the files: fine classes first."""
    return [wnid(name) for name in (*FINE, *(name for name in CLASSES if name not in FINE))]


def draw_images(folder: Path, size: ImageNetDemoSize, seed: int) -> None:
    """images/WNID/WNID_N.JPEG, synset_map.txt, and captions.jsonl beside the folder; what is there is left alone."""
    prompts = {}
    for dataset in ("BCICIV2a", "VI"):
        description = load_description(dataset)
        prompts |= {name: description.image_prompts[k] for k, name in enumerate(description.classes)}
    captions = []
    for name in CLASSES:
        for number in range(size.images):
            path = folder / wnid(name) / f"{wnid(name)}_{number}.JPEG"
            captions.append({"image": f"{wnid(name)}/{path.name}", "caption": prompts[name]})
            if not path.exists():
                picture = drawing(name, np.random.default_rng((seed, CLASSES.index(name), number)), 128)
                with written_whole(path) as unfinished:
                    picture.save(unfinished, format="JPEG", quality=92)
    write_jsonl(captions, folder.parent / "captions.jsonl")
    with written_whole(folder.parent / "synset_map.txt") as unfinished:
        unfinished.write_text("".join(f"{wnid(name)} {name}\n" for name in CLASSES))


def write_imagenet_like(path: Path, size: ImageNetDemoSize, seed: int, day: int = 1) -> bool:
    """Write a .pth of all people's trials, in volts; whether it was written now. A second day has other blocks, drifts
    and codes.
    """
    if path.exists():
        return False
    rng = np.random.default_rng((seed, 3))
    bands = np.stack([(freqs() >= low) & (freqs() < high) for low, high in BANDS.values()])  # (5, F)
    region = montage_of(ELECTRODES)[0].brain_regions
    alike = rng.standard_normal((len(CLASSES), len(BANDS), 5))  # by class, band and region
    items = []
    for subject in range(size.people):
        person = np.random.default_rng((seed, 4, subject))
        own = 0.3 * person.standard_normal((len(BANDS), 5))
        gain = person.uniform(8.0, 12.0)  # microvolts
        if day > 1:
            person = np.random.default_rng((seed, 6, subject, day))
        for label in person.permutation(len(CLASSES)):  # blocks in an order of one's own
            block = person.standard_normal((len(BANDS), 5))
            for number in range(size.images):
                trial = np.random.default_rng((seed, 5, subject, int(label), number, day))
                log_power = (
                    own
                    + size.effect * alike[label]
                    + size.drift * block
                    + size.noise * trial.standard_normal(own.shape)
                )
                power = np.ones((len(ELECTRODES), bands.shape[1]))
                for k, inside in enumerate(bands):
                    power[:, inside] = np.exp(log_power[k, region])[:, None]
                name = wnid(CLASSES[label])
                items.append(
                    {
                        "eeg_data": torch.from_numpy(1e-6 * gain * _signal(trial, power)),
                        "granularity": "fine" if CLASSES[label] in FINE else "coarse",
                        "subject": subject + (0 if day == 1 else PEOPLE),
                        "label": name,
                        **({} if day == 1 else {"stage": day}),
                        "image": f"{name}_{number}.JPEG",
                    }
                )
    content = {"dataset": items, "labels": labels(), "images": sorted({item["image"] for item in items})}
    buffer = io.BytesIO()  # a full disk raises OSError then
    torch.save(content, buffer)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
    return True


def freqs() -> np.ndarray:
    """Hz, of a trial's spectrum."""
    return scipy.fft.rfftfreq(N_TIMES, 1 / SFREQ)


def _signal(rng: np.random.Generator, power: np.ndarray) -> np.ndarray:
    """(62, 501) of unit standard deviation before `power`: 1/f noise, neighbours alike."""
    shape = power.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(np.maximum(freqs(), 1.0))
    plain = scipy.fft.irfft(spectrum, N_TIMES, axis=-1).std()
    return scipy.fft.irfft(spectrum * np.sqrt(power), N_TIMES, axis=-1) / plain
