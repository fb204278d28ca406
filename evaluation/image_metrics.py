"""How like the stimuli drawn pictures are: metrics of reconstruction tables, beside random pairs and the true class.

After the evaluation of Ozcelik and VanRullen (Scientific Reports 13:15666, 2023), which the tables of this field use.
Stimuli are shown to several trials here, so two-way identification asks against trials with another stimulus only.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from datasets.alignment import USES
from evaluation.decoded_runs import USED, Run
from evaluation.image_networks import DISTANCES, pixels
from evaluation.statistics import difference
from stages.pictures import PictureFolder, Stimuli, compared_picture, drawn_with, fault_of, true_class_picture
from stages.rows import Row
from stages.scores import mean_and_interval
from utils.errors import UserError, loading
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
STEPS_OF_RECIPE = {"conditioning", "prior"}  # what a picture's recipe says of the steps themselves

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


def one_of_k(asked: np.ndarray, candidates: np.ndarray, stimulus: Sequence) -> np.ndarray:
    """(N,) how often one's own candidate is the likest of K, one a stimulus: exactly, over all choices of the others.

    asked, candidates : (N, D) arrays. Features; row j of both belongs to trial j. Drawn pictures that ask for stimuli:
        forward; stimuli that ask for drawn pictures: backward.
    stimulus : sequence. What tells trial j's stimulus; of K different ones.
    Guessing gives 1 / K. A tie counts as wrong. NaN where there is no other stimulus.
    """
    like = correlations(candidates, asked)  # (N candidates, N asked)
    wins, places = like.diagonal()[None] > like, {}
    for trial, of in enumerate(stimulus):
        places.setdefault(of, []).append(trial)
    if len(places) < 2:
        return np.full(len(like), np.nan)
    found = np.ones(len(like))
    for of, trials in places.items():
        others = np.array([other != of for other in stimulus])
        found[others] *= wins[np.ix_(trials, others)].mean(axis=0)
    return found


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
    """Drawn pictures of a generating script's folder with what was seen."""

    rows: list[Row]
    stimuli: list[Image.Image]
    drawn: list[Image.Image]
    true_class: list[Image.Image]  # from the true class's prompt; empty where draw_true_class.py was not run
    model: str  # the image model, as a picture says
    ceiling: str = TRUE_CLASS  # what the pictures of `true_class` were drawn from, in words
    # what further pictures of the same trials were drawn from, in words → the pictures
    others: dict[str, list[Image.Image]] = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)  # how all were drawn, see `way_of`
    faults: list[str] = field(default_factory=list)  # why what was drawn is no picture, see `fault_of`; "" of one
    left_out: dict[str, str] = field(default_factory=dict)  # way of drawing → how many are no pictures, and why

    def scored(self) -> "Pictures":
        """Those that are scored: trials whose picture is none are left out, and said.

        In `true_class` and `others`, None stands where a trial's picture is none.
        """
        ways = {DRAWN: self.faults} | {way: list(map(fault_of, drawn)) for way, drawn in self.ways().items()}
        left_out = {}
        for way, faults in ways.items():
            counts = Counter(filter(None, faults))
            if counts:
                why = ", ".join(f"{n} {fault}" for fault, n in counts.items())
                left_out[way] = f"{counts.total()} of {len(faults)} ({why})"
        kept = [k for k, fault in enumerate(self.faults) if not fault]

        def part(way: str, pictures: list) -> list:
            return [None if ways[way][k] else pictures[k] for k in kept] if pictures else []

        return replace(
            self,
            rows=[self.rows[k] for k in kept],
            stimuli=[self.stimuli[k] for k in kept],
            drawn=part(DRAWN, self.drawn),
            true_class=part(self.ceiling, self.true_class),
            faults=[""] * len(kept),
            others={way: part(way, pictures) for way, pictures in self.others.items()},
            left_out=left_out,
        )

    def ways(self) -> dict[str, list]:
        """What the same trials were drawn from besides what was decoded, in words → their pictures."""
        return ({self.ceiling: self.true_class} if self.true_class else {}) | self.others


def read_pictures(folder: Path, rows: Sequence[Row], stimuli: Stimuli) -> Pictures:
    """UserError if a picture is missing or damaged, or those of the true classes were drawn in another way."""
    names = PictureFolder(folder, rows, {}, 0)
    paths = [names.path("generated", row) for row in rows]
    drawn, recipes = [_read(path) for path in paths], [drawn_with(path) or {} for path in paths]
    faults = [row.picture_fault or fault_of(picture) for row, picture in zip(rows, drawn, strict=True)]
    for path, row, recipe in zip(paths, rows, recipes, strict=True):
        if recipe.get("embedding", row.embedding) != row.embedding:
            raise UserError(f"{path} was drawn from something else than was decoded; draw again (--stage images)")

    def as_drawn(way: dict, recipe: dict) -> bool:  # but for what it was drawn from
        return bool(way) and all(way[k] == recipe.get(k) for k in set(way) - {"prompt", "model", "conditioning"})

    again = f"draw_true_class.py {folder} again"
    true_class, ways = _beside([true_class_picture(folder, row) for row in rows], recipes, as_drawn, again)
    ceiling = CAPTION if ways and ways[0].get("conditioning") == "caption" else TRUE_CLASS
    others = {}
    for name, words in COMPARED.items():

        def alike(way: dict, recipe: dict, name: str = name) -> bool:
            return way.get("drawn_from") == name and way_of(way) == way_of(recipe)

        beside = [compared_picture(folder, name, row) for row in rows]
        others[words], _ = _beside(beside, recipes, alike, "generate_eeg2img.py with --compare again")
    others = {words: pictures for words, pictures in others.items() if pictures}
    model, seen = str(recipes[0].get("model", "unknown")), [stimuli.of(row) for row in rows]
    return Pictures(list(rows), seen, drawn, true_class, model, ceiling, others, way_of(recipes[0]), faults)


def _beside(paths: Sequence[Path], recipes: Sequence[dict], fits: Callable, again: str) -> tuple[list, list[dict]]:
    """Other pictures of the same trials, if any, and how they were drawn; UserError where one does not fit."""
    if not any(path.is_file() for path in paths):
        return [], []
    ways = [drawn_with(path) or {} for path in paths]
    if not all(map(fits, ways, recipes)):
        raise UserError(f"{paths[0].parent} is not of these pictures; run {again}")
    return [_read(path) for path in paths], ways


def scored_pictures(run: Run, stimuli: Stimuli, none: list[str]) -> Pictures | None:
    """The pictures of a run that are scored, None where there is none; what is left out goes to `none`, in words."""
    pictures = read_pictures(run.place, run.rows, stimuli).scored()
    none += [f"{run.name}, {way}: {some}" for way, some in pictures.left_out.items()]
    return pictures if pictures.rows else None


def way_of(recipe: dict) -> dict:
    """How a picture was drawn: its recipe without what is a trial's own, or a sample's."""
    own = {"prompt", "seed", "embedding", "drawn_from", "samples"}
    return {name: value for name, value in recipe.items() if name not in own}


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path} is not there; draw first (--stage images)")
    with loading(f"{path} is no picture, or damaged", "remove it and draw again"), opened_picture(path) as picture:
        return picture.convert("RGB")


# ---------------------------------------------------------------- scores

NOTE = (
    "Pictures: means over trials with 95 % bootstrap intervals over trials, which speak of these people. Paired at "
    "random: the same pictures, each beside the stimulus of a random trial (mean of 5 pairings). True class's prompt: "
    "what an image model told the right class draws, the most that decoding a class can reach. PixCorr and SSIM at "
    "425 pixels; SSIM by column is what tables of this field print as SSIM. Two-way identification (AlexNet, "
    "Inception, CLIP): how often a picture is more like its own stimulus than like another one; guessing gives 50 %. "
    "Forward, '1 of K': how often its own stimulus is the likest of all K; backward: how often the picture drawn for a "
    "stimulus is the likest of K pictures, one of each stimulus; guessing gives 1/K. Trials of one stimulus are not "
    "asked against each other. The stimulus's own embedding: what the same image model draws when it is told what was "
    "seen, the most that decoding an embedding can reach; the nearest training image: drawn from that one's embedding. "
    "Above the control, and what a step adds: the difference of the means, whose interval draws trials anew (the same "
    "people and stimuli of both, where both have the same); 0 within it: the step did not help. A CLIP that an encoder "
    "was trained towards, or that chose the sample, judges its own: read the others beside it. EffNet-B and SwAV "
    "are distances: less is better. CLIP is the model that is named. What came out as no picture (not finite, "
    "blackened by a safety checker, of one colour) is left out, with its number."
)
Values = dict[str, np.ndarray]  # metric → (N,) values of the trials


def values_of(pictures: Pictures, networks: dict[str, Callable], control: Pictures | None = None) -> dict[str, Values]:
    """Way of drawing → metric → (N,) values of the trials.

    Ways: the pictures as decoded; the same pictures paired at random with the stimuli (values are means over pairings);
    pictures from the true class's prompt, the most that decoding a class can reach with this image model; what else the
    same trials were drawn from; the control's pictures. Raises UserError where the control was drawn in another way.
    """
    if control and control.recipe != pictures.recipe:
        mine, its = pictures.recipe, control.recipe
        names = ", ".join(sorted(name for name in {*mine, *its} if mine.get(name) != its.get(name)))
        raise UserError(f"the control's pictures were drawn in another way than the run's ({names}); draw both alike")
    rng, n = np.random.default_rng(0), len(pictures.rows)
    stimulus = list(map(_stimulus, pictures.rows))
    real = _Views(pictures.stimuli, networks, "the stimuli")
    drawn = _Views(pictures.drawn, networks, "the pictures")
    values = {DRAWN: _values(real, drawn, stimulus)}
    if n > 1:
        shuffled = [_values(real, drawn, stimulus, rng.permutation(n)) for _ in range(PAIRINGS)]
        values[RANDOM] = {name: np.mean([one[name] for one in shuffled], axis=0) for name in shuffled[0]}
    for words, others in pictures.ways().items():
        if kept := [k for k, picture in enumerate(others) if picture is not None]:
            views = _Views([others[k] for k in kept], networks, words)
            values[words] = _values(real.part(kept), views, [stimulus[k] for k in kept])
    if control:
        real = _Views(control.stimuli, networks, "the control's stimuli")
        drawn = _Views(control.drawn, networks, "the control's pictures")
        values[CONTROL] = _values(real, drawn, list(map(_stimulus, control.rows)))
    return values


def lines_of(pictures: Pictures, values: dict[str, Values], control: Pictures | None = None) -> list[dict]:
    """A line a way of drawing, with each metric's mean and 95 % interval; and one for what is above the control."""
    lines = []
    for images, of_metrics in values.items():
        lines.append(_line(pictures, images, len(next(iter(of_metrics.values())))))
        for name, of_trials in of_metrics.items():
            lines[-1] |= _named(name, mean_and_interval(of_trials))
    if control:
        lines.append(difference_line(OVER_CONTROL, pictures, values[DRAWN], control.rows, values[CONTROL]))
    return lines


def difference_line(words: str, pictures: Pictures, values: Values, other_rows: Sequence[Row], others: Values) -> dict:
    """How much higher pictures stand than others; intervals draw the same people and stimuli of both, if they can."""
    same = _same_stimuli(pictures.rows, other_rows)
    line = _line(pictures, words, len(pictures.rows))
    for name in [name for name in values if name in others]:
        theirs = others[name] if same is None else others[name][same]
        line |= _named(name, difference(values[name], theirs, paired=same is not None))
    return line


def steps_of(argument: Mapping) -> dict[str, object]:
    """What stood between EEG and picture, in words → from where, by the arguments of a run of generate_eeg2img.py."""
    conditioning, samples = argument.get("conditioning"), argument.get("samples")
    conditioning = conditioning if isinstance(conditioning, list) else []
    steps = {
        "the embedding": "ip_adapter" in conditioning,
        "the map": "controlnet" in conditioning and (argument.get("structure_dir") or argument.get("model_dir")),
        "the prior": argument.get("prior_dir"),
        "the low level": argument.get("low_level_dir"),
        "the caption": argument.get("caption_dir"),
        f"the choice among {samples}": samples not in (None, 1),
    }
    return {step: place for step, place in steps.items() if place}


def check_steps_of_control(argument: Mapping, its: Mapping) -> None:
    """UserError where other steps stood between EEG and picture in a control than in its run."""
    mine, other = set(steps_of(argument)), set(steps_of(its))
    of_prior = ALIKE[-2:] if "the prior" in mine & other else ()
    differs = sorted(mine ^ other) + [name for name in of_prior if argument.get(name) != its.get(name)]
    if differs:
        steps = ", ".join(differs)
        raise UserError(f"the control's pictures were made by other steps than the run's ({steps}); make both alike")


def step_between(argument: Mapping, other: Mapping, recipe: Mapping, its_recipe: Mapping) -> str | None:
    """The one step that a run has and another has not, where all else is alike; None where that is not so.

    argument, other : mappings. Of both runs' records. recipe, its_recipe : mappings. How both drew, see `way_of`.
    """
    mine, its = steps_of(argument), steps_of(other)
    more = [step for step in mine if step not in its]
    alike = all(argument.get(name) == other.get(name) for name in ALIKE)
    alike = alike and all(recipe[name] == its_recipe[name] for name in set(recipe) & set(its_recipe) - STEPS_OF_RECIPE)
    return more[0] if alike and len(more) == 1 and mine == its | {more[0]: mine[more[0]]} else None


def _line(pictures: Pictures, images: str, n: int) -> dict:
    line = {"images": images, "model": pictures.model, "n": n, "people": len({row.subject for row in pictures.rows})}
    used = {USED: pictures.rows[0].uses} if pictures.rows[0].uses not in ("", USES[0]) else {}
    return line | used | ({"left out": pictures.left_out[images]} if images in pictures.left_out else {})


class _Views:
    """Pictures, each different one once, and their features in all networks."""

    def __init__(self, pictures: Sequence[Image.Image], networks: dict[str, Callable], what: str):
        kept: dict[tuple, int] = {}
        self.place = np.array([kept.setdefault((p.size, p.tobytes()), len(kept)) for p in pictures])
        self.different = [pictures[k] for k in np.unique(self.place, return_index=True)[1]]
        bar = progress(networks, desc=what, unit="network")
        self.features = {name: networks[name](self.different).float().numpy() for name in bar}

    def part(self, places: Sequence[int]) -> "_Views":
        """Those of some trials."""
        part = copy.copy(self)
        part.place = self.place[places]
        return part

    def of(self, name: str, order: np.ndarray) -> np.ndarray:
        """(N, D) features of the trials in an order."""
        return self.features[name][self.place[order]]


def _values(real: _Views, drawn: _Views, stimulus: Sequence, order: np.ndarray | None = None) -> Values:
    """Metric → (N,) values of the trials; picture order[j] stands beside stimulus j, picture j without an order."""
    trials = np.arange(len(stimulus))
    order = trials if order is None else order
    pairs = list(zip(real.place.tolist(), drawn.place[order].tolist(), strict=True))
    of_pairs = {}
    for a, b in set(pairs):
        both = pixels([real.different[a], drawn.different[b]], EDGE).numpy()
        of_pairs[a, b] = [metric(*both) for metric in METRICS.values()]
    values = {name: np.array([of_pairs[pair][k] for pair in pairs]) for k, name in enumerate(METRICS)}
    for name in real.features:
        ours, theirs = real.of(name, trials), drawn.of(name, order)
        if name in DISTANCES:  # less is better
            values[name] = 1 - correlations(ours, theirs).diagonal()
        else:
            values[name] = identification(ours, theirs, stimulus)
        if name.startswith("CLIP"):
            k = len(set(stimulus))
            values[f"{name}, forward, 1 of {k}"] = one_of_k(theirs, ours, stimulus)
            values[f"{name}, backward, 1 of {k}"] = one_of_k(ours, theirs, stimulus)
    return values


def _named(metric: str, interval: tuple[float, float, float]) -> dict[str, float]:
    """Mean, low and high under the names that a line has for them."""
    return dict(zip((metric, f"{metric}, low", f"{metric}, high"), interval, strict=True))


def _stimulus(row: Row) -> str | int:
    """What was seen: the trial's own image where it has one, else its class."""
    return row.image or row.true_label


def _same_stimuli(rows: Sequence[Row], others: Sequence[Row]) -> list[int] | None:
    """Places in `others` of each row's person and stimulus; None where both do not hold the same ones, once each."""
    keys = [(row.subject, _stimulus(row)) for row in rows]
    place = {(row.subject, _stimulus(row)): k for k, row in enumerate(others)}
    if len(set(keys)) == len(keys) == len(others) and set(keys) == set(place):
        return [place[key] for key in keys]
    return None


def images_table(lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells in words; a metric that a line has not is empty there."""
    metrics = list(dict.fromkeys(name for line in lines for name in line if f"{name}, low" in line))
    used = [USED] * any(USED in line for line in lines)
    cells = []
    for line in lines:
        about = [line.get(head, USES[0]) for head in used]
        cells.append([line["run"], line["images"], str(line["n"]), str(line["people"]), *about])
        for m in metrics:
            known = np.isfinite(line.get(m, np.nan))
            cells[-1].append(f"{line[m]:.3f} ({line[f'{m}, low']:.3f} to {line[f'{m}, high']:.3f})" if known else "")
    heads = ["run", "images", "n", "people", *used, *metrics]
    for head in ("left out", "encoder"):
        if any(line.get(head) for line in lines):
            heads.append(head)
            cells = [[*cell, line.get(head, "")] for cell, line in zip(cells, lines, strict=True)]
    return heads, cells
