"""THINGS-EEG2-like recordings with a simulated effect, in the authors' raw layout.

In the first 150 ms after an image the posterior electrodes hold a linear map of its layout: where the thing is, how
large and how bright. Between 100 and 400 ms they hold one of the first principal components of what a small CLIP makes
of the image. Half of each map is shared by people and half is a person's own. Images follow each other every 200 ms, so
responses overlap, as in the real recordings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.things_dataset import ELECTRODES, PARTS, POSTERIOR, SESSIONS, TARGET
from demo.drawings import COLOURS, SHAPES, coloured_shape
from demo.vi_like import pink_noise
from utils.paths import written_whole

SOA = 0.2  # seconds from an image to the next


@dataclass(frozen=True)
class ThingsDemoSize:
    """How much to write, and how plain.

    effect, layout_effect : float. Of a response's standard deviation over that of the noise in a single trial: of the
        later components, and of the layout's early ones.
    shared : float. Share of the response's map that people have in common, 0 to 1.
    """

    people: int = 2
    test_concepts: int = 30
    images: int = 6  # a training concept; 10 in the data set
    test_repetitions: int = 5  # a session; 20 in the data set
    effect: float = 0.045
    layout_effect: float = 0.2
    shared: float = 0.5
    sfreq: int = 250  # 1000 in the data set
    components: int = 8


def draw_images(images_dir: Path, size: ThingsDemoSize, seed: int) -> dict[str, list[Path]]:
    """Write training_images/, test_images/ and image_metadata.npy; what is there is left alone. Paths in the order of
    codes.
    """
    rng = np.random.default_rng((seed, 7))
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    order = rng.permutation(len(pairs))
    chosen = {"test": sorted(order[: size.test_concepts]), "training": sorted(order[size.test_concepts :])}
    metadata, paths = {}, {}
    for part in PARTS:
        names = sorted(f"{pairs[k][1]}_{pairs[k][0]}" for k in chosen[part])
        paths[part], folders = [], []
        for number, name in enumerate(names, start=1):
            colour, shape = name.split("_")
            for image in range(size.images if part == "training" else 1):
                folder = f"{number:05d}_{name}"
                path = images_dir / f"{part}_images/{folder}/{name}_{image + 1:02d}{'s' if part == 'test' else 'b'}.jpg"
                if not path.exists():
                    own = np.random.default_rng((seed, number, image, part == "test"))
                    picture = coloured_shape(shape, colour, own, 128, least=0.5, room=14)
                    with written_whole(path) as unfinished:
                        picture.save(unfinished, format="JPEG", quality=92)
                paths[part].append(path)
                folders.append(folder)
        short = {"training": "train", "test": "test"}[part]
        metadata |= {
            f"{short}_img_concepts": folders,
            f"{short}_img_files": [path.name for path in paths[part]],
            f"{short}_img_concepts_THINGS": folders,
        }
    with written_whole(images_dir / "image_metadata.npy") as unfinished, open(unfinished, "wb") as file:
        np.save(file, metadata)  # the authors': a pickled dict in a 0-d array
    return paths


def principal_components(embeddings: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """(N, n) components of each part's embeddings (N, D), of unit variance; axes from the training images."""
    mean = embeddings["training"].mean(axis=0)
    _, _, axes = np.linalg.svd(embeddings["training"] - mean, full_matrices=False)
    scores = {part: (of - mean) @ axes[:n].T for part, of in embeddings.items()}
    sd = scores["training"].std(axis=0)
    return {part: of / sd for part, of in scores.items()}


def layout(picture: Image.Image) -> np.ndarray:
    """(4,) where a drawn thing is (right, down), how large and how bright: in edges of the picture, and from 0 to 1."""
    pixels = np.asarray(picture.convert("RGB"), float) / 255  # (H, W, 3)
    thing = np.abs(pixels - pixels[0, 0]).max(axis=-1) > 0.15  # the corner is ground; more than JPEG's noise
    y, x = np.nonzero(thing) / np.array(thing.shape[:1])
    return np.array([x.mean(), y.mean(), np.hypot(x.std(), y.std()), pixels[thing].mean()])


def layouts(paths: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    """(N, 4) layouts of each part's images, in units of the training images' standard deviations from their mean."""
    of = {part: np.stack([layout(picture) for picture in read_pictures(files)]) for part, files in paths.items()}
    mean, sd = of["training"].mean(axis=0), of["training"].std(axis=0)
    return {part: (rows - mean) / sd for part, rows in of.items()}


def write_things_like(
    raw_dir: Path, components: dict[str, np.ndarray], layouts: dict[str, np.ndarray], size: ThingsDemoSize, seed: int
) -> tuple[int, int]:
    """Write sub-XX/ses-0Y/raw_eeg_{training,test}.npy; what is there is left alone.

    components, layouts : {"training", "test"} → (n_images, n) and (n_images, 4) arrays. What later and early responses
        are made from, in the order of codes.
    Returns (int, int): Files, and how many of them were written now.
    """
    drives = {part: np.concatenate([components[part], layouts[part]], axis=1) for part in PARTS}
    common = _response(np.random.default_rng((seed, 1)), np.random.default_rng((seed, 3)), size)
    n_all = n_new = 0
    for person in range(1, size.people + 1):
        own = _response(np.random.default_rng((seed, 2, person)), np.random.default_rng((seed, 4, person)), size)
        response = np.sqrt(size.shared) * common + np.sqrt(1 - size.shared) * own  # (n + 4, C, T)
        for session in SESSIONS:
            for part in PARTS:
                path = raw_dir / f"sub-{person:02d}/ses-{int(session):02d}/raw_eeg_{part}.npy"
                n_all += 1
                if not path.exists():
                    n_new += 1
                    rng = np.random.default_rng((seed, person, int(session), part == "test"))
                    codes = _codes(rng, int(session), part, len(drives[part]), size)
                    _write(path, _recording(rng, codes, drives[part], response, size), size)
    return n_all, n_new


def _response(rng: np.random.Generator, early: np.random.Generator, size: ThingsDemoSize) -> np.ndarray:
    """(n + 4, 63, T) of the noise's standard deviation: what a unit of each component, and of the layout, adds."""
    later = size.effect * _map(rng, size, size.components, (0.14, 0.36), 0.035, (0.1, 0.4))
    return np.concatenate([later, size.layout_effect * _map(early, size, 4, (0.06, 0.1), 0.02, (0.03, 0.15))])


def _map(
    rng: np.random.Generator, size: ThingsDemoSize, n: int, peaks: tuple, width: float, window: tuple
) -> np.ndarray:
    """(n, 63, T): what a unit of each component adds to the electrodes, from the onset on; all times in seconds."""
    t = np.arange(round(0.5 * size.sfreq)) / size.sfreq
    found = np.zeros((n, len(ELECTRODES), len(t)))
    where = [ELECTRODES.index(name) for name in POSTERIOR]
    for component in found:
        for peak in rng.uniform(*peaks, 2):  # two waves, each with a topography of its own
            wave = np.exp(-(((t - peak) / width) ** 2)) * ((t >= window[0]) & (t <= window[1]))
            component[where] += rng.standard_normal(len(where))[:, None] * wave
    return found / found[:, where].std()


def _codes(rng: np.random.Generator, session: int, part: str, n_images: int, size: ThingsDemoSize) -> np.ndarray:
    """Event codes of a session in random order: half of the training concepts twice, or all test images; targets."""
    if part == "test":
        codes = np.repeat(np.arange(1, n_images + 1), size.test_repetitions)
    else:
        concept = np.arange(n_images) // size.images
        codes = np.repeat(np.flatnonzero((concept + session) % 2 == 0) + 1, 2)
    return rng.permutation(np.concatenate([codes, np.full(max(1, len(codes) // 20), TARGET)]))


def _recording(
    rng: np.random.Generator, codes: np.ndarray, components: np.ndarray, response: np.ndarray, size: ThingsDemoSize
) -> np.ndarray:
    """(64, n) volts, the last row the codes."""
    step = round(SOA * size.sfreq)
    onsets = size.sfreq + np.arange(len(codes)) * step
    n = int(onsets[-1]) + 2 * size.sfreq
    signal = np.zeros((len(ELECTRODES), n))
    for onset, code in zip(onsets, codes, strict=True):
        drive = components[code - 1] if code != TARGET else np.zeros(components.shape[1])
        signal[:, onset : onset + response.shape[-1]] += np.tensordot(drive, response, 1)
    mixing = np.eye(len(ELECTRODES)) + 0.3 * rng.standard_normal((len(ELECTRODES), len(ELECTRODES))) / np.sqrt(
        len(ELECTRODES)
    )
    noise = mixing @ pink_noise(rng, len(ELECTRODES), n, size.sfreq)
    microvolts = 10.0 * (noise + signal)
    stim = np.zeros(n)
    stim[onsets] = codes
    return np.vstack([1e-6 * microvolts, stim])


def _write(path: Path, signal: np.ndarray, size: ThingsDemoSize) -> None:
    content = {
        "raw_eeg_data": signal,
        "ch_names": [*ELECTRODES, "stim"],
        "ch_types": ["eeg"] * len(ELECTRODES) + ["stim"],
        "sfreq": size.sfreq,
        "highpass": 0.01,
        "lowpass": 100.0,
    }
    with written_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.save(file, content)


def read_pictures(paths: Sequence[Path]) -> list[Image.Image]:
    """The drawn images, as CLIP reads them."""
    return [Image.open(path).convert("RGB") for path in paths]
