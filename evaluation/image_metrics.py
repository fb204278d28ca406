"""How like the stimuli drawn pictures are: the metrics of reconstruction tables, beside random pairs and the true class.

After the evaluation of Ozcelik and VanRullen (Scientific Reports 13:15666, 2023), which the tables of this field use.
Stimuli are shown to several trials here, so two-way identification asks against trials with another stimulus only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from evaluation.image_networks import pixels
from evaluation.statistics import difference
from stages.pictures import PictureFolder, Stimuli, compared_picture, drawn_with, true_class_picture
from stages.rows import Row
from stages.scores import mean_and_interval
from utils.errors import UserError
from utils.limits import opened_picture
from utils.progress import progress

EDGE = 425  # pixels, of PixCorr and SSIM
SIGMA, TRUNCATE, CROP = 1.5, 3.5, 5  # of SSIM's Gaussian; pixels at the border that do not count
PAIRINGS = 5  # random pairings of pictures with stimuli
DRAWN, RANDOM, TRUE_CLASS, CAPTION = "as decoded", "paired at random", "true class's prompt", "the stimulus's caption"
# folder's name of what generate_eeg2img.py --compare draws → in words
COMPARED = {
    "ceiling": "the stimulus's own embedding",
    "nearest": "the nearest training image",
    "caption": "the decoded caption alone",
}
CONTROL, OVER_CONTROL = "shuffled-label control", "as decoded, above the control"
# what must be alike in two runs of generate_eeg2img.py, beside how they drew, for a step to be all that differs
ALIKE = ("model_dir", "split", "protocol", "seed", "num_samples", "shuffle_labels", "prior_steps", "prior_guidance")
TOLD = {"conditioning", "prior"}  # what a picture's recipe says of the steps themselves

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
    return np.tensordot([0.2125, 0.7154, 0.0721], picture.astype(np.float64), axes=1)


# metrics of two pictures (3, 425, 425) alone; those of networks' features: evaluation/image_networks.py
METRICS = {
    "PixCorr": pixel_correlation,
    "SSIM": lambda real, drawn: ssim(grey(real), grey(drawn)),
    "SSIM by column": lambda real, drawn: ssim_by_column(grey(real), grey(drawn)),
}

# ---------------------------------------------------------------- the pictures of a folder


@dataclass
class Pictures:
    """Drawn pictures of a generating script's folder with what was seen.

    rows : list of Row
    stimuli, drawn : list of PIL.Image
    true_class : list of PIL.Image. Drawn from the true class's prompt (draw_true_class.py); empty where that was not run.
    model : str. The image model, as a picture says.
    ceiling : str. What the pictures of `true_class` were drawn from, in words.
    recipe : dict. How all were drawn, see `way_of`.
    others : dict. What further pictures of the same trials were drawn from, in words → list of PIL.Image.
    """

    rows: list[Row]
    stimuli: list[Image.Image]
    drawn: list[Image.Image]
    true_class: list[Image.Image]
    model: str
    ceiling: str = TRUE_CLASS
    others: dict[str, list[Image.Image]] = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)


def read_pictures(folder: Path, rows: Sequence[Row], stimuli: Stimuli) -> Pictures:
    """UserError if a picture is missing or damaged, or those of the true classes were drawn in another way."""
    names = PictureFolder(folder, rows, {}, 0)
    drawn = [_read(names.path("generated", row)) for row in rows]
    ceiling = [true_class_picture(folder, row) for row in rows]
    recipes = [drawn_with(names.path("generated", row)) or {} for row in rows]
    for row, recipe in zip(rows, recipes, strict=True):
        if recipe.get("embedding", row.embedding) != row.embedding:
            raise UserError(
                f"{names.path('generated', row)} was drawn from something else than was decoded; draw again (--stage images)"
            )
    true_class = []
    if any(path.is_file() for path in ceiling):
        ways = [drawn_with(path) or {} for path in ceiling]
        for way, recipe in zip(ways, recipes, strict=True):
            if not way or any(way[name] != recipe.get(name) for name in set(way) - {"prompt", "model", "conditioning"}):
                raise UserError(
                    f"{folder / 'true_class'} is not of these pictures; run draw_true_class.py {folder} again"
                )
        true_class = [_read(path) for path in ceiling]
    return Pictures(
        list(rows), [stimuli.of(row) for row in rows], drawn, true_class, str(recipes[0].get("model", "unknown")),
        CAPTION if true_class and (drawn_with(ceiling[0]) or {}).get("conditioning") == "caption" else TRUE_CLASS,
        {words: _compared(folder, way, rows, recipes) for way, words in COMPARED.items()
         if any(compared_picture(folder, way, row).is_file() for row in rows)},
        way_of(recipes[0]),
    )  # fmt: skip


def _compared(folder: Path, way: str, rows: Sequence[Row], recipes: Sequence[dict]) -> list[Image.Image]:
    """Pictures of the same trials that were drawn from something else; UserError where they are of another run."""
    for row, recipe in zip(rows, recipes, strict=True):
        told = drawn_with(compared_picture(folder, way, row)) or {}
        if told.get("drawn_from") != way or way_of(told) != way_of(recipe):
            raise UserError(
                f"{folder / 'compared'} is not of these pictures; run generate_eeg2img.py with --compare again"
            )
    return [_read(compared_picture(folder, way, row)) for row in rows]


def way_of(recipe: dict) -> dict:
    """How a picture was drawn: its recipe without what is a trial's own, or a sample's."""
    own = {"prompt", "seed", "embedding", "drawn_from", "samples"}
    return {name: value for name, value in recipe.items() if name not in own}


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
    "pictures, each beside the stimulus of a random trial (mean of 5 pairings). True class's prompt: what an image model told the right "
    "class draws, the most that decoding a class can reach. PixCorr and SSIM at 425 pixels; SSIM by column is what tables of this field "
    "print as SSIM. Two-way identification (AlexNet, Inception, CLIP): how often a picture is more like its own stimulus than like "
    "another one; guessing gives 50 %. '1 of K': how often its own stimulus is the likest of all K; guessing gives 1/K. Trials of one "
    "stimulus are not asked against each other. The stimulus's own embedding: what the same image model draws when it is told what was seen, "
    "the most that decoding an embedding can reach; the nearest training image: drawn from that one's embedding. Above the control, and what a "
    "step adds: the difference of the means, whose interval draws trials anew (the same people and stimuli of both, where both have the same); 0 within it: the step did not help. A CLIP that an encoder was trained towards, or that "
    "chose the sample, judges its own: read the others beside it. SwAV is a distance: less is better. CLIP is the model that is named."
)


def values_of(
    pictures: Pictures, networks: dict[str, Callable], seed: int = 0, control: Pictures | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Way of drawing → metric → (N,) values of the trials.

    Ways: the pictures as decoded; the same pictures paired at random with the stimuli (values are means over pairings); pictures from
    the true class's prompt, the most that decoding a class can reach with this image model; what else the same trials were drawn
    from; the control's pictures. Raises UserError where the control was drawn in another way.
    """
    rng, n = np.random.default_rng(seed), len(pictures.rows)
    stimulus = [row.image or row.true_label for row in pictures.rows]
    real = _Views(pictures.stimuli, networks, "the stimuli")
    drawn = _Views(pictures.drawn, networks, "the pictures")
    found = {DRAWN: _values(real, drawn, np.arange(n), stimulus)}
    if n > 1:
        shuffled = [_values(real, drawn, rng.permutation(n), stimulus) for _ in range(PAIRINGS)]
        found[RANDOM] = {name: np.mean([values[name] for values in shuffled], axis=0) for name in shuffled[0]}
    if pictures.true_class:
        true_class = _Views(pictures.true_class, networks, "the true classes")
        found[pictures.ceiling] = _values(real, true_class, np.arange(n), stimulus)
    for words, others in pictures.others.items():
        found[words] = _values(real, _Views(others, networks, words), np.arange(n), stimulus)
    if control:
        if control.recipe != pictures.recipe:
            differs = sorted(
                k for k in {*control.recipe, *pictures.recipe} if control.recipe.get(k) != pictures.recipe.get(k)
            )
            raise UserError(
                f"the control's pictures were drawn in another way than the run's ({', '.join(differs)}); draw both alike"
            )
        seen = [row.image or row.true_label for row in control.rows]
        of_control = _Views(control.stimuli, networks, "the control's stimuli")
        drawn_by_it = _Views(control.drawn, networks, "the control's pictures")
        found[CONTROL] = _values(of_control, drawn_by_it, np.arange(len(seen)), seen)
    return found


def lines_of(
    pictures: Pictures, values: dict[str, dict[str, np.ndarray]], control: Pictures | None = None
) -> list[dict]:
    """One line a way of drawing: what is drawn, n, people, each metric's mean and 95 % interval; with a control, what is above it."""
    lines = []
    for images, of_metrics in values.items():
        lines.append(_line(pictures, images, len(next(iter(of_metrics.values())))))
        for name, of_trials in of_metrics.items():
            lines[-1] |= _named(name, mean_and_interval(of_trials))
    if control:
        lines.append(difference_line(OVER_CONTROL, pictures, values[DRAWN], control.rows, values[CONTROL]))
    return lines


def difference_line(
    words: str, pictures: Pictures, values: dict[str, np.ndarray], other_rows: Sequence[Row], others: dict[str, np.ndarray]
) -> dict:  # fmt: skip
    """How much higher pictures stand than others of the same people and stimuli, with intervals that draw both alike."""
    same = _same_stimuli(pictures.rows, other_rows)
    line = _line(pictures, words, len(pictures.rows))
    for name in [name for name in values if name in others]:
        theirs = others[name] if same is None else others[name][same]
        line |= _named(name, difference(values[name], theirs, paired=same is not None))
    return line


def steps_of(argument: Mapping) -> dict[str, object]:
    """What stood between EEG and picture, in words → from where, by the arguments of a run of generate_eeg2img.py."""
    told = argument.get("conditioning")
    told = told if isinstance(told, list) else []
    samples = argument.get("samples")
    found = {
        "the embedding": "ip_adapter" in told,
        "the map": "controlnet" in told and (argument.get("structure_dir") or argument.get("model_dir")),
        "the prior": argument.get("prior_dir"),
        "the low level": argument.get("low_level_dir"),
        "the caption": argument.get("caption_dir"),
        f"the choice among {samples}": samples not in (None, 1),
    }
    return {step: place for step, place in found.items() if place}


def check_steps_of_control(argument: Mapping, its: Mapping) -> None:
    """UserError where other steps stood between EEG and picture in a control than in its run."""
    mine, other = (set(steps_of(of)) for of in (argument, its))
    differs = sorted(mine ^ other) + [
        name for name in ALIKE[-2:] if "the prior" in mine & other and argument.get(name) != its.get(name)
    ]
    if differs:
        raise UserError(
            f"the control's pictures were made by other steps than the run's ({', '.join(differs)}); make both alike"
        )


def step_between(argument: Mapping, other: Mapping, recipe: Mapping, its_recipe: Mapping) -> str | None:
    """The one step that a run has and another has not, where all else is alike; None where that is not so.

    argument, other : mappings. Of both runs' records. recipe, its_recipe : mappings. How both drew, see `way_of`.
    """
    mine, its = steps_of(argument), steps_of(other)
    more = [step for step in mine if step not in its]
    alike = all(argument.get(name) == other.get(name) for name in ALIKE)
    alike = alike and all(recipe[name] == its_recipe[name] for name in set(recipe) & set(its_recipe) - TOLD)
    return more[0] if alike and len(more) == 1 and its == {k: v for k, v in mine.items() if k != more[0]} else None


def _line(pictures: Pictures, images: str, n: int) -> dict:
    return {"images": images, "model": pictures.model, "n": n, "people": len({row.subject for row in pictures.rows})}


class _Views:
    """Pictures, each different one once, and their features in all networks."""

    def __init__(self, pictures: Sequence[Image.Image], networks: dict[str, Callable], what: str):
        kept: dict[tuple, int] = {}
        self.place = np.array([kept.setdefault((p.size, p.tobytes()), len(kept)) for p in pictures])
        self.different = [pictures[list(self.place).index(k)] for k in range(len(kept))]
        self.features = {}
        for name in progress(networks, desc=what, unit="network"):
            self.features[name] = networks[name](self.different).float().numpy()

    def of(self, name: str, order: np.ndarray) -> np.ndarray:
        """(N, D) features of the trials in an order."""
        return self.features[name][self.place[order]]


def _values(real: _Views, drawn: _Views, order: np.ndarray, stimulus: Sequence) -> dict[str, np.ndarray]:
    """Metric → (N,) values of the trials; picture order[j] stands beside stimulus j."""
    of_pairs: dict[tuple, tuple] = {}
    pairs = list(zip(real.place.tolist(), drawn.place[order].tolist(), strict=True))
    for a, b in pairs:
        if (a, b) not in of_pairs:
            of_pairs[a, b] = _pixel_metrics(real.different[a], drawn.different[b])
    values = {name: np.array([of_pairs[pair][k] for pair in pairs]) for k, name in enumerate(METRICS)}
    for name in real.features:
        ours, theirs = real.of(name, np.arange(len(order))), drawn.of(name, order)
        if name == "SwAV":  # a distance: less is better
            values[name] = 1 - correlations(ours, theirs).diagonal()
        else:
            values[name] = identification(ours, theirs, stimulus)
        if name.startswith("CLIP"):
            n_stimuli = len(set(stimulus))
            likest = values[name] == 1  # more like its own than like any other
            values[f"{name}, 1 of {n_stimuli}"] = np.where(np.isfinite(values[name]), likest, np.nan)
    return values


def _named(metric: str, interval: tuple[float, float, float]) -> dict[str, float]:
    """Mean, low and high under the names that a line has for them."""
    return dict(zip((metric, f"{metric}, low", f"{metric}, high"), interval, strict=True))


def _same_stimuli(rows: Sequence[Row], others: Sequence[Row]) -> list[int] | None:
    """Places in `others` of each row's person and stimulus; None where both do not hold the same ones, once each."""
    keys = [(row.subject, row.image or row.true_label) for row in rows]
    place = {(row.subject, row.image or row.true_label): k for k, row in enumerate(others)}
    if len(set(keys)) == len(keys) == len(others) and set(keys) == set(place):
        return [place[key] for key in keys]
    return None


def _pixel_metrics(real: Image.Image, drawn: Image.Image) -> list[float]:
    a, b = pixels([real, drawn], EDGE).numpy()
    return [metric(a, b) for metric in METRICS.values()]


def images_table(lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells in words; a metric that a line has not is empty there."""
    metrics = list(dict.fromkeys(name for line in lines for name in line if f"{name}, low" in line))
    cells = []
    for line in lines:
        told = [line["run"], line["images"], str(line["n"]), str(line["people"])]
        for m in metrics:
            known = np.isfinite(line.get(m, np.nan))
            told.append(f"{line[m]:.3f} ({line[f'{m}, low']:.3f} to {line[f'{m}, high']:.3f})" if known else "")
        cells.append(told)
    return ["run", "images", "n", "people", *metrics], cells
