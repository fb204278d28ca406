"""Unpacking zip files from strangers: no path leaves the folder, nothing grows without limit."""

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from utils.errors import UserError
from utils.paths import written_whole

MAX_RATIO = 50  # unpacked size over packed size; EEG shrinks to a third at best
SMALL = 100 << 20  # bytes that any archive may unpack to
MAX_DEPTH = 2  # zips inside a zip


def unpack(archive: Path, destination: Callable[[PurePosixPath], Path | None], depth: int = 0) -> int:
    """Unpack what is wanted of a zip file and of the zip files in it.

    Every member is checked before the first is written, and each file appears whole or not at all. A file that is there
    already in the right size is left alone.

    Parameters
    ----------
    archive : Path
    destination : callable
        A member's path → where to put it, or None to leave it out.

    Returns
    -------
    int
        Files that are now in place.

    Raises
    ------
    UserError
        If the archive is damaged, would write outside its folder, unpacks to too much, or nests too deep.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            check_members(archive, members)
            count = 0
            for member in members:
                name = PurePosixPath(member.filename)
                if name.suffix.lower() == ".zip":
                    count += _unpack_nested(archive, opened, member, destination, depth)
                elif (target := destination(name)) is not None:
                    if not target.exists() or target.stat().st_size != member.file_size:
                        with written_whole(target) as unfinished:
                            copy_member(opened, member, unfinished)
                    count += 1
            return count
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); it is damaged or encrypted, fetch it again"
        ) from None


def check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise UserError for a member that would leave its folder, and for an archive that unpacks to too much."""
    for member in members:
        name = member.filename.replace("\\", "/")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise UserError(f"{archive}: its member {member.filename!r} leaves the folder; nothing was unpacked")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{archive}: its member {member.filename!r} is a link; nothing was unpacked")
    packed = archive.stat().st_size
    unpacked = sum(member.file_size for member in members)
    # members that overlap in the file share their packed bytes, which is how small bombs grow
    if sum(member.compress_size for member in members) > packed or unpacked > max(SMALL, MAX_RATIO * packed):
        raise UserError(
            f"{archive}: {packed} bytes that unpack to {unpacked}; that is no recording, nothing was unpacked"
        )


def _unpack_nested(archive, opened, member, destination, depth) -> int:
    if depth == MAX_DEPTH:
        raise UserError(
            f"{archive}: zip files nested deeper than {MAX_DEPTH}; nothing of {member.filename} was unpacked"
        )
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        nested = Path(folder) / PurePosixPath(member.filename).name
        copy_member(opened, member, nested)
        return unpack(nested, destination, depth + 1)


def copy_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member piece by piece; zipfile stops at the size that it declares and checks its CRC."""
    with opened.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
