"""One HTML file to look at: tables, figures, and a card for every picture with trial, text, probabilities and EEG."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from datasets.montage import Montage
from datasets.recording import origin
from datasets.store import open_store
from evaluation.decoded_runs import Run, description_of
from evaluation.image_metrics import read_pictures
from stages.pictures import Stimuli, marked
from stages.rows import PICTURE, Row
from utils.errors import UserError
from utils.script import CONTROL

THUMB = 192  # pixels, edge of a picture on a card
MOST_CARDS = 300  # of a run: a page that a phone opens
WIDE, HIGH, POINTS = 240, 18, 160  # of the EEG thumbnail: width, height of a region's line, points of a line
SECTIONS_OPEN = 3  # tables that are unfolded at first


def cards(run: Run, stimuli: Stimuli) -> Iterator[dict]:
    """What stands on the card of each drawn trial.

    stimuli : Stimuli. What was seen.
    Raises UserError if a picture is missing or damaged.
    """
    picked = np.linspace(0, len(run.rows) - 1, min(MOST_CARDS, len(run.rows))).round().astype(int)
    rows = [run.rows[k] for k in np.unique(picked)]
    pictures, description = read_pictures(run.place, rows, stimuli), description_of(run)
    # where the store says the classes, as the rows name them
    classes = dict(enumerate(description.classes)) or {row.true_label: row.true_name for row in run.rows}
    signals = _Signals(run)
    for row, seen, drawn, fault in zip(rows, pictures.stimuli, pictures.drawn, pictures.faults, strict=True):
        read_by = next((name for name, read in row.readouts.items() if read.probabilities is not None), None)
        p = row.readouts[read_by].probabilities if read_by else []
        chances = [(classes.get(k, f"class {k}"), chance) for k, chance in enumerate(p)]
        card = {"run": run.name, "person": row.subject, "session": row.session, "recording": row.run}
        card |= {"trial": row.trial, "true": row.true_name, "decoded": row.predicted_name or "no class"}
        card |= {"right": row.predicted_label == row.true_label, "simulated": row.simulated}
        if looks := row.readouts.get(PICTURE):  # what a reader sees is judged
            card["decoded"] += f" · picture looks like: {classes.get(looks.label, 'no class')}"
            card["right"] = looks.label == row.true_label
        card |= {"text": row.text, "prompt": row.prompt, "model": Path(pictures.model).name}
        card |= {"encoder": run.encoder_note, "fault": fault}
        card |= {"seen": _embedded(seen), "drawn": _embedded(marked(drawn)), "eeg": signals.of(row)}
        yield card | {"read_by": read_by, "chances": sorted(chances, key=lambda named: -named[1])[:5]}


def page(
    sections: dict[str, tuple],
    warnings: Sequence[str],
    notes: Sequence[str],
    figures: Sequence[Path],
    made: Sequence[dict],
    drawn: Sequence[Run] = (),
) -> str:
    """The page; whatever is put into it is escaped, and it loads nothing.

    sections : dict of title to (heads, cells).
    figures : sequence of Path. PNG files.
    made : sequence of dict. Of `cards`.
    drawn : sequence of Run. Whose pictures they are.
    """
    shown = Counter(card["run"] for card in made)
    words = "pictures are shown, spread over all of them"
    of_all = [(run.name, shown[run.name], len(run.rows)) for run in drawn]
    left_out = [f"Of {name}, {some} of {n} {words}." for name, some, n in of_all if some < n]
    place, layout = jinja2.FileSystemLoader(Path(__file__).parent), {"trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=place, autoescape=True, undefined=jinja2.StrictUndefined, **layout)
    content = {"sections": sections, "warnings": warnings, "notes": notes, "cards": made, "left_out": left_out}
    content["figures"] = [(path.stem.replace("_", " "), _data("png", path.read_bytes())) for path in figures]
    content["kinds"] = {kind: sorted({card[kind] for card in made}) for kind in ("run", "true", "person")}
    html = environment.get_template("report.html").render(content, wide=WIDE, opened=SECTIONS_OPEN)
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", html)  # they would turn a line's direction, or hide what it says


def _embedded(picture: Image.Image) -> str:
    """A small copy as a data address."""
    small, content = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMB, THUMB))
    small.save(content, format="JPEG", quality=82)
    return _data("jpeg", content.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class _Signals:
    """The EEG of decoded trials, from the store that a run says it read; nothing where that is not there any more."""

    def __init__(self, run: Run):
        self.store, place = None, run.recorded_place("datasets_dir")
        try:
            store = open_store(place) if place and place.exists() else None
            wanted = run.record.get("store") or run.depends_on.get("store")
            if store is not None and store.fingerprint == wanted:
                self.store, self.montage = store, description_of(run).montage
                self.trials = {origin(trial): trial for trial in store.trials}
        except UserError as error:
            print(f"notice: {run.name}: no EEG on its cards: {error}")
        if self.store is None:
            print(f"notice: {run.name}: no EEG on its cards: the store {place} is not there, or is another one now")

    def of(self, row: Row) -> dict | None:
        """Lines of the thumbnail: a brain region's mean each, with the microvolts that its height means."""
        trial = self.trials.get(origin(row)) if self.store else None
        if trial is None:
            return None
        return thumbnail(self.store.read(trial)[: len(self.montage.electrodes)], self.montage, self.store.sfreq)


def thumbnail(signal: np.ndarray, montage: Montage, sfreq: float) -> dict:
    """Means of the brain regions as points of SVG polylines.

    signal : (n_chans, n_times) array. Microvolts at `sfreq` Hz.
    Returns dict: `lines`, (region, points) of each; `height`, pixels; `scale`, microvolts between two lines; `seconds`.
    """
    names = list(dict.fromkeys(montage.region_names))
    regions = np.array(montage.region_names)
    means = np.stack([signal[np.flatnonzero(regions == name)].mean(axis=0) for name in names])
    means = means - means.mean(axis=1, keepdims=True)
    scale = max(float(np.abs(means).max()), 1e-9)  # microvolts; half a line's height
    picked = np.linspace(0, means.shape[1] - 1, min(POINTS, means.shape[1])).astype(int)
    x = picked / max(means.shape[1] - 1, 1) * WIDE
    lines = []
    for k, name in enumerate(names):
        y = (k + 0.5) * HIGH - means[k, picked] / scale * HIGH * 0.9
        lines.append((name, " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))))
    height, seconds = len(names) * HIGH, signal.shape[1] / sfreq
    return {"lines": lines, "height": height, "scale": round(2 * scale, 1), "seconds": seconds}
