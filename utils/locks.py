"""One process at a time: a file that is locked while a process lives, and says which one it is.

The operating system lets go of the lock when the process ends, however it ends: a file that a dead process left behind
is taken over, and never has to be deleted by hand.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from utils.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # file systems that have none
PATIENCE = 5.0  # seconds for which the workers of a process that was killed may outlive it


def take(path: Path, create: bool = True) -> int | None:
    """Lock a file, and write into it who did; its descriptor, or None while another process holds it.

    A link, or anything else that is no plain file, is not followed: it may be a stranger's, and lead anywhere. Closing
    the descriptor gives the lock back. Raises OSError where the file cannot be written or locked.
    """
    while True:
        how, ours = os.O_NOFOLLOW | os.O_NONBLOCK, True
        try:
            held = os.open(path, how | os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        except PermissionError:
            if not path.exists():
                raise
            held, ours = os.open(path, how | os.O_RDONLY), False  # another user's, who may be gone
        with ExitStack() as stack, suppress(BlockingIOError):
            stack.callback(os.close, held)
            if not stat.S_ISREG(os.fstat(held).st_mode):
                raise OSError(errno.ELOOP, "is no plain file, so it is no lock", str(path))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or os.fstat(held).st_ino != path.stat().st_ino:
                continue  # its holder removed it just now
            if ours:
                who = {"process": os.getpid(), "host": socket.gethostname()}
                who["since"] = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
                os.ftruncate(held, 0)
                os.write(held, json.dumps(who).encode())
            stack.pop_all()
            return held
        return None


@contextmanager
def only_one(path: Path, wait: str = "") -> Iterator[bool]:
    """Hold a lock file, and remove it at the end.

    wait : str. What the other process is doing; waits for it then, and says so. Else another holder is an error.
    Yields bool: Whether it had to wait.
    Raises UserError if another process holds it: its number, host and start.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = 0.0
    try:
        held = take(path)
        while held is None:
            who = _holder(path)
            if not wait and (waited > PATIENCE or _lives(who)):
                hint = "wait until it ends, or choose another folder"
                raise UserError(f"{path.parent}: {_named(who)} is writing there; {hint}")
            if wait and waited == 0.0:
                print(f"notice: {_named(who)} {wait}; waiting for it")
            time.sleep(0.2)
            waited += 0.2
            held = take(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"notice: {path.parent} is on a file system without locks; a second run in it would not be noticed")
        held = None
    try:
        yield waited > 0
    finally:
        if held is not None:
            with suppress(OSError):  # another user's in a folder of theirs
                path.unlink()
            os.close(held)
        for folder in made:  # for the lock alone
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def all_of(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Hold several lock files; yields them. Of the processes that Accelerate started for one run, the first does."""
    held = [] if rank_and_number()[0] else sorted(set(paths))
    with ExitStack() as stack:
        for path in held:
            stack.enter_context(only_one(path))
        yield held


def lock_beside(path: str | Path) -> Path:
    """`.NAME.lock` beside a file, or a folder, that appears as a whole."""
    return Path(path).with_name(f".{Path(path).name}.lock")


def rank_and_number() -> tuple[int, int]:
    """Which of how many processes this is that `accelerate launch` started for one run; 0 of 1 where it is alone."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def remove_stale(folder: Path, pattern: str) -> None:
    """Remove lock files that no process holds."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if (held := take(path, create=False)) is not None:
                path.unlink(missing_ok=True)
                os.close(held)


def _holder(path: Path) -> dict:
    """What the lock file says; {} where nothing can be read."""
    content = None
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _named(who: dict) -> str:
    return f"process {who.get('process', '?')} on {who.get('host', '?')}, since {who.get('since', '?')},"


def _lives(who: dict) -> bool:
    """Whether the process is there, as far as can be told from here."""
    if who.get("host") != socket.gethostname() or not isinstance(who.get("process"), int):
        return True
    return process_lives(who["process"])


def process_lives(number: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
