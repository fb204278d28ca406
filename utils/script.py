"""How a script begins and ends: arguments before slow imports, one line for a mistake, and for an interruption."""

import ctypes
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from utils.errors import FULL_DISK, PLACE, UserError, reason
from utils.locks import all_of, rank_and_number
from utils.paths import remove_leftovers

# control characters, but for those of a line and of a progress bar (its cursor goes up, and clears to the line's end)
CONTROL = re.compile(
    r"(?!\x1b\[[AK])[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
# what libraries say in errors of their own: NumPy's and PyTorch's, of the GPU as well
NO_MEMORY = re.compile(r"[Cc]an't allocate memory|[Cc]annot allocate memory|out of memory|bad_alloc|Unable to allocate")
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 3.0  # seconds in which a second interruption is taken for the first one
_interrupted = -PATIENCE  # when `main` was, of a clock that begins at 0
_begun = False  # whether a script's `main` was called
LONGEST = 2000  # characters of an error line
# what gloo says in the processes that are left when one of a run is killed
ALONE = re.compile(r"gloo.*(by peer|Broken pipe)", re.DOTALL)
T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a script the way Ctrl-C does."""


def start_script(parse_args: Callable[[], T]) -> T:
    """Parse the arguments before the slow imports. From here on an interruption ends in one line; no print fails."""
    sys.stdout, sys.stderr = _Unfailing(sys.stdout), _Unfailing(sys.stderr)
    for number in INTERRUPTIONS:
        signal.signal(number, _leave)
    keep_freed_memory()
    return parse_args()


def keep_freed_memory() -> None:
    """Let glibc keep freed arrays of up to 256 MB for the next ones, half a gigabyte at most.

    By itself it hands them back, and the system clears every page of the next batch anew: on a CPU that was a third of
    the time of ShallowFBCSPNet's training. Other C libraries have no `mallopt` and stay as they are.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 256 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD


def check_one_process() -> None:
    """Raise UserError where a launcher has started several processes of a script that does not share its work."""
    if rank_and_number()[1] > 1:
        script = Path(sys.argv[0]).name
        raise UserError(f"{script} is one process; start it without accelerate launch, or many of them by sweep.py")


def run_script(main: Callable[[], None], locks: Sequence[Path] = (), go_on: str = "") -> None:
    """Run a script's `main`; what the user, a file or a place did wrong becomes one line on stderr and exit code 2.

    locks : sequence of Path. Files that no other process may hold meanwhile: see `utils.locks`.
    go_on : str. What to do after an interruption, for the message.

    A bug still shows its traceback.
    """
    global _interrupted, _begun
    _interrupted, _begun = -PATIENCE, True
    before = {number: signal.signal(number, _interrupt) for number in INTERRUPTIONS}
    sys.unraisablehook = _again
    try:
        with all_of(locks) as held:
            for lock in held:  # nobody else writes there now
                remove_leftovers(lock.parent, "*" if lock.name == ".lock" else lock.stem[1:], new=0)
                if lock.name == ".lock":  # below there may be other runs, with locks of their own
                    remove_leftovers(lock.parent, deep=True)
            main()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        name, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print(f"{name}; {go_on or 'nothing was kept'}", file=sys.stderr)
        sys.exit(code)
    except UserError as error:
        _fail(" ".join(str(error).split()))
    except Exception as error:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            _fail(f"not enough memory ({reason(error)}); smaller batches, fewer --workers or a larger machine")
        if isinstance(error, RecursionError):
            _fail("folders, or what a file holds, lie too deep in one another; is it the right place?")
        if isinstance(error, RuntimeError) and ALONE.search(str(error)):
            _fail(f"another process of this run has ended, so this one ends as well; {go_on}")
        # libraries wrap the system's word for a full disk in errors of their own
        if any(os.strerror(code) in str(error) for code in FULL_DISK):
            _fail(f"cannot write the output ({error}); free some disk space and run again")
        if not isinstance(error, OSError) or error.errno not in PLACE or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another place")
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for number, handler in before.items():
            signal.signal(number, handler)


def command_line() -> str:
    """The command that began this process, for its record; without --resume, which a run that went on was given."""
    given = [part for part in sys.argv[1:] if not (len(part) > 4 and "--resume".startswith(part))]
    return shlex.join(["python", Path(sys.argv[0]).name, *given])


def _fail(message: str) -> NoReturn:
    if len(message) > LONGEST:  # it quotes a file; what to do stands at the end
        message = f"{message[: LONGEST - 500]} … {message[-490:]}"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _interrupt(number: int, _) -> None:
    """While `main` runs: unwind, so that what is finished is kept and what is half-written goes; once is enough."""
    global _interrupted
    if time.monotonic() - _interrupted > PATIENCE:
        _interrupted = time.monotonic()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Send an interruption once more that fell into a place no exception leaves: a finaliser, a hook of fork."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
    global _interrupted
    _interrupted = -PATIENCE
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # by then that place has been left


def _leave(number: int, _) -> None:
    """During the imports, where unwinding may end anywhere and nothing has begun; and at the end."""
    if not _begun:
        os.write(2, b"interrupted before anything began\n")
    os._exit(128 + number)


class _Unfailing:
    """A stream whose printing never fails a run: a closed pipe or a full disk is silence.

    What it cannot encode is escaped; so are control characters, since what a file says must not steer the terminal.
    """

    def __init__(self, stream):
        self._stream = getattr(stream, "_stream", stream)  # wrapped once is enough
        if self._stream is None:  # closed by the shell
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the script runs
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try("write", CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, name: str, *what) -> None:
        try:
            getattr(self._stream, name)(*what)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # Python flushes once more at its end

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
