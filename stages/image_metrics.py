"""How like the stimuli drawn pictures are: the metrics of reconstruction tables, beside random pairs and the true class.

After the evaluation of Ozcelik and VanRullen (Scientific Reports 13:15666, 2023), which the tables of this field use.
Stimuli are shown to several trials here, so two-way identification asks against trials with another stimulus only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from models.image_features import pixels
from stages.pictures import PictureFolder, Stimuli, drawn_with
from stages.rows import Row
from utils.errors import UserError
from utils.limits import opened_picture
from utils.progress import progress

EDGE = 425  # pixels, of PixCorr and SSIM
SIGMA, TRUNCATE, CROP = 1.5, 3.5, 5  # of SSIM's Gaussian; pixels at the border that do not count
PAIRINGS = 5  # random pairings of pictures with stimuli
DRAWN, RANDOM, TRUE_CLASS = "as decoded", "paired at random", "true class's prompt"

# ---------------------------------------------------------------- the metrics


def pixel_correlation(real: np.ndarray, drawn: np.ndarray) -> float:
    """Pearson's correlation of all values of two (3, 425, 425) pictures; 0 where one is of one colour."""
    return float(correlations(real.reshape(1, -1), drawn.reshape(1, -1))[0, 0])


def ssim(real: np.ndarray, drawn: np.ndarray) -> float:
    """Structural similarity of two (425, 425) grey pictures from 0 to 1 (Wang et al., IEEE TIP 13:600, 2004)."""
    return _ssim(real, drawn, lambda x: gaussian_filter(x, SIGMA, truncate=TRUNCATE))[CROP:-CROP, CROP:-CROP].mean()


def ssim_by_column(real: np.ndarray, drawn: np.ndarray) -> float:
    """What published tables call SSIM: each column alone, as old scikit-image did for a grey picture with channels."""
    return _ssim(real, drawn, lambda x: gaussian_filter1d(x, SIGMA, axis=0, truncate=TRUNCATE))[CROP:-CROP].mean()


def _ssim(a: np.ndarray, b: np.ndarray, blur: Callable) -> np.ndarray:
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2  # for values from 0 to 1
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) Pearson correlations of the rows of (N, D) and (M, D); 0 for a row without variance."""
    a, b = (x - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (a, b))
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0)


def identification(real: np.ndarray, drawn: np.ndarray, stimulus: Sequence) -> np.ndarray:
    """(N,) two-way identification: share of the other stimuli that a drawn picture is less like than its own.

    real, drawn : (N, D) arrays. Features; row j of both belongs to trial j.
    stimulus : sequence. What tells trial j's stimulus; trials that share it are not asked against each other.
    A tie counts as wrong, as published. NaN where there is no other stimulus.
    """
    like = correlations(real, drawn)  # (N real, N drawn)
    other = np.array([[a != b for b in stimulus] for a in stimulus])  # (N real, N drawn)
    wins = (like.diagonal()[None] > like) & other
    return np.divide(wins.sum(axis=0), other.sum(axis=0), out=np.full(len(like), np.nan), where=other.any(axis=0))


def grey(picture: np.ndarray) -> np.ndarray:
    """(3, H, W) → (H, W), by the weights of scikit-image."""
    return np.tensordot([0.2125, 0.7154, 0.0721], picture, axes=1)


# ---------------------------------------------------------------- the pictures of a folder


@dataclass
class Pictures:
    """Drawn pictures of a generating script's folder with what was seen.

    rows : list of Row
    stimuli, drawn : list of PIL.Image
    true_class : list of PIL.Image. Drawn from the true class's prompt (draw_true_class.py); empty where that was not run.
    model : str. The image model, as a picture says.
    """

    rows: list[Row]
    stimuli: list[Image.Image]
    drawn: list[Image.Image]
    true_class: list[Image.Image]
    model: str


def read_pictures(folder: Path, rows: Sequence[Row], stimuli: Stimuli) -> Pictures:
    """UserError if a picture is missing or damaged."""
    names = PictureFolder(folder, rows, {}, 0)
    drawn = [_read(names.path("generated", row)) for row in rows]
    ceiling = [true_class_picture(folder, row) for row in rows]
    there = [path.is_file() for path in ceiling]
    if any(there) and not all(there):
        raise UserError(
            f"{folder / 'true_class'} has {sum(there)} pictures of {len(rows)}; run draw_true_class.py again"
        )
    true_class = [_read(path) for path in ceiling] if all(there) else []
    model = (drawn_with(names.path("generated", rows[0])) or {}).get("model", "unknown")
    return Pictures(list(rows), [stimuli.of(row) for row in rows], drawn, true_class, str(model))


def true_class_picture(folder: Path, row: Row) -> Path:
    """File of a picture that was drawn from the true class's prompt."""
    return folder / "true_class" / f"true_class_{row.index:04d}_true{row.true_label}.png"


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path} is not there; draw first (--stage images)")
    try:
        with opened_picture(path) as picture:
            return picture.convert("RGB")
    except UserError:
        raise
    except Exception:  # whatever a file that is no picture makes Pillow say
        raise UserError(f"{path} is no picture, or damaged; remove it and draw again") from None


# ---------------------------------------------------------------- scores

NOTE = (
    "Pictures: means over trials with 95 % bootstrap intervals over trials, which speak of these people. Paired at random: the same "
    "pictures, each beside another trial's stimulus (mean of 5 pairings). True class's prompt: what an image model told the right class "
    "draws, the most that decoding a class can reach. PixCorr and SSIM at 425 pixels; SSIM by column is what tables of this field "
    "print as SSIM. Two-way identification (AlexNet, Inception, CLIP): how often a picture is more like its own stimulus than like "
    "another one; guessing gives 50 %; trials of one stimulus are not asked against each other. SwAV is a distance: less is better."
)


def score_pictures(pictures: Pictures, networks: dict[str, Callable], seed: int = 0) -> list[dict]:
    """One line a way of drawing: what is drawn, n, people, and each metric's mean and 95 % interval.

    Lines: the pictures as decoded; the same pictures paired at random with the stimuli (values are means over
    pairings); pictures from the true class's prompt, the most that decoding a class can reach with this image model.
    """
    real = _views(pictures.stimuli, networks, "the stimuli")
    drawn = _views(pictures.drawn, networks, "the pictures")
    stimulus = [row.image or row.true_label for row in pictures.rows]
    lines = [{"images": DRAWN, "values": _values(real, drawn, stimulus)}]
    rng, n = np.random.default_rng(seed), len(pictures.rows)
    if n > 1:
        shuffled = [_values(real, _taken(drawn, _derangement(rng, n)), stimulus) for _ in range(PAIRINGS)]
        lines.append({"images": RANDOM, "values": {k: np.mean([v[k] for v in shuffled], axis=0) for k in shuffled[0]}})
    if pictures.true_class:
        best = _views(pictures.true_class, networks, "the true classes")
        lines.append({"images": TRUE_CLASS, "values": _values(real, best, stimulus)})
    people = len({row.subject for row in pictures.rows})
    found = []
    for line in lines:
        scores = {name: mean_and_interval(values) for name, values in line["values"].items()}
        kept = {"images": line["images"], "model": pictures.model, "n": n, "people": people}
        for name, (mean, low, high) in scores.items():
            kept |= {name: mean, f"{name}, low": low, f"{name}, high": high}
        found.append(kept)
    return found


def images_table(lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells in words."""
    metrics = [name for name in lines[0] if f"{name}, low" in lines[0]]
    heads = ["run", "images", "n", "people", *metrics]
    return heads, [
        [line["run"], line["images"], str(line["n"]), str(line["people"]),
         *(f"{line[m]:.3f} ({line[f'{m}, low']:.3f} to {line[f'{m}, high']:.3f})" for m in metrics)]
        for line in lines
    ]  # fmt: skip


def _views(pictures: Sequence[Image.Image], networks: dict[str, Callable], what: str) -> dict[str, np.ndarray]:
    """Pixels, grey, and features of all networks; equal pictures are looked at once."""
    keys = [(p.size, p.tobytes()) for p in pictures]
    first = {key: k for k, key in reversed(list(enumerate(keys)))}
    kept = sorted(first.values())
    place = [kept.index(first[key]) for key in keys]
    some = [pictures[k] for k in kept]
    views = {"pixels": pixels(some, EDGE).numpy()}
    views["grey"] = np.stack([grey(p.astype(np.float64)) for p in views["pixels"]])
    for name in progress(networks, desc=what, unit="network"):
        views[name] = networks[name](some).float().numpy()
    return {name: view[place] for name, view in views.items()}


def _taken(views: dict[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    return {name: view[order] for name, view in views.items()}


def _derangement(rng: np.random.Generator, n: int) -> np.ndarray:
    """A random order in which nothing stays in its place."""
    while True:
        order = rng.permutation(n)
        if (order != np.arange(n)).all():
            return order


def _values(real: dict[str, np.ndarray], drawn: dict[str, np.ndarray], stimulus: Sequence) -> dict[str, np.ndarray]:
    """Metric → (N,) values of the trials."""
    pairs = list(zip(real["pixels"], drawn["pixels"], strict=True))
    greys = list(zip(real["grey"], drawn["grey"], strict=True))
    values = {"PixCorr": np.array([pixel_correlation(a, b) for a, b in pairs]),
              "SSIM": np.array([ssim(a, b) for a, b in greys]),
              "SSIM by column": np.array([ssim_by_column(a, b) for a, b in greys])}  # fmt: skip
    for name in real:
        if name == "SwAV":  # a distance: less is better
            values[name] = 1 - correlations(real[name], drawn[name]).diagonal()
        elif name not in ("pixels", "grey"):
            values[name] = identification(real[name], drawn[name], stimulus)
    return values


def mean_and_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over trials and its 95 % bootstrap interval (2,000 draws of trials), which speaks of these people."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
