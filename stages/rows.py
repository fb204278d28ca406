"""The decoded trial: one line of `decoded.jsonl`, declared here and nowhere else, and the read-outs that fill it.

A read-out is one entry of `TEXT_READOUTS` or `MAPPER_READOUTS`. Nothing slow is imported: a script's -h reads this.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from datasets.alignment import USES, used_together
from datasets.description import DatasetDescription
from datasets.recording import origin
from utils.errors import UserError
from utils.files import plain_bytes, write_jsonl
from utils.limits import MAX_RATIO, MAX_ROWS, MAX_WORDS, SMALL, check_text

SIGNATURE = {"of", "checksum"}  # what a line has besides its row: how many lines there are, and the CRC-32 of the rest

# ---------------------------------------------------------------- read-outs


def most_likely(probabilities: Sequence[float]) -> int:
    """The label with the highest probability."""
    return max(range(len(probabilities)), key=lambda label: probabilities[label])


# name → (description, generated text, {"likelihood": probabilities of the canonical sentences, "head": of the classes,
# where the model has a head}) → label, and probabilities or None; None where the model cannot be read so
TEXT_READOUTS: dict[str, Callable[..., tuple[int, list[float] | None] | None]] = {
    "keyword": lambda description, text, of: (description.keyword_label(text), None),
    "likelihood": lambda description, text, of: (most_likely(of["likelihood"]), of["likelihood"]),
    "head": lambda description, text, of: (most_likely(of["head"]), of["head"]) if "head" in of else None,
}
# name → (pooled vectors (B, D), class logits (B, K), prototypes (K, D), all float tensors) → probabilities (B, K)
MAPPER_READOUTS: dict[str, Callable] = {
    "head": lambda pooled, logits, prototypes: logits.softmax(dim=-1),
    "prototype": lambda pooled, logits, prototypes: (_unit(pooled) @ _unit(prototypes).T / 0.5).softmax(dim=-1),
}
# of drawn pictures that no class was drawn from: what stages/picture_class.py says that they look like
PICTURE = "picture"


def _unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


@dataclass
class Readout:
    """What one way of reading says."""

    label: int  # −1: no class
    chance: float  # 1 / number of classes
    probabilities: list[float] | None = None  # by label, where the read-out has them
    rank: int | None = None  # of the true one among all, best 1, where the read-out orders them

    @property
    def n_classes(self) -> int:
        return round(1 / self.chance)


def text_readouts(
    description: DatasetDescription, text: str, probabilities: Mapping[str, Sequence[float]]
) -> dict[str, Readout]:
    """All read-outs of a generated text and of probabilities by name; no true label comes near them."""
    of = {name: [round(p, 6) for p in values] for name, values in probabilities.items()}
    read = {name: read(description, text, of) for name, read in TEXT_READOUTS.items()}
    return {name: Readout(said[0], description.chance, said[1]) for name, said in read.items() if said}


def mapper_readouts(outputs: tuple, prototypes) -> list[dict[str, Readout]]:
    """All read-outs of a batch of the mapper's outputs, one dict a trial."""
    _, pooled, logits = (output.detach().float() for output in outputs)
    of_batch = {name: read(pooled, logits, prototypes).cpu().tolist() for name, read in MAPPER_READOUTS.items()}
    return [
        {name: Readout(most_likely(p[k]), 1 / len(p[k]), [round(v, 6) for v in p[k]]) for name, p in of_batch.items()}
        for k in range(len(logits))
    ]


# ---------------------------------------------------------------- the row


@dataclass
class Row:
    """One decoded trial."""

    index: int  # of the trial in its split
    subject: str
    session: str
    run: int
    trial: int
    true_label: int
    true_name: str
    readouts: dict[str, Readout]
    text: str = ""  # what was generated, or the sentence of the decoded class
    image: str = ""  # the stimulus, where it differs within a class
    # by label, the kind of recording a class occurs in; empty where recordings hold all classes
    tasks: list[str] = field(default_factory=list)
    predicted_label: int = -1  # what is drawn; −1 where the text names no class
    predicted_name: str | None = None
    prompt: str = ""  # what the image model is told, from what was decoded and from nothing else
    simulated: bool = False  # whether the store says that its recordings are; False where it says nothing
    uses: str = ""  # what was used of the test person besides this trial: `TrialDataset.uses`; empty in old files
    embedding: str = ""  # digest of what embeddings.safetensors holds of the trial
    embedding_of: str = ""  # the image model that the mapper's states were trained towards
    nearest: str = ""  # the training image whose embedding is nearest to the decoded one, where one was looked for
    picture_fault: str = ""  # why the drawn picture is none (not finite, blackened, of one colour), in words


OF_ROW, OF_READOUT = ({f.name for f in fields(kind)} for kind in (Row, Readout))
NUMBERS, TEXTS = ([f.name for f in fields(Row) if f.type is kind] for kind in (int, str))


def new_row(dataset, index: int, readouts: dict[str, Readout], text: str, uses: str = USES[0]) -> Row:
    """The row of trial `index` of a `TrialDataset`. `uses`: of the test person, beyond what reading the trial has."""
    trial, label, description = dataset.trials[index], dataset.labels[index], dataset.description
    where = trial.subject, trial.session, trial.run, trial.trial
    row = Row(index, *where, label, description.class_name(label), readouts, text[:MAX_WORDS], trial.image)
    row.tasks, row.simulated = list(description.tasks), dataset.simulated
    row.uses = used_together(*dataset.uses.split("; "), uses)
    return row


def used_besides(rows: Sequence[Row], *uses: str) -> None:
    """Let rows say the most of what they and others, whose outputs go into them or their pictures, have used."""
    for row in rows:
        row.uses = used_together(*(one for use in (row.uses, *uses) for one in use.split("; ")))


def draw_what(row: Row, description: DatasetDescription, readout: str) -> Row:
    """Fill in what is drawn, from one read-out: of "keyword" what the text says, else the decoded class's sentence."""
    label = row.readouts[readout].label
    text = row.text if readout == "keyword" or label < 0 else description.canonical[label]
    row.predicted_label = description.keyword_label(text)
    row.predicted_name = description.class_name(row.predicted_label)
    row.prompt = description.image_prompt(text)
    return row


def with_probabilities(rows: Sequence[Row]) -> list[str]:
    """The read-outs that give a class and probabilities for every trial."""

    def complete(name: str) -> bool:
        readouts = [row.readouts[name] for row in rows]
        return all(readout.probabilities is not None and readout.label >= 0 for readout in readouts)

    return list(filter(complete, rows[0].readouts))


def mean_of(of_runs: Sequence[Sequence[Row]]) -> list[Row]:
    """The first run's rows with the mean of all runs' probabilities, read-out by read-out.

    of_runs : sequences of Row. The same trials in the same order.
    Read-outs without probabilities, such as the generated text's keywords, have no mean and are left out; those that
    some runs have are averaged where all have them. A row's text and picture are no run's any more.
    Raises UserError where the runs are of other trials, or labels, or have no read-out in common.
    """
    trials = [[(*origin(row), row.true_label) for row in rows] for rows in of_runs]
    if any(other != trials[0] for other in trials):
        raise UserError("the runs were tested on other trials, or labels; their probabilities have no mean")
    of_run = [with_probabilities(rows) for rows in of_runs]
    names = [name for name in of_run[0] if all(name in of for of in of_run)]
    if not names:
        raise UserError("the runs have no read-out with probabilities in common")
    uses, made = used_together(*{one for rows in of_runs for one in rows[0].uses.split("; ")}), []
    for same in zip(*of_runs, strict=True):
        readouts = {}
        for name in names:
            of = [row.readouts[name].probabilities for row in same]
            p = [round(sum(values) / len(values), 6) for values in zip(*of, strict=True)]
            readouts[name] = Readout(most_likely(p), same[0].readouts[name].chance, p)
        blank = {"text": "", "prompt": "", "predicted_label": -1, "predicted_name": None, "embedding": ""}
        blank |= {"embedding_of": "", "picture_fault": "", "nearest": ""}
        made.append(replace(same[0], readouts=readouts, uses=uses, **blank))
    return made


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write one JSON object a line, each with the number of lines and its checksum."""
    write_jsonl(signed([asdict(row) for row in rows]), path)


def signed(contents: Iterable[dict]) -> list[dict]:
    """Rows as they stand in a file: with `of` and `checksum`."""
    contents = [{k: v for k, v in content.items() if k not in SIGNATURE} for content in contents]
    contents = [content | {"of": len(contents)} for content in contents]
    return [content | {"checksum": checksum(content)} for content in contents]


def checksum(content: dict) -> int:
    """CRC-32 of a row without its checksum."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_rows(path: Path, classes: Sequence[str] | None = None) -> list[Row]:
    """Read what `write_rows` wrote, and believe none of it unseen.

    classes : sequence of str, optional. What the labels must mean.
    Raises UserError if the file is empty or damaged, or a value has another type or range than `Row` says; names it.
    """
    if path.is_file() and path.stat().st_size > MAX_ROWS:
        raise UserError(f"{path} has {path.stat().st_size} bytes; decoded trials take at most {MAX_ROWS}")
    try:
        lines = _content(path).decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} is not there; run --stage decode first") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "cannot be unpacked"
        raise UserError(f"{path} is damaged: it {reason}") from None
    if not lines:
        raise UserError(f"{path} has no trials, so there is nothing to score or draw; decode again")
    # first whether each line is a trial, then whether it is the one that was written
    contents = _checked(path, lines, json.loads)
    rows = _checked(path, contents, lambda content: _row(content, classes))
    signed_lines = set(_checked(path, contents, lambda content: _signature(content, len(lines))))
    if signed_lines == {False}:
        print(f"notice: {path} has no checksums; nobody can tell whether it is as it was written")
    elif False in signed_lines:
        raise UserError(f"{path}: some of its lines have no checksum; decode again")
    if twice := [index for index, n in Counter(row.index for row in rows).items() if n > 1]:
        raise UserError(f"{path} has the trial {twice[0]} twice; decode again")
    kinds = {(*((name, r.chance) for name, r in row.readouts.items()), *row.tasks, row.uses) for row in rows}
    if len(kinds) > 1:
        raise UserError(f"{path}: its lines have different read-outs, classes, tasks or uses; decode again")
    return rows


def _content(path: Path) -> bytes:
    """A file's bytes; of a packed one (.gz, as under docs/results/) no more than any file may have."""
    if path.suffix != ".gz" or not path.is_file():
        return plain_bytes(path, MAX_ROWS)
    limit = min(max(SMALL, MAX_RATIO * path.stat().st_size), MAX_ROWS)
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path} unpacks to more than {limit} bytes; decoded trials shrink less")
    return content


def _checked(path: Path, lines: Sequence, check: Callable) -> list:
    """What `check` makes of each line, or of its content; UserError names the line that it refuses."""
    results = []
    for number, line in enumerate(lines, start=1):
        try:
            results.append(check(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"{path}, line {number} is no decoded trial: {error}; decode again") from None
    return results


def _signature(content: dict, n: int) -> bool:
    """Whether a line is signed at all; ValueError where it has changed, or its file had another number of lines."""
    if not SIGNATURE & set(content):
        return False
    if content.get("of") != n:
        raise ValueError(f"it is one of {content.get('of')} lines, and the file has {n}")
    if content.pop("checksum", None) != checksum(content):
        hint = "whoever edits takes of and checksum out"
        raise ValueError(f"its checksum is wrong: it is damaged, or was edited ({hint})")
    return True


def _row(content: dict, classes: Sequence[str] | None) -> Row:
    """The row of one line; ValueError says what is wrong."""
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where an object was expected")
    content = {name: value for name, value in content.items() if name not in SIGNATURE}
    wrong = {"index", "subject", "true_label", "true_name", "readouts"} - set(content)
    wrong |= set(content) - OF_ROW
    if wrong:
        raise ValueError(f"missing or unknown: {', '.join(sorted(wrong))}")
    readouts = {check_text(name, "a read-out's name"): _readout(value) for name, value in content["readouts"].items()}
    if not readouts:
        raise ValueError("no read-out")
    row = Row(**{"session": "", "run": 0, "trial": 0} | content | {"readouts": readouts})
    if len({readout.chance for readout in readouts.values()}) > 1:
        raise ValueError("its read-outs have different numbers of classes")
    n_classes = next(iter(readouts.values())).n_classes
    limits = {"true_label": (0, n_classes - 1), "predicted_label": (-1, n_classes - 1)}
    for name in NUMBERS:
        _whole(getattr(row, name), name, *limits.get(name, (0, 10**9)))
    if type(row.simulated) is not bool:
        raise ValueError(f"simulated is {str(row.simulated)[:80]!r}; expected true or false")
    if unknown := set(str(row.uses).split("; ")) - {*USES, ""}:
        raise ValueError(f"uses is {str(unknown)[:80]}; expected some of {', '.join(USES)}")
    if not isinstance(row.tasks, list) or len(row.tasks) not in (0, n_classes):
        raise ValueError(f"tasks is {row.tasks!r}; expected one name a class, or none")
    texts = [(name, getattr(row, name)) for name in TEXTS]
    for name, value in [*texts, *(("tasks", task) for task in row.tasks)]:
        check_text(value, name)
    names = [None if row.predicted_name is None else check_text(row.predicted_name, "predicted_name"), row.true_name]
    labels = [row.predicted_label, row.true_label]
    if classes is not None and names != [classes[label] if 0 <= label < len(classes) else None for label in labels]:
        expected = ", ".join(classes)
        raise ValueError(f"class {names[1]!r} or {names[0]!r} for the labels {labels}; expected one of {expected}")
    return row


def _readout(value: dict) -> Readout:
    if not isinstance(value, dict) or not {"label", "chance"} <= set(value) <= OF_READOUT:
        raise ValueError("a read-out has label, chance, probabilities and rank")
    readout = Readout(**value)
    if type(readout.chance) not in (int, float) or not 1e-5 <= readout.chance <= 1:
        raise ValueError(f"chance is {readout.chance!r}; expected a number between 0 and 1")
    n_classes = readout.n_classes
    _whole(readout.label, "label", -1, n_classes - 1)
    p = readout.probabilities
    numbers = isinstance(p, list) and all(type(v) in (int, float) and 0 <= v <= 1 for v in p)
    if p is not None and not (numbers and len(p) == n_classes):
        raise ValueError(f"probabilities are {str(p)[:80]}; expected {n_classes} numbers from 0 to 1")
    if readout.rank is not None:
        _whole(readout.rank, "rank", 1, n_classes)
    return readout


def _whole(value: int, name: str, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:80]!r}; expected a whole number from {least} to {most}")
