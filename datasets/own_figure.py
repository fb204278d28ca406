"""A small picture of the first trials of a recording: electrodes × time, and the mean of each class."""

from collections import Counter
from pathlib import Path

import numpy as np

from datasets.description import DatasetDescription
from datasets.prepare import cut_trials
from datasets.preprocessing import Preprocessing
from utils.errors import UserError
from utils.paths import written_whole

FIRST = 6  # trials


def draw_first_trials(
    description: DatasetDescription, file, settings: Preprocessing, scale: float | None, path: Path
) -> None:
    """Draw the first trials of one recording and the mean over its trials of each class; UserError without trials."""
    from matplotlib.figure import Figure  # slow to import

    names, trials = description.montage.electrodes, []
    for recording in description.recordings(file):
        trials += cut_trials(recording, file, settings, scale, Counter(), names)[0]
    if not trials:
        raise UserError(f"{file} gives no trial: all windows leave the recording, or all were left out")
    labels = sorted({trial.label for trial, _ in trials})
    panels = [(f"trial {t.trial}: {description.classes[t.label]}", x) for t, x in trials[:FIRST]]
    for label in labels:
        of_class = [x for trial, x in trials if trial.label == label]
        panels.append((f"mean of {len(of_class)}: {description.classes[label]}", np.mean(of_class, axis=0)))
    columns = max(FIRST, len(labels)) if len(labels) <= 12 else FIRST
    rows = 1 + -(-len(labels) // columns)
    figure = Figure(figsize=(2.2 * columns, 0.6 + 1.9 * rows), layout="constrained")
    n_first = min(FIRST, len(trials))
    places = [*range(1, 1 + n_first), *range(1 + columns, 1 + columns + len(labels))]  # trials in the first row
    for place, (title, x) in zip(places, panels, strict=True):
        axis, largest = figure.add_subplot(rows, columns, place), float(np.percentile(np.abs(x), 99)) or 1.0
        extent = (settings.tmin, settings.tmax, len(names) - 0.5, -0.5)
        colours = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest, "interpolation": "nearest"}
        axis.imshow(x, aspect="auto", extent=extent, **colours)
        axis.set_title(f"{title}\n±{largest:.0f} µV", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
        if place % columns == 1:
            axis.set_yticks(range(len(names)), names, fontsize=max(2, min(7, 120 // len(names))))
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
