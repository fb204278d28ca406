"""What the user, a file or a place did wrong: one line, in place of a traceback."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what the place is to blame for, and no code
PLACE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
         errno.ELOOP, errno.EXDEV, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV)  # fmt: skip


class UserError(Exception):
    """What was found, what was expected and what to do, in one line."""


class Fault(ValueError):
    """What is wrong with a file, in words of our own: `loading` adds the file's name and what to do."""


@contextmanager
def loading(what: str, hint: str, done: str = "loaded") -> Iterator[None]:
    """Turn a library's failure to load a file into one line that names the file and the reason.

    what : str. The file, or the flag and what it names.
    hint : str. What to do. done : str. What could not be done with it.
    Raises UserError in place of whatever the library raises; for a full disk, and an interruption, that stays.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a damaged file fails in many ways; what Rust panics with is no Exception
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        raise UserError(f"{what}: cannot be {done} ({reason(error)}); {hint}") from error


def some(words: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """The first words of a list, for a message, and how many more there are."""
    return between.join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def reason(error: BaseException) -> str:
    """What an exception says, on one short line."""
    said = " ".join(next((line for line in str(error).splitlines() if line.strip()), "").split())[:200]
    return said if said and isinstance(error, Fault) else f"{type(error).__name__}: {said}".removesuffix(": ")
