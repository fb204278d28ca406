"""Figures of `evaluate.py`: all lines, confusion, reliability; of ablations a curve over windows, a map of regions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the back end is chosen
import numpy as np  # noqa: E402

from datasets.montage import REGION_NAMES, Montage  # noqa: E402
from evaluation import tables  # noqa: E402
from evaluation.decoded_runs import Run, description_of, families  # noqa: E402
from evaluation.statistics import calibration, confusion  # noqa: E402
from utils.paths import written_whole  # noqa: E402

LEAST_ELECTRODES = 4  # of a map of the head
plt.rcParams |= {"figure.constrained_layout.use": True, "savefig.dpi": 120, "legend.fontsize": 8}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}


def plain(text: str) -> str:
    """Text for a figure: what matplotlib would take for a formula, or cannot draw, is what it is."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def confusion_figure(run: Run, path: Path) -> None:
    """How many trials of each true class were decoded as each class, or as none, by the first read-out."""
    readout, rows, n_classes = run.main_readout, run.rows, run.n_classes
    names = {row.true_label: row.true_name for row in rows}
    counts = confusion([r.true_label for r in rows], [r.readouts[readout].label for r in rows], n_classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.5 + 0.8 * n_classes, 1 + 0.7 * n_classes))
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for (i, j), n in np.ndenumerate(counts):
        axis.text(j, i, n, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    labels = [plain(names.get(k, str(k))) for k in range(n_classes)]
    axis.set_xticks(range(n_classes + 1), [*labels, "none"], rotation=30, ha="right")
    axis.set_yticks(range(n_classes), labels)
    axis.set(xlabel="decoded", ylabel="true", title=f"{plain(run.name)}, {plain(readout)}, n = {len(rows)}")
    save(figure, path)


def reliability_figure(run: Run, path: Path) -> None:
    """Accuracy by confidence, for every read-out with probabilities; on the dashed line they can be believed."""
    figure, axis = plt.subplots(figsize=(4, 4.2))
    axis.plot([0, 1], [0, 1], "--", color="grey", lw=1)
    for name in tables.with_probabilities(run.rows):
        confidence = [row.readouts[name].probabilities[row.readouts[name].label] for row in run.rows]
        error, bins = calibration(run.right(name), confidence)
        x, y, n = np.array(bins).T
        axis.plot(x, y, "-", lw=1, label=f"{plain(name)}, expected error {error:.3f}")
        axis.scatter(x, y, s=10 + 200 * n / n.sum())  # as large as its trials are many
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.set_title(f"{plain(run.name)}, n = {len(run.rows)}")
    figure.legend(loc="outside lower center")
    save(figure, path)


def accuracy_figure(lines: Sequence[dict], path: Path) -> None:
    """Accuracy, interval, chance and control of every line."""
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.35 * len(lines)))
    for y, line in enumerate(lines):
        low, high = 100 * np.array(spread_of(line))
        axis.plot([low, high], [y, y], color="C0", lw=2)
        axis.plot(100 * line["accuracy"], y, "o", color="C0", label="accuracy, interval or sd" if y == 0 else None)
        axis.plot(100 * line["chance"], y, "|", color="black", ms=12, label="chance" if y == 0 else None)
        if "control" in line:
            axis.plot(100 * line["control"], y, "x", color="firebrick", label="control")
    axis.set_yticks(range(len(lines)), [plain(f"{line['run']}, {line['readout']}") for line in lines])
    axis.set(xlabel="accuracy (%)", xlim=(0, 100))
    axis.invert_yaxis()
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one of each
    figure.legend(handles.values(), handles.keys(), ncols=3, loc="outside lower center")
    save(figure, path)


def spread_of(line: dict) -> tuple[float, float]:
    """From where to where a line's accuracy goes: its interval, or a standard deviation to both sides, or nothing."""
    if "sd" in line:
        return line["accuracy"] - line["sd"], line["accuracy"] + line["sd"]
    return tuple(line["accuracy"] if line.get(end) is None else line[end] for end in ("low", "high"))


# ---------------------------------------------------------------- ablations


def ablation_figures(groups: Sequence[Sequence[Run]], of_group: Sequence[dict], folder: Path) -> list[Path]:
    """windows_N.png and regions_N.png of the groups that differ in that alone. `of_group`: each group's line."""
    made = []
    for number, family in enumerate(families(groups, "window"), start=1):
        curve = sorted((of_group[k] for k in family if of_group[k]["window"]), key=lambda line: line["window"][1])
        if len(curve) > 1:
            made.append(folder / f"windows_{number}.png")
            windows_figure(curve, made[-1])
    for number, family in enumerate(families(groups, "regions"), start=1):
        montage = description_of(groups[family[0]][0]).montage
        if regions_figure([of_group[k] for k in family], montage, folder / f"regions_{number}.png"):
            made.append(folder / f"regions_{number}.png")
    return made


def repetitions_figure(curve: Sequence[tuple[int, Sequence[dict]]], name: str, path: Path) -> None:
    """Top-1 and top-5 over the number of averaged test repetitions; mean over people, and each person's top-1 in grey.

    curve : sequence of (repetitions, lines of `retrieval.score_lines`).
    """
    figure, axis = plt.subplots(figsize=(5, 3.4))
    numbers, readout = [n for n, _ in curve], curve[0][1][0]["read-out"]
    of_people = defaultdict(list)  # person → lines by number of repetitions
    for _, lines in curve:
        for line in lines:
            if line["read-out"] == readout:
                of_people[line["person"]].append(line)
    *people, everybody = of_people
    for person in people:
        axis.plot(numbers, [100 * line["top-1"] for line in of_people[person]], "-", ms=4, color="lightgrey", zorder=1)
    for k, style, color in ((1, "o-", "C0"), (5, "s--", "C1")):
        share = [100 * line[f"top-{k}"] for line in of_people[everybody]]
        axis.plot(numbers, share, style, ms=4, color=color, label=f"top-{k}, {everybody}")
    mean = of_people[everybody][0]
    axis.axhline(100 * mean["chance"], color="grey", ls="--", lw=1, label="chance, top-1")
    axis.set(xscale="log", xticks=numbers, xticklabels=numbers, ylim=(0, 100))
    axis.set(xlabel="averaged test repetitions", ylabel="retrieved (%)")
    axis.set_title(f"{plain(name)}, n = {mean['n']}, {mean['candidates']} candidates")
    axis.minorticks_off()
    figure.legend(ncols=3, loc="outside lower center")
    save(figure, path)


def windows_figure(lines: Sequence[dict], path: Path) -> None:
    """Accuracy over the end of a growing window, with interval, chance and controls.

    lines : sequence of dict. As the table's, each with `window`, in seconds.
    """
    figure, axis = plt.subplots(figsize=(5, 3.4))
    ends = [line["window"][1] for line in lines]
    low, high = 100 * np.array([spread_of(line) for line in lines]).T
    axis.plot(ends, [100 * line["accuracy"] for line in lines], "o-", ms=4, label="accuracy, interval or sd")
    axis.fill_between(ends, low, high, alpha=0.15, linewidth=0)
    axis.axhline(100 * lines[0]["chance"], color="grey", ls="--", lw=1, label="chance")
    with_control = [(end, 100 * line["control"]) for end, line in zip(ends, lines, strict=True) if "control" in line]
    if with_control:
        axis.plot(*zip(*with_control, strict=True), "x", color="firebrick", label="control")
    start = min(line["window"][0] for line in lines)
    axis.set(xlabel=f"window from {start:g} s to … (s)", ylabel="accuracy (%)", ylim=(0, 100))
    axis.set_title(f"{plain(lines[-1]['run'])}, n = {lines[0]['n']}")
    axis.legend()
    save(figure, path)


def regions_figure(lines: Sequence[dict], montage: Montage, path: Path) -> bool:
    """Topographic maps: what is lost without a region, and what a region alone gives; whether one could be drawn.

    lines : sequence of dict. As the table's: one with all regions, and some with one region left out, or alone.
    """
    import mne

    names = [REGION_NAMES[code] for code in sorted(montage.topology)]
    whole = next((line for line in lines if not line["regions"]), None)
    some = [line for line in lines if line["regions"] and set(line["regions"]) <= set(names)]
    out = {r: line for line in some for r in names if sorted(line["regions"]) == sorted(set(names) - {r})}
    alone = {line["regions"][0]: line for line in some if len(line["regions"]) == 1}
    places = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
    if whole is None or not (out or alone) or not set(montage.electrodes) <= set(places):
        return False
    info = mne.create_info(list(montage.electrodes), 100.0, "eeg")
    info.set_montage("standard_1005")
    lost = {r: 100 * (whole["accuracy"] - line["accuracy"]) for r, line in out.items()}
    kept = {r: 100 * line["accuracy"] for r, line in alone.items()}
    panels = [("left out: points lost", lost, -1, "RdBu_r"), ("alone: accuracy (%)", kept, 0, "viridis")]
    electrodes = [sum(region in values for region in montage.region_names) for _, values, *_ in panels]
    panels = [panel for panel, n in zip(panels, electrodes, strict=True) if n >= LEAST_ELECTRODES]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.4), squeeze=False)
    for axis, (title, values, lowest, colours) in zip(axes[0], panels, strict=True):
        of_electrode = np.array([values.get(region, np.nan) for region in montage.region_names])
        known = np.flatnonzero(np.isfinite(of_electrode))
        largest = max(abs(of_electrode[known]).max(), 1e-6)
        style = {"contours": 0, "image_interp": "nearest", "vlim": (lowest * largest, largest), "cmap": colours}
        positions = mne.pick_info(info, known)
        image, _ = mne.viz.plot_topomap(of_electrode[known], positions, axes=axis, show=False, **style)
        figure.colorbar(image, ax=axis, shrink=0.7)
        axis.set_title(f"{title}\n{', '.join(f'{region} {value:.0f}' for region, value in values.items())}", fontsize=8)
    title = f"{plain(whole['run'])}: {100 * whole['accuracy']:.1f} % with all regions, n = {whole['n']}"
    figure.suptitle(title, fontsize=10)
    save(figure, path)
    return True


# ---------------------------------------------------------------- attribution


def time_course_figure(courses: Mapping[str, np.ndarray], times: np.ndarray, path: Path) -> None:
    """What each moment adds to the probability of a class, a curve a class, smoothed over a tenth of a second.

    courses : mapping of a class to (T,) sums over electrodes. times : (T,) seconds.
    """
    figure, axis = plt.subplots(figsize=(6, 3.4))
    width = max(1, round(0.1 / (times[1] - times[0]))) if len(times) > 1 else 1
    for name, course in courses.items():
        smooth = np.convolve(course, np.ones(width) / width, mode="same")
        axis.plot(times, smooth / (times[1] - times[0]), label=plain(name))
    axis.axhline(0, color="grey", lw=0.8)
    axis.set(xlabel="seconds", ylabel="adds to the probability, per second")
    axis.legend()
    save(figure, path)


def topography_figure(maps: Mapping[str, np.ndarray], electrodes: Sequence[str], path: Path) -> None:
    """What each electrode adds to the probability of a class, a head a class.

    maps : mapping of a class to (C,) sums over time. Of fewer electrodes than a head needs, bars.
    """
    import mne

    places = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
    known = [k for k, name in enumerate(electrodes) if name in places]
    heads = len(known) >= LEAST_ELECTRODES
    figure, axes = plt.subplots(1, len(maps), figsize=(3.2 * len(maps), 3.4), squeeze=False)
    largest = max(max(np.abs(values).max() for values in maps.values()), 1e-9)
    for axis, (name, values) in zip(axes[0], maps.items(), strict=True):
        if heads:
            info = mne.create_info([electrodes[k] for k in known], 100.0, "eeg")
            info.set_montage("standard_1005")
            style = {"contours": 0, "vlim": (-largest, largest), "cmap": "RdBu_r", "show": False}
            image, _ = mne.viz.plot_topomap(values[known], info, axes=axis, **style)
        else:
            axis.bar(range(len(electrodes)), values)
            axis.set_xticks(range(len(electrodes)), electrodes)
            axis.set(ylim=(-1.1 * largest, 1.1 * largest), ylabel="adds to the probability")
        axis.set_title(plain(name), fontsize=9)
    if heads:
        figure.colorbar(image, ax=axes[0].tolist(), shrink=0.7, label="adds to the probability")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, whole."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format="png")
    plt.close(figure)
