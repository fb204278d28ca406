"""Default places, and writing that is whole, lasting, and leaves nothing behind."""

import glob
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError
from utils.locks import process_lives, take

ROOT = Path(__file__).resolve().parent.parent
OTHER_NAMES = {"training_images": "train_images"}  # of folders of images: UBP's and NeuroBridge's
ALIVE = ".alive"  # locked in a workplace while its process lives
WORKPLACE = re.compile(r"\..+\.part-\d+-[a-z0-9_]{8}")  # the name of one: of what, process, and letters of chance
NEW = 10.0  # seconds in which a workplace may still be without it


def default(path: str) -> str:
    """A default path of the project: relative when started from the project root, else absolute."""
    return path if Path.cwd() == ROOT else str(ROOT / path)


def image_path(folder: Path, image: str) -> Path:
    """Where an image lies below a folder of images, whose parts may have one of `OTHER_NAMES`."""
    part, _, rest = image.partition("/")
    other = folder / OTHER_NAMES.get(part, part)
    return other / rest if not (folder / part).is_dir() and other.is_dir() else folder / image


def is_file_name(name: object) -> bool:
    """Whether a name can be a file's, or a folder's, in a folder: no path leads out of there."""
    return isinstance(name, str) and bool(re.fullmatch(r"[^/\\\0]{1,200}", name)) and name not in (".", "..")


def cache_folder(asked: str | Path | None, store: Path) -> Path:
    """Where tokens and targets are kept: the folder that --cache_dir names, else token_cache beside the store."""
    return Path(asked or store.resolve().parent / "token_cache")


# ---------------------------------------------------------------- writing


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder beside its place and rename it when whole, so that a dying run leaves no half.

    What is in place when the block ends is on the disk, and survives a power cut (fsync of files and folders).

    Yields Path: A fresh, not yet existing path in the same folder. An old file or folder at `path` is replaced at the
        end.
    """
    path = Path(path)
    with workplace(path.parent, path.name) as folder:
        yield folder / path.name
        sync(folder / path.name)
        if path.is_dir():
            path.rename(folder / "old")
        try:
            os.replace(folder / path.name, path)
        except OSError:
            if (folder / "old").exists():
                (folder / "old").rename(path)
            raise
        sync_folder(path.parent)


@contextmanager
def workplace(parent: Path, name: str) -> Iterator[Path]:
    """A folder `.NAME.part-…` to work in, removed at the end; what dead processes left under this name goes as well."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent, name)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.part-{os.getpid()}-", dir=parent))
    alive = None
    try:
        try:
            alive = take(folder / ALIVE)
        except OSError:  # a file system without locks: nobody will take this folder for dead while it is new
            (folder / ALIVE).unlink(missing_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if alive is not None:
            os.close(alive)


def remove_leftovers(parent: Path, name: str = "*", new: float = NEW, deep: bool = False) -> None:
    """Remove the workplaces of processes that are dead, and no others.

    deep : bool. Those in the folders below as well.
    new : float. Seconds for which a workplace that says nothing of its process is left alone: it may be in the making.

    A process that was killed between the two renames of `written_whole` leaves its place empty; what it had written is
    whole, and is put there.
    """
    pattern = f".{name if name == '*' else glob.escape(name)}.part-*"
    for folder in list(parent.rglob(pattern) if deep else parent.glob(pattern)):
        if not WORKPLACE.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue  # somebody else's
        try:
            if (folder / ALIVE).exists():
                held = take(folder / ALIVE, create=False)
                if held is None:
                    continue
                os.close(held)
            elif time.time() - folder.stat().st_mtime < new and lives(folder.name):
                continue
            place = folder.name[1:].rpartition(".part-")[0]
            target = folder.with_name(place)
            if (folder / "old").exists() and (folder / place).exists() and not target.exists():
                os.replace(folder / place, target)
                sync_folder(target.parent)
            shutil.rmtree(folder)
        except OSError:
            continue  # not ours to remove, or removed by another run just now


def lives(workplace_name: str) -> bool:
    """Whether the process that a workplace is named after is there, as far as can be told from here."""
    return process_lives(int(workplace_name.rpartition(".part-")[2].partition("-")[0]))


def append(path: Path, text: bytes) -> None:
    """Add to a file and wait until it is on the disk; a link is not followed, and a FIFO is not waited for."""
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    with open(opened, "ab") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise UserError(f"{path} is no plain file")
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for place in [*sorted(path.rglob("*")), path]:
        if place.is_dir():
            sync_folder(place)
        elif place.is_file():
            with open(place, "rb") as opened:
                os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk; file systems that cannot say so are believed."""
    opened = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(opened)
    os.close(opened)


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
    if not foreign:
        yield
        return
    aside = next(p for n in ("", *range(2, 100)) if not (p := path.with_name(f"{path.name}.old{n}")).exists())
    path.rename(aside)
    print(f"moved what was at {path} to {aside}")
    try:
        yield
    except BaseException:
        if not path.exists():
            aside.rename(path)
        raise
