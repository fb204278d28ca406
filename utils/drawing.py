"""Pictures made without a model: cue arrows, the demo's drawings, comparisons, the summary grid."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

PANEL = 256  # pixels, edge of one picture in a comparison
HEADER = 40  # pixels, height of a comparison's coloured header
GREEN, RED, GREY = (34, 139, 58), (190, 40, 40), (110, 110, 110)

# ---------------------------------------------------------------- cues


def cue_arrow(direction: str, size: int = PANEL) -> Image.Image:
    """The cue that BCIC-IV-2a's subjects saw: a white arrow on a fixation cross, black ground.

    Parameters
    ----------
    direction : {"left", "right", "down", "up"}
        left hand, right hand, feet, tongue.
    size : int
        Edge in pixels.
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
    turn = {"right": 0, "down": 90, "left": 180, "up": 270}[direction]
    draw.polygon([tuple(p) for p in _turned(points, turn) + c], fill="white")
    return image


def _turned(points: np.ndarray, degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


# ---------------------------------------------------------------- the demo's drawings
# Every drawing works on a canvas of 100 × 100 units and varies with `rng`, so that a model has something to learn.

SKINS = [(241, 194, 155), (224, 172, 120), (198, 134, 88), (141, 85, 50)]
GROUNDS = [(238, 243, 248), (246, 240, 228), (233, 244, 233), (244, 234, 240)]


class Pen:
    """Draws shapes given in units of a 100 × 100 canvas, scaled, shifted and supersampled."""

    def __init__(self, size: int, ground: tuple, scale: float, shift: np.ndarray):
        self.unit = size * 4 / 100
        self.image = Image.new("RGB", (size * 4, size * 4), ground)
        self.draw = ImageDraw.Draw(self.image)
        self.scale, self.shift, self.size = scale, shift, size

    def _at(self, points) -> list:
        p = (np.asarray(points, float) - 50) * self.scale + 50 + self.shift
        return [tuple(q) for q in p * self.unit]

    def polygon(self, points, fill) -> None:
        self.draw.polygon(self._at(points), fill=fill)

    def ellipse(self, cx, cy, rx, ry, fill, turn=0.0) -> None:
        t = np.linspace(0, 2 * np.pi, 60)
        self.polygon(_turned(np.stack([rx * np.cos(t), ry * np.sin(t)], 1), turn) + [cx, cy], fill)

    def bar(self, a, b, width, fill) -> None:
        """A thick line with round ends."""
        (ax, ay), (bx, by) = self._at([a, b])
        r = width * self.scale * self.unit / 2
        self.draw.line([(ax, ay), (bx, by)], fill=fill, width=round(2 * r))
        for x, y in ((ax, ay), (bx, by)):
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    def done(self) -> Image.Image:
        return self.image.resize((self.size, self.size), Image.Resampling.LANCZOS)


def _hand(pen: Pen, rng: np.random.Generator, side: int) -> None:
    """The back of an open hand; side −1 is a left hand (thumb to the right), +1 a right hand."""
    skin = SKINS[rng.integers(len(SKINS))]
    cuff = (45, 95, 190) if side < 0 else (205, 60, 50)

    def x(u):
        return 50 - side * u

    spread = rng.uniform(0.85, 1.15)
    pen.polygon([(x(-17), 74), (x(17), 74), (x(19), 100), (x(-19), 100)], cuff)
    for base, tip, top, width in ((-14, -22, 22, 9), (-5, -8, 12, 10), (5, 6, 10, 10), (14, 19, 18, 10)):
        pen.bar((x(base), 50), (x(tip * spread), top), width, skin)
    pen.bar((x(12), 66), (x(35 * spread), 42), 11, skin)
    pen.ellipse(50, 58, 20, 20, skin)
    pen.polygon([(x(-17), 60), (x(17), 60), (x(15), 78), (x(-15), 78)], skin)
    if side < 0:  # L
        strokes = [((46, 82), (46, 95)), ((46, 95), (54, 95))]
    else:  # R
        strokes = [((46, 82), (46, 95)), ((46, 82), (53, 82)), ((53, 82), (53, 88)), ((53, 88), (46, 88))]
        strokes.append(((49, 88), (54, 95)))
    for a, b in strokes:
        pen.bar(a, b, 3, (255, 255, 255))


def _feet(pen: Pen, rng: np.random.Generator) -> None:
    """Two bare soles side by side."""
    skin = SKINS[rng.integers(len(SKINS))]
    dark = tuple(int(v * 0.86) for v in skin)
    for side in (-1, 1):
        c = 50 + side * 21
        pen.ellipse(c, 77, 11, 13, skin)
        pen.ellipse(c + side * 2, 60, 11, 22, skin)
        pen.ellipse(c, 44, 15, 15, skin)
        pen.ellipse(c, 44, 10, 9, dark)
        pen.ellipse(c, 78, 7, 8, dark)
        for k, r in enumerate((6.5, 4.6, 4.2, 3.8, 3.4)):
            pen.ellipse(c - side * (12 - 6.6 * k), 24 + 1.2 * k * k * 0.7, r, r * 1.25, skin)


def _tongue(pen: Pen, rng: np.random.Generator) -> None:
    """A wide open mouth that sticks its tongue out."""
    lips = [(200, 40, 60), (180, 50, 80), (215, 70, 70)][rng.integers(3)]
    long = rng.uniform(-4, 4)
    pen.ellipse(50, 42, 42, 27, lips)
    pen.ellipse(50, 42, 35, 20, (70, 12, 24))
    pen.polygon([(22, 34), (28, 27), (40, 23), (60, 23), (72, 27), (78, 34)], (255, 255, 255))
    pen.polygon([(32, 50), (68, 50), (68, 72 + long), (32, 72 + long)], (245, 120, 140))
    pen.ellipse(50, 72 + long, 18, 17, (245, 120, 140))
    pen.ellipse(50, 50, 18, 9, (245, 120, 140))
    pen.bar((50, 50), (50, 78 + long), 2.5, (215, 85, 110))


DRAWINGS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "left hand": lambda pen, rng: _hand(pen, rng, -1),
    "right hand": lambda pen, rng: _hand(pen, rng, +1),
    "feet": _feet,
    "tongue": _tongue,
}


def drawing(name: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """A drawn picture of one class, different for every state of `rng`.

    Parameters
    ----------
    name : str
        A key of `DRAWINGS`.
    rng : numpy Generator
    size : int
        Edge in pixels.
    """
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    pen = Pen(size, ground, rng.uniform(0.86, 1.0), rng.uniform(-4, 4, 2))
    DRAWINGS[name](pen, rng)
    return pen.done()


# ---------------------------------------------------------------- comparisons and the grid


def comparison(
    stimulus: Image.Image, generated: Image.Image, true_name: str, predicted_name: str | None
) -> Image.Image:
    """Stimulus | generated under a header, green when right and red when wrong.

    Parameters
    ----------
    stimulus, generated : PIL images
    true_name : str
    predicted_name : str or None
        None where the decoded text named no class.
    """
    image = Image.new("RGB", (2 * PANEL, PANEL + HEADER), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, 2 * PANEL, HEADER], fill=GREEN if predicted_name == true_name else RED)
    text = f"true: {true_name}   decoded: {predicted_name or 'no class'}"
    size = 20
    while draw.textlength(text, font=ImageFont.load_default(size)) > 2 * PANEL - 12:
        size -= 1
    draw.text((PANEL, HEADER / 2), text, fill="white", font=ImageFont.load_default(size), anchor="mm")
    for k, panel in enumerate((stimulus, generated)):
        image.paste(ImageOps.fit(panel.convert("RGB"), (PANEL, PANEL)), (k * PANEL, HEADER))
    return image


def summary_grid(comparisons: Sequence[Path], columns: int = 4, gap: int = 8) -> Image.Image:
    """All comparisons as thumbnails, `columns` a row (the seed's four)."""
    pictures = [Image.open(path).convert("RGB") for path in comparisons]
    w, h = PANEL, (PANEL + HEADER) // 2
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    for k, picture in enumerate(pictures):
        at = (gap + k % columns * (w + gap), gap + k // columns * (h + gap))
        grid.paste(picture.resize((w, h), Image.Resampling.LANCZOS), at)
    return grid
