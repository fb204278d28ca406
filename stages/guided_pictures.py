"""Pictures of seen images, from embeddings to sheets: what is drawn, which sample stays, what each step showed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from models.clip_targets import image_paths
from stages.embeddings import COMPARED_WITH, Tensors, digest_of
from stages.pictures import (
    Picture,
    PictureFolder,
    PictureOf,
    compared_picture,
    fault_of,
    marked,
    opened_whole,
    read_photo,
)
from stages.rows import Row, read_rows
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.seeds import sample_seed

DECODED = "decoded"  # what is drawn from what was decoded; the other ways are those of --compare


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be drawn: of which row, from what, the how-manieth sample; its recipe and its file."""

    row: Row
    way: str
    sample: int
    recipe: dict
    file: Path

    @property
    def seed(self) -> int:
        return self.recipe["seed"]

    @property
    def prompt(self) -> str:
        return self.recipe["prompt"]


def wanted_pictures(
    folder: Path, rows: Sequence[Row], kept: Tensors, recipe: dict, seed: int, samples: int, compare: Sequence[str]
) -> list[Wanted]:
    """All samples of all rows, and what they are compared with. The truth has no part in a sample's recipe.

    kept : dict of names to (N, …) tensors. What is drawn from, in the order of the rows.
    recipe : dict. What all are drawn with. When it, a prompt or what is drawn from changes, a picture is drawn anew.
    """
    wanted = []
    for place, row in enumerate(rows):
        for way, sample in [(DECODED, k) for k in range(samples)] + [(way, 0) for way in compare]:
            own = {"prompt": row.prompt if way in (DECODED, "caption") else ""}
            own |= {"seed": sample_seed(seed, row.index, sample)}
            drawn_from = digest_of({way: kept[way]}, place) if way in COMPARED_WITH else row.embedding
            whole = own | recipe | {"embedding": drawn_from, "drawn_from": way}
            wanted.append(Wanted(row, way, sample, whole, file_of(folder, way, row, sample)))
    return wanted


def file_of(folder: Path, way: str, row: Row, sample: int = 0) -> Path:
    """File of a sample, or of a picture that was drawn from something else."""
    if way != DECODED:
        return compared_picture(folder, way, row)
    return folder / "samples" / f"sample_{row.index:04d}_{sample}.png"


def choose_samples(
    folder: Path, rows: Sequence[Row], samples: int, decoded: torch.Tensor, embed: Callable | None
) -> dict[int, int]:
    """Row's index → the sample that stays: its embedding is nearest to the decoded one. What was seen has no say.

    What came out as no picture stays only where all samples of a row did.

    decoded : (N, D). embed : callable. Pictures → (n, D); not needed for one sample.
    """
    if samples == 1:
        return {row.index: 0 for row in rows}
    chosen = {}
    for row, vector in zip(rows, decoded, strict=True):
        drawn = {k: opened_whole(file_of(folder, DECODED, row, k)) for k in range(samples)}
        sound = [k for k in drawn if not fault_of(drawn[k])] or list(drawn)
        vectors = embed([drawn[k] for k in sound]).float()
        width, expected = vectors.shape[1], len(vector)
        if width != expected:
            raise UserError(f"--clip_model gives embeddings of width {width}; those that were decoded have {expected}")
        chosen[row.index] = sound[int(F.cosine_similarity(vectors, vector[None]).argmax())]
    write_json({str(index): sample for index, sample in chosen.items()}, folder / "samples/chosen.json")
    return chosen


def columns_of_steps(
    folder: Path, rows: list[Row], stimulus: PictureOf, stimuli_dir: Path, beside: Sequence[str], compare: Sequence[str]
) -> dict[str, PictureOf]:
    """What a sheet shows of each row before its steps: seen, retrieved, nearest; other and compared pictures."""

    def photo(image: str) -> Picture:
        return read_photo(image_paths([image], stimuli_dir)[0])

    columns = {"seen": stimulus}
    candidates = read_json(folder / "run.json").get("candidates")
    if isinstance(candidates, list) and candidates and all(0 <= row.predicted_label < len(candidates) for row in rows):
        columns["retrieved"] = lambda row: photo(str(candidates[row.predicted_label]))
    if all(row.nearest for row in rows):
        columns["nearest training image"] = lambda row: photo(row.nearest)
    for place in map(Path, beside):
        other = PictureFolder(place, read_rows(place / "decoded.jsonl"), {}, 0)
        files = {(row.subject, row.image): other.path("generated", row) for row in other.rows}

        def picture(row: Row, files=files) -> Picture | None:  # noqa: ANN001
            file = files.get((row.subject, row.image))
            return marked(opened_whole(file)) if file and file.is_file() else None

        columns[place.name] = picture
    words = {"nearest": "from the nearest", "caption": "from the caption", "ceiling": "from its own embedding"}
    return columns | {
        words[way]: lambda row, way=way: marked(opened_whole(file_of(folder, way, row))) for way in compare
    }
