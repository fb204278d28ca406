"""Unpacking zip files from strangers: no path leaves the folder, nothing grows without limit."""

import io
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from utils.errors import Fault, UserError, loading
from utils.limits import MAX_DEPTH, MAX_DIRECTORY, MAX_MEMBERS, MAX_RATIO, SMALL
from utils.paths import workplace, written_whole


def unpack(archive: Path, destination: Callable[[PurePosixPath], Path | None], scratch: Path) -> int:
    """Unpack what is wanted of a zip file and of the zip files in it.

    Every member of a zip is checked before its first is written, and each file appears whole or not at all. A file that
    is there already in the right size is left alone.

    destination : callable. A member's path → where to put it, or None to leave it out. Zip files inside are asked
        about as well; where to is of no matter for them.
    scratch : Path. Folder for zip files from inside, while they are read.
    Returns int: Files that are now in place.
    Raises UserError if the archive is damaged, would write outside its folder, unpacks to too much or has too many
    files
        (with all that is nested in it), or nests too deep.
    """
    return _Unpacking(destination, scratch, max(SMALL, MAX_RATIO * archive.stat().st_size)).open(archive, archive.name)


class _Unpacking:
    """One archive with all that is nested in it: they share one budget of bytes, and one of files."""

    def __init__(self, destination, scratch: Path, budget: int):
        self.destination, self.scratch, self.budget, self.members = destination, scratch, budget, MAX_MEMBERS

    def open(self, archive: Path, name: str, depth: int = 0) -> int:
        hint = "it is damaged or encrypted, fetch it again"
        with loading(name, hint, "unpacked"), _Careful(io.FileIO(archive)) as file, zipfile.ZipFile(file) as opened:
            self.members -= len(opened.infolist())
            if self.members < 0:
                raise UserError(f"{name} has more than {MAX_MEMBERS} files, with those nested in it; no recording has")
            members = [member for member in opened.infolist() if not member.is_dir()]
            self.check(archive, name, members)
            return sum(self.take(opened, member, name, depth) for member in members)

    def check(self, archive: Path, name: str, members: list[zipfile.ZipInfo]) -> None:
        """Raise UserError for a member that would leave its folder, and when the budget is spent."""
        for member in members:
            inside = member.filename.replace("\\", "/")
            path = PurePosixPath(inside)
            if path.is_absolute() or ".." in path.parts or ":" in inside:
                raise UserError(f"{name}: its member {member.filename!r} leaves the folder; nothing of it was unpacked")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{name}: its member {member.filename!r} is a link; nothing of it was unpacked")
        unpacked = sum(member.file_size for member in members)
        self.budget -= unpacked
        # members that overlap in the file share their packed bytes, which is how small bombs grow
        if sum(member.compress_size for member in members) > archive.stat().st_size or self.budget < 0:
            raise UserError(f"{name} would unpack to {unpacked} bytes, too many for its size; that is no recording")

    def take(self, opened: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, depth: int) -> int:
        inside = PurePosixPath(member.filename)
        target = self.destination(inside)
        if target is None:
            return 0
        if inside.suffix.lower() == ".zip":
            if depth == MAX_DEPTH:
                raise UserError(f"{name}: zip files nested deeper than {MAX_DEPTH}; nothing of {inside} was unpacked")
            with workplace(self.scratch, "unpacking") as folder:
                copy_member(opened, member, folder / "nested.zip")
                return self.open(folder / "nested.zip", f"{name}: {inside.name}", depth + 1)
        if not target.exists() or target.stat().st_size != member.file_size:
            with written_whole(target) as unfinished:
                copy_member(opened, member, unfinished)
        return 1


class _Careful(io.BufferedReader):
    """A zip file whose list of files, which zipfile reads in one piece, and nothing else so, may not be too long."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise Fault(f"its list of files has {size} bytes, too many for {MAX_MEMBERS} files")
        return super().read(size)


def copy_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member piece by piece; zipfile stops at the size that it declares and checks its CRC."""
    with opened.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def check_packed(path: Path) -> None:
    """Compare the parts of a checkpoint with their CRC-32, which torch.load does not, and refuse packed bombs.

    A file in the format of before PyTorch 1.6 is no zip file and has no checksums.
    """
    if path.exists() and not path.is_file():
        raise Fault("it is no plain file")  # a FIFO or a device would be read for ever
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch.load tells them apart
            return
    with zipfile.ZipFile(path) as parts:
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
            raise Fault("its parts are compressed, which torch.save never does")
        damaged = parts.testzip()
    if damaged:
        raise Fault(f"the checksum of its part {damaged} is wrong")
