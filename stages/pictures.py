"""Pictures: what a person saw, the folder of what is drawn for each decoded trial, comparisons, the grid."""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from stages.rows import Row, write_rows
from utils.device import free_gpu_memory
from utils.errors import UserError
from utils.limits import opened_picture
from utils.paths import image_path, written_whole
from utils.photos import ONE_COLOUR, OddPictures, one_colour, whole_picture
from utils.processes import Processes
from utils.progress import progress

PANEL = 256  # pixels, edge of one picture in a comparison
LONGEST_FAULT = 100  # characters; a picture's file may be anybody's
HEADER = 40  # pixels, height of a comparison's coloured header
GREEN, RED, GREY, AMBER = (34, 139, 58), (190, 40, 40), (110, 110, 110), (255, 190, 60)
Picture = Image.Image
PictureOf = Callable[[Row], Picture | None]

# ---------------------------------------------------------------- stimuli: cues and photos


def cue_arrow(direction: str, size: int = PANEL) -> Picture:
    """The cue that BCIC-IV-2a's subjects saw: a white arrow on a fixation cross, black ground.

    direction : {"left", "right", "down", "up"}. left hand, right hand, feet, tongue.
    size : int. Edge in pixels.
    """
    image = Image.new("RGB", (size, size), "black")
    draw = ImageDraw.Draw(image)
    c, arm, line = size / 2, size * 0.30, max(1, size // 42)
    draw.line([(c - arm, c), (c + arm, c)], fill=GREY, width=line)
    draw.line([(c, c - arm), (c, c + arm)], fill=GREY, width=line)
    # an arrow that points right, turned as asked
    shaft, head = size * 0.20, size * 0.13
    points = np.array([(0, -line), (shaft, -line), (shaft, -head), (shaft + 1.5 * head, 0)])
    points = np.concatenate([points, (points * [1, -1])[::-1]])
    turn = np.deg2rad({"right": 0, "down": 90, "left": 180, "up": 270}[direction])
    turned = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    draw.polygon([tuple(p) for p in turned + c], fill="white")
    return image


def read_photo(path: Path) -> Picture:
    """A photo in RGB; UserError names what is missing, too large, truncated or no picture."""
    return whole_picture(path, "stimulus photo", "preparing the dataset fetches it, --stimuli_dir names its folder")


class Stimuli:
    """What the person saw: "arrow left" is drawn, a file name is read from `folder`, nothing is a grey panel.

    by_label : mapping of int to str. `DatasetDescription.stimuli`.
    Raises UserError if a photo is missing or no picture.
    """

    def __init__(self, by_label: Mapping[int, str], n_classes: int, folder: Path):
        self.folder = folder
        self.by_label = [self._picture(by_label.get(label)) for label in range(n_classes)]
        odd = OddPictures()
        for label, picture in enumerate(self.by_label):
            if label in by_label:
                odd.add(by_label[label], picture)
        odd.report(f"stimuli in {folder}")

    def _picture(self, name: str | None) -> Picture:
        if name is None:
            return Image.new("RGB", (PANEL, PANEL), "lightgrey")
        if name.startswith("arrow "):
            return cue_arrow(name.removeprefix("arrow "))
        return read_photo(self.folder / name)

    def of(self, row: Row) -> Picture:
        """The trial's own image where it has one, else its class's."""
        if not row.image:
            return self.by_label[row.true_label]
        path = image_path(self.folder, row.image).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"the image {row.image!r} of trial {row.index} is outside {self.folder}")
        return read_photo(path)


# ---------------------------------------------------------------- the folder of drawn pictures


def drawing_recipe(model: str, steps: int | None, guidance: float | None, size: int, scheduler: str = "dpm") -> dict:
    """What all pictures of a folder are drawn with. The usual sampler has no name, as before it could be chosen."""
    named = {} if scheduler == "dpm" else {"scheduler": scheduler}
    return {"model": model, "steps": steps, "guidance": guidance, "size": size} | named


class PictureFolder:
    """What is drawn for decoded trials. A picture carries its recipe, so a repeated run draws only what is missing.

    The true label names files and colours headers; neither the prompt nor the seed depends on it.

    recipe : dict. What all pictures are drawn with: model, steps, guidance, size.
    seed : int. Trial i is drawn from seed + i.
    more : callable, optional. Row → what a picture depends on besides prompt, seed and `recipe`.
    processes : Processes, optional. Those that share what is missing.

    missing : list of Row. Without a picture, that this process has to draw.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        recipe: dict,
        seed: int,
        more: Callable[[Row], dict] | None = None,
        processes: Processes | None = None,
    ):
        self.folder, self.rows, self.seed = folder, rows, seed
        self.recipes, self.missing = {}, []
        for row in rows:
            own = {"prompt": row.prompt, "seed": seed + row.index} | recipe | (more(row) if more else {})
            self.recipes[row.index] = own
            if not is_drawn(self.path("generated", row), own):
                self.missing.append(row)
        self.n_missing = len(self.missing)
        if processes:
            self.missing = processes.share(self.missing)

    def path(self, kind: str, row: Row) -> Path:
        """File of a trial; made of integers only."""
        return self.folder / f"{kind}_{row.index:04d}_true{row.true_label}_pred{row.predicted_label}.png"

    def draw_missing(self, draw: Callable[[list[Row], list[int]], list[Picture]], at_once: int) -> None:
        """Draw and keep what is missing, so many pictures together. `draw`: rows and their seeds → pictures."""
        for rows in together(self.missing, at_once, "drawing"):
            for row, picture in zip(rows, draw(rows, [self.seed + row.index for row in rows]), strict=True):
                self.keep(row, picture)

    def keep(self, row: Row, picture: Picture) -> None:
        """Write a picture with its recipe."""
        save_with_recipe(picture, self.recipes[row.index], self.path("generated", row))

    def finish(
        self,
        stimulus: PictureOf,
        ceiling: Callable[[Row], Path] | None = None,
        looks_like: Callable[[Row], str | None] | None = None,
    ) -> None:
        """Comparisons and the grid, and in decoded.jsonl which pictures are none; those of trials that were decoded
        otherwise before are removed.

        ceiling : callable, optional. Row → a picture drawn from the truth, shown between stimulus and decoded picture.
        looks_like : callable, optional. Row → the class that its picture looks like, for pictures that no class was
            drawn from; None where nobody judged.
        """
        marked_before = [row.picture_fault for row in self.rows]
        for row in self.rows:
            with opened_picture(self.path("generated", row)) as picture:
                between = [opened_whole(ceiling(row))] if ceiling else []
                row.picture_fault = fault_of(picture)
                text, colour = judged_class(row) if looks_like is None else judged_picture(row, looks_like(row))
                pair = comparison(stimulus(row), picture, text, colour, between)
            with written_whole(self.path("comparison", row)) as unfinished:
                pair.save(unfinished, format="PNG")
            for kind in ("generated", "comparison"):
                for path in self.folder.glob(f"{kind}_{row.index:04d}_true*_pred*.png"):
                    if path != self.path(kind, row):
                        path.unlink()
        if [row.picture_fault for row in self.rows] != marked_before:
            write_rows(self.rows, self.folder / "decoded.jsonl")
        grid, drawn = self.folder / "summary_grid.png", self.n_missing
        with written_whole(grid) as unfinished:
            summary_grid([self.path("comparison", row) for row in self.rows]).save(unfinished, format="PNG")
        print(f"{drawn} images drawn, {len(self.rows) - drawn} were there; {grid}")
        report_faults({self.path("generated", row).name: row.picture_fault for row in self.rows})


def together(items: Sequence, at_once: int, what: str) -> Iterator[Sequence]:
    """What is to be drawn, so many together, under a bar."""
    with progress(total=len(items), desc=what, unit="image") as bar:
        for start in range(0, len(items), at_once):
            yield items[start : start + at_once]
            bar.update(len(items[start : start + at_once]))


def report_faults(faults: Mapping[str, str]) -> None:
    """Print which drawn pictures are none; `faults`: file's name → why, "" of a picture."""
    if none := [f"{name} ({fault})" for name, fault in faults.items() if fault]:
        some = ", ".join(none[:5]) + (" …" if len(none) > 5 else "")
        print(
            f"notice: {len(none)} of them came out as no picture; marked, never scored, and drawn again by the same "
            f"command: {some}"
        )


def compared_picture(folder: Path, way: str, row: Row) -> Path:
    """File of a picture that was drawn for the same trial from something else; `way`: a key of `COMPARED`."""
    return folder / "compared" / f"{way}_{row.index:04d}_true{row.true_label}.png"


def true_class_picture(folder: Path, row: Row) -> Path:
    """File of a picture that was drawn from the true class's prompt."""
    return folder / "true_class" / f"true_class_{row.index:04d}_true{row.true_label}.png"


def check_gpu_is_free(device: torch.device, limit_mib: float) -> None:
    """Say how much GPU memory is still held; UserError where it is too much to load an image model beside it."""
    held, where = free_gpu_memory(device), "" if device.type == "cuda" else "; no GPU in use"
    print(f"GPU memory still held before the image model loads: {held:.0f} MiB (limit {limit_mib:.0f} MiB){where}")
    if held > limit_mib:
        raise UserError(f"{held:.0f} MiB of GPU memory are still held; the limit is --max_held_mib {limit_mib:.0f}")


def save_with_recipe(picture: Picture, recipe: dict, path: Path) -> None:
    """Write a picture that says what it was drawn with, see `drawn_with`; why it is none, see `fault_of`."""
    note = PngImagePlugin.PngInfo()
    note.add_text("recipe", json.dumps(recipe))
    for name in ("fault", "redrawn"):
        if name in picture.info:
            note.add_text(name, str(picture.info[name]))
    with written_whole(path) as unfinished:
        picture.save(unfinished, format="PNG", pnginfo=note)


def opened_whole(path: Path) -> Picture:
    """A picture of ours, in memory; UserError where it is missing or damaged."""
    return whole_picture(path, "picture", "draw it first (--stage images)")


def drawn_with(path: Path) -> dict | None:
    """What a picture says it was drawn with; None where there is no whole picture."""
    try:
        with opened_picture(path) as picture:
            picture.load()
            recipe = json.loads(picture.info["recipe"])
            return recipe if isinstance(recipe, dict) else None
    except Exception:  # whatever a file that is no picture of ours makes Pillow say
        return None


def is_drawn(path: Path, recipe: dict) -> bool:
    """Whether a picture is there, whole, of this recipe, and no black or one-coloured one in its place."""
    return drawn_with(path) == recipe and not fault_of(opened_whole(path))


def fault_of(picture: Picture) -> str:
    """Why a drawn picture is none, in words, as its drawing or its pixels say; empty for a picture."""
    said = "".join(filter(str.isprintable, str(picture.info.get("fault", ""))))[:LONGEST_FAULT]
    return said or (ONE_COLOUR if one_colour(picture) else "")


# ---------------------------------------------------------------- comparisons and the grid


def marked(picture: Picture) -> Picture:
    """A picture, or what came out in place of one, with the reason across it."""
    if not (fault := fault_of(picture)):
        return picture
    sheet = ImageOps.fit(picture.convert("RGB"), (PANEL, PANEL))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle([0, PANEL // 3, PANEL, 2 * PANEL // 3], fill=AMBER)
    for line, text in enumerate(["no picture:", *textwrap.wrap(fault, 24)[:3]]):
        draw.text(
            (PANEL / 2, PANEL / 3 + 14 + 19 * line), text, fill="black", font=ImageFont.load_default(17), anchor="mm"
        )
    return sheet


def judged_class(row: Row) -> tuple[str, tuple]:
    """A header's text and colour where the picture was drawn from the decoded class: green when that is right."""
    text = f"true: {row.true_name}   decoded: {row.predicted_name or 'no class'}"
    return text, GREEN if row.predicted_name == row.true_name else RED


def judged_picture(row: Row, looks_like: str | None) -> tuple[str, tuple]:
    """A header's text and colour where the picture was drawn from decoded states: what a reader sees is judged.

    looks_like : str, optional. The class that the picture looks like; None: nobody judged, and the header is grey.
    """
    text = f"true: {row.true_name}   nearest caption: {row.predicted_name or 'no class'}"
    if looks_like is None:
        return text, GREY
    return f"{text} · picture looks like: {looks_like}", GREEN if looks_like == row.true_name else RED


def comparison(
    stimulus: Picture, generated: Picture, text: str, colour: tuple, between: Sequence[Picture] = ()
) -> Picture:
    """Stimulus | (drawn from the truth) | generated, under a header. What came out as no picture is marked."""
    panels = (stimulus, *map(marked, (*between, generated)))
    width = len(panels) * PANEL
    image = Image.new("RGB", (width, PANEL + HEADER), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, width, HEADER], fill=colour)
    size = 20
    while draw.textlength(text, font=ImageFont.load_default(size)) > width - 12:
        size -= 1
    draw.text((width / 2, HEADER / 2), text, fill="white", font=ImageFont.load_default(size), anchor="mm")
    for k, panel in enumerate(panels):
        image.paste(ImageOps.fit(panel.convert("RGB"), (PANEL, PANEL)), (k * PANEL, HEADER))
    return image


def summary_grid(comparisons: Sequence[Path], columns: int = 4, gap: int = 8) -> Picture:
    """All comparisons as thumbnails, `columns` a row (the seed's four)."""
    with opened_picture(comparisons[0]) as first:
        w, h = first.width // 2, first.height // 2
    rows = -(-len(comparisons) // columns)
    grid = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    for k, path in enumerate(comparisons):
        at = (gap + k % columns * (w + gap), gap + k // columns * (h + gap))
        with opened_picture(path) as picture:
            grid.paste(picture.convert("RGB").resize((w, h), Image.Resampling.LANCZOS), at)
    return grid


def top_sheet(
    rows: Sequence[Row], nearest: Mapping[int, Sequence[str]], folder: Path, readout: str, edge: int = 96
) -> Picture:
    """A line a trial: the seen image, then `nearest` of its index, best first; a green frame is the seen image."""
    columns, gap, head = 1 + max(map(len, nearest.values())), 6, 24
    width, height = edge + gap, edge + gap + head
    sheet = Image.new("RGB", (columns * width + 4 * gap, len(rows) * height + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for line, row in enumerate(rows):
        y, ranked = gap + line * height, row.readouts[readout]
        text = f"{row.subject}  seen: {row.true_name or row.image}   rank {ranked.rank} of {ranked.n_classes}"
        draw.text((gap, y), text[: columns * 18], fill="black", font=font)
        for column, image in enumerate((row.image, *nearest[row.index])):
            x = gap + column * width + (3 * gap if column else 0)
            picture = ImageOps.fit(read_photo(image_path(folder, image)), (edge, edge))
            if column:
                colour = GREEN if image == row.image else "lightgrey"
                draw.rectangle([x - 2, y + head - 4, x + edge + 1, y + head + edge - 1], outline=colour, width=2)
            sheet.paste(picture.resize((edge - 2, edge - 2)), (x, y + head - 2))
    return sheet


def steps_sheet(rows: Sequence[Row], columns: Mapping[str, PictureOf], edge: int = 128) -> Picture:
    """A line a trial, a column a step between EEG and picture; below each line what was seen and the decoded caption.

    columns : mapping of a name, the column's head, to a function of the row; None leaves a place empty.
    """
    gap, head, below, font = 6, 34, 22, ImageFont.load_default(12)
    sheet = Image.new("RGB", (gap + len(columns) * (edge + gap), head + len(rows) * (edge + below + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        for number, part in enumerate(textwrap.wrap(name.replace("_", " "), 20)[:2]):
            draw.text((gap + column * (edge + gap), 3 + 14 * number), part, fill="black", font=font)
    for line, row in enumerate(rows):
        y = head + line * (edge + below + gap)
        for column, picture_of in enumerate(columns.values()):
            if picture := picture_of(row):
                sheet.paste(ImageOps.fit(picture.convert("RGB"), (edge, edge)), (gap + column * (edge + gap), y))
        text = f"{row.subject}: {row.true_name}" + (f'   decoded caption: "{row.prompt}"' if row.prompt else "")
        draw.text((gap, y + edge + 3), text[: len(columns) * 20], fill="black", font=font)
    return sheet
