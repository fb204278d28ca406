"""The demo's drawings: a picture a class, drawn without a model, from which the tiny image models learn."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw


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

    def stroke(self, points, width, fill) -> None:
        """Thick lines from point to point."""
        for a, b in zip(points, points[1:], strict=False):
            self.bar(a, b, width, fill)

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


FURS = [(168, 110, 62), (205, 160, 100), (120, 84, 60)]
INKS = [(40, 90, 190), (200, 50, 50), (40, 140, 80), (120, 60, 170)]
METALS = [(120, 130, 145), (95, 105, 120), (150, 155, 165)]
WOODS = [(150, 95, 50), (185, 125, 70), (110, 70, 45)]
BLACK, WHITE = (30, 30, 34), (255, 255, 255)


def _pick(rng: np.random.Generator, colours: Sequence[tuple]) -> tuple:
    return colours[rng.integers(len(colours))]


def _dog(pen: Pen, rng: np.random.Generator) -> None:
    """A dog's face with hanging ears and its tongue out."""
    fur = _pick(rng, FURS)
    dark = tuple(int(v * 0.6) for v in fur)
    pen.ellipse(50, 84, 8, 11, (235, 105, 125))
    pen.ellipse(50, 48, 31, 32, fur)
    for side in (-1, 1):
        pen.ellipse(50 + side * 32, 46, 10, 26, dark, turn=side * 14)
        pen.ellipse(50 + side * 13, 40, 6, 7, WHITE)
        pen.ellipse(50 + side * 12, 41, 3.5, 4.5, BLACK)
    pen.ellipse(50, 68, 20, 15, (245, 228, 205))
    pen.ellipse(50, 60, 8, 6, BLACK)
    pen.bar((50, 62), (50, 74), 2.5, BLACK)
    pen.bar((50, 74), (40, 77), 2.5, BLACK)
    pen.bar((50, 74), (60, 77), 2.5, BLACK)


def _bird(pen: Pen, rng: np.random.Generator) -> None:
    """A bird from the side, standing, beak to the left."""
    coat = _pick(rng, [(60, 130, 215), (225, 70, 60), (245, 190, 40)])
    dark = tuple(int(v * 0.65) for v in coat)
    for x in (48, 58):
        pen.bar((x, 72), (x, 92), 3.5, (225, 130, 30))
        pen.bar((x - 8, 93), (x + 3, 93), 3.5, (225, 130, 30))
    pen.polygon([(70, 55), (97, 40), (99, 54), (72, 68)], dark)
    pen.ellipse(54, 58, 27, 19, coat, turn=8)
    pen.ellipse(34, 34, 17, 16, coat)
    pen.polygon([(19, 29), (2, 37), (19, 42)], (240, 150, 30))
    pen.ellipse(60, 56, 17, 10, dark, turn=-12)
    pen.ellipse(31, 30, 4.5, 4.5, WHITE)
    pen.ellipse(30, 30, 2.5, 2.5, BLACK)


def _fish(pen: Pen, rng: np.random.Generator) -> None:
    """A striped fish from the side, head to the left."""
    scales = _pick(rng, [(245, 140, 40), (60, 150, 220), (90, 180, 110)])
    dark = tuple(int(v * 0.7) for v in scales)
    pen.polygon([(70, 50), (97, 26), (90, 50), (97, 74)], dark)
    pen.polygon([(36, 30), (52, 12), (66, 32)], dark)
    pen.polygon([(42, 70), (54, 86), (62, 68)], dark)
    pen.ellipse(43, 50, 37, 23, scales)
    for x, half in ((44, 19), (58, 16)):
        pen.bar((x, 50 - half), (x, 50 + half), 6, WHITE)
    pen.ellipse(22, 44, 5.5, 5.5, WHITE)
    pen.ellipse(21, 44, 3, 3, BLACK)
    pen.bar((9, 57), (17, 59), 2, BLACK)


def _pentagram(pen: Pen, rng: np.random.Generator) -> None:
    """A five-pointed star drawn in one stroke."""
    ink, turn = _pick(rng, INKS), np.deg2rad(rng.uniform(-6, 6))
    angles = turn + np.pi * (4 * np.arange(6) / 5 - 0.5)
    points = np.stack([50 + 43 * np.cos(angles), 54 + 43 * np.sin(angles)], axis=1)
    pen.stroke(points, 6, ink)


def _square(pen: Pen, rng: np.random.Generator) -> None:
    """The outline of a square."""
    ink, half = _pick(rng, INKS), rng.uniform(31, 37)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * half + 50
    pen.stroke(corners, 8, ink)


def _circle(pen: Pen, rng: np.random.Generator) -> None:
    """The outline of a circle."""
    ink, radius = _pick(rng, INKS), rng.uniform(34, 40)
    t = np.linspace(0, 2 * np.pi, 49)
    points = np.stack([50 + radius * np.cos(t), 50 + radius * np.sin(t)], axis=1)
    pen.stroke(points, 8, ink)


def _scissor(pen: Pen, rng: np.random.Generator) -> None:
    """Open scissors, blades up."""
    handle, metal, open_ = (
        _pick(rng, [(220, 50, 50), (40, 100, 200), (240, 150, 30)]),
        METALS[0],
        rng.uniform(0.85, 1.1),
    )
    t = np.linspace(0, 2 * np.pi, 25)
    for side in (-1, 1):
        tip, ring = (50 + side * 23 * open_, 8), np.array([50 - side * 18, 78])
        pen.polygon([(50 - side * 4, 52), tip, (50 + side * 5, 50)], metal)
        pen.bar((50, 50), tip, 4, metal)
        pen.bar((50, 50), (50 - side * 11, 66), 7, handle)
        points = np.stack([12 * np.cos(t), 14 * np.sin(t)], axis=1) + ring
        pen.stroke(points, 6, handle)
    pen.ellipse(50, 50, 3.5, 3.5, BLACK)


def _watch(pen: Pen, rng: np.random.Generator) -> None:
    """A wrist watch with its strap."""
    strap, metal = _pick(rng, [(110, 65, 40), (45, 50, 60), (150, 40, 45)]), METALS[2]
    pen.polygon([(38, 0), (62, 0), (66, 30), (34, 30)], strap)
    pen.polygon([(38, 100), (62, 100), (66, 70), (34, 70)], strap)
    for y in (84, 92):
        pen.ellipse(50, y, 2, 2, WHITE)
    pen.bar((76, 50), (83, 50), 7, metal)
    pen.ellipse(50, 50, 30, 30, tuple(int(v * 0.7) for v in metal))
    pen.ellipse(50, 50, 25, 25, WHITE)
    for hour in range(12):
        a = np.pi * hour / 6
        pen.ellipse(50 + 21 * np.cos(a), 50 + 21 * np.sin(a), 1.7, 1.7, BLACK)
    pen.bar((50, 50), (50, 34), 3, BLACK)
    pen.bar((50, 50), (62, 56), 3, BLACK)


def _cup(pen: Pen, rng: np.random.Generator) -> None:
    """A mug of coffee with its handle and steam."""
    glaze, ground = _pick(rng, [(205, 60, 60), (60, 120, 190), (70, 160, 120)]), pen.image.getpixel((0, 0))
    pen.ellipse(71, 58, 19, 18, glaze)
    pen.ellipse(71, 58, 11, 10, ground)
    pen.polygon([(16, 36), (70, 36), (65, 88), (21, 88)], glaze)
    pen.ellipse(43, 88, 22, 6, glaze)
    pen.ellipse(43, 36, 27, 8, tuple(min(255, v + 40) for v in glaze))
    pen.ellipse(43, 37, 22, 5.5, (85, 50, 30))
    for x in (34, 50):
        pen.bar((x, 24), (x + 4, 16), 3, (150, 150, 155))
        pen.bar((x + 4, 16), (x, 8), 3, (150, 150, 155))


def _chair(pen: Pen, rng: np.random.Generator) -> None:
    """A wooden chair seen half from the side."""
    wood = _pick(rng, WOODS)
    dark = tuple(int(v * 0.7) for v in wood)
    pen.bar((30, 58), (30, 84), 6, dark)
    pen.bar((66, 58), (66, 84), 6, dark)
    pen.bar((28, 8), (28, 60), 7, wood)
    pen.bar((64, 8), (64, 60), 7, wood)
    for y in (14, 28, 42):
        pen.bar((28, y), (64, y), 6, wood)
    pen.polygon([(24, 56), (68, 56), (82, 70), (34, 70)], dark)
    pen.polygon([(24, 54), (68, 54), (82, 66), (34, 66)], wood)
    pen.bar((36, 68), (36, 96), 7, wood)
    pen.bar((79, 68), (79, 96), 7, wood)


DRAWINGS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "left hand": lambda pen, rng: _hand(pen, rng, -1),
    "right hand": lambda pen, rng: _hand(pen, rng, +1),
    "feet": _feet,
    "tongue": _tongue,
    "dog": _dog,
    "bird": _bird,
    "fish": _fish,
    "pentagram": _pentagram,
    "square": _square,
    "circle": _circle,
    "scissor": _scissor,
    "watch": _watch,
    "cup": _cup,
    "chair": _chair,
}


def drawing(name: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """A drawn picture of one class, different for every state of `rng`.

    name : str. A key of `DRAWINGS`.
    rng : numpy Generator
    size : int. Edge in pixels.
    """
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    pen = Pen(size, ground, rng.uniform(0.86, 1.0), rng.uniform(-4, 4, 2))
    DRAWINGS[name](pen, rng)
    return pen.done()


# ---------------------------------------------------------------- coloured shapes: a concept a shape and colour

COLOURS = {
    "red": (214, 48, 44), "orange": (240, 140, 30), "yellow": (236, 206, 40), "green": (50, 150, 70),
    "blue": (45, 95, 205), "purple": (128, 62, 172), "brown": (128, 82, 48), "black": (36, 36, 40),
}  # fmt: skip


def _polygon(n: int, inner: float = 1.0, turn: float = 0.0) -> Callable:
    """A polygon of n corners, or with `inner` < 1 a star of n points."""

    def draw(pen: Pen, rng: np.random.Generator, ink: tuple) -> None:
        corners = n if inner == 1.0 else 2 * n
        angle = np.deg2rad(turn + rng.uniform(-8, 8)) + 2 * np.pi * np.arange(corners) / corners - np.pi / 2
        radius = 38 * np.where(np.arange(corners) % 2, inner, 1.0)
        pen.polygon(np.stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)], axis=1), ink)

    return draw


def _ring(pen: Pen, rng: np.random.Generator, ink: tuple) -> None:
    pen.ellipse(50, 50, 38, 38, ink)
    pen.ellipse(50, 50, 20, 20, pen.image.getpixel((0, 0)))


def _cross(pen: Pen, rng: np.random.Generator, ink: tuple) -> None:
    pen.polygon([(40, 12), (60, 12), (60, 88), (40, 88)], ink)
    pen.polygon([(12, 40), (88, 40), (88, 60), (12, 60)], ink)


def _stripes(pen: Pen, rng: np.random.Generator, ink: tuple) -> None:
    for y in (18, 42, 66):
        pen.polygon([(10, y), (90, y), (90, y + 13), (10, y + 13)], ink)


def _heart(pen: Pen, rng: np.random.Generator, ink: tuple) -> None:
    t = np.linspace(0, 2 * np.pi, 60)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    pen.polygon(np.stack([50 + 2.4 * 16 * np.sin(t) ** 3, 48 - 2.4 * y], axis=1), ink)


SHAPES: dict[str, Callable[[Pen, np.random.Generator, tuple], None]] = {
    "disc": lambda pen, rng, ink: pen.ellipse(50, 50, 38, 38, ink),
    "ring": _ring,
    "triangle": _polygon(3),
    "box": _polygon(4, turn=45),
    "diamond": _polygon(4),
    "hexagon": _polygon(6),
    "star": _polygon(5, inner=0.42),
    "cross": _cross,
    "stripes": _stripes,
    "heart": _heart,
}


def coloured_shape(
    shape: str, colour: str, rng: np.random.Generator, size: int = 64, least: float = 0.62, room: float = 8.0
) -> Image.Image:
    """A picture of one concept, different for every state of `rng`; keys of `SHAPES` and `COLOURS`.

    least : float. Of how large it is: `least` to 1. room : float. How far from the middle at most, in units of Pen.
    """
    pen = Pen(size, GROUNDS[rng.integers(len(GROUNDS))], rng.uniform(least, 1.0), rng.uniform(-room, room, 2))
    ink = tuple(int(np.clip(v + rng.integers(-18, 19), 0, 255)) for v in COLOURS[colour])
    SHAPES[shape](pen, rng, ink)
    return pen.done()
