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
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    places = [(0, k) for k in range(min(FIRST, len(trials)))]
    places += [(1 + k // columns, k % columns) for k in range(len(labels))]
    for (row, column), (title, x) in zip(places, panels, strict=True):
        axis, largest = axes[row, column], float(np.percentile(np.abs(x), 99)) or 1.0
        axis.set_visible(True)
        extent = (settings.tmin, settings.tmax, len(names) - 0.5, -0.5)
        axis.imshow(
            x, aspect="auto", cmap="RdBu_r", vmin=-largest, vmax=largest, extent=extent, interpolation="nearest"
        )
        axis.set_title(f"{title}\n±{largest:.0f} µV", fontsize=7)
        axis.tick_params(labelsize=6)
        if column == 0:
            axis.set_yticks(range(len(names)), names, fontsize=max(2, min(7, 120 // len(names))))
        else:
            axis.set_yticks([])
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
