"""Default places, so that a script finds them from whatever folder it is started."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def default(path: str) -> str:
    """A default path of the project: relative when started from the project root, else absolute."""
    return path if Path.cwd() == ROOT else str(ROOT / path)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder beside its place and rename it when whole, so that a dying run leaves no half.

    Yields Path: A fresh, not yet existing path in the same folder. An old file or folder at `path` is replaced at the
        end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))
    try:
        yield workplace / path.name
        if path.is_dir():
            path.rename(workplace / "old")
        try:
            os.replace(workplace / path.name, path)
        except OSError:
            if (workplace / "old").exists():
                (workplace / "old").rename(path)
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def make_room(path: Path, is_ours: Callable[[Path], bool], overwrite: bool) -> Iterator[None]:
    """Refuse to write over something that is there; with `overwrite`, what is not ours is moved aside, not deleted.

    path : Path. The folder about to be written; an empty one counts as not there.
    is_ours : callable. Whether a folder was made by this project.
    Raises UserError if something is there and `overwrite` is not set.
    """
    foreign = path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_ours(path)))
    if path.exists() and (foreign or any(path.iterdir())) and not overwrite:
        whose = "not made by this script, or damaged" if foreign else "already there"
        raise UserError(f"{path} is {whose}; nothing was written: choose another folder or say --overwrite")
    if foreign:
        numbers = ("", *range(2, 100))
        aside = next(p for n in numbers if not (p := path.with_name(f"{path.name}.old{n}")).exists())
        path.rename(aside)
        print(f"moved what was at {path} to {aside}")
        try:
            yield
        except BaseException:
            if not path.exists():
                aside.rename(path)
            raise
    else:
        yield
