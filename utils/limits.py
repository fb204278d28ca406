"""What a file from a stranger may cost, in one place. Each limit is checked before the memory is taken."""

import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError

MAX_RATIO = 50  # unpacked size over packed size of a zip or a compressed MATLAB file; EEG shrinks to a third at best
SMALL = 100 << 20  # bytes that any of them may unpack to
MAX_DEPTH = 2  # zips inside a zip
MAX_MEMBERS = 25_000  # files in a zip with all that is nested in it; THINGS has 16,740 images
MAX_DIRECTORY = 400 * MAX_MEMBERS  # bytes of a zip's own list of its files
MAX_PIXELS = 50_000_000  # of a photo: a camera's 48 megapixels; in RGB 150 MB
# the readers of Pillow that are used; the one for EPS, which it would choose by a file's content, starts a program
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_JSON, MAX_ROWS = 64 << 20, 1 << 30  # bytes of a JSON file; of decoded trials, some 2,000 each
MAX_TEMPLATE = 100_000  # characters of a chat template; published ones have up to 10,000
TEMPLATE_SECONDS, TEMPLATE_BYTES = 5.0, 512 << 20  # to fill in a chat template
READING_SECONDS, READING_RATE = 40.0, 2 << 20  # to read a recording: this, and a second for so many bytes
READING_BYTES = 2 << 30  # address space for that, besides what the content needs
MAX_TEXT = 10 << 20  # bytes of a table of events or a header in text; Visual Imagery's tables have 20 kB
LOADED_RATIO, LOADED_SMALL = 16, 1 << 30  # bytes in memory for a byte of a MATLAB file (16-bit samples, packed to a
# third, become doubles: 12), and what a file of any size may take


class _TooLong(BaseException):
    """The time is over. No `Exception`: a library that tries something else after any error would go on."""


def check_pixels(path: Path, size: tuple[int, int]) -> None:
    """Raise UserError for a picture that is too large to open; `size` is what its header says."""
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{path} has {size[0]} × {size[1]} pixels; at most {MAX_PIXELS // 10**6} million are read")


@contextmanager
def opened_picture(path: Path) -> Iterator:
    """Open a picture for decoding inside the block, with Pillow.

    Raises UserError where it is too large, before it takes memory, or takes too long; for what is no picture, and for a
        truncated one, what Pillow raises.
    """
    from PIL import Image  # slow to import, and a script's -h reads this module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the line of `check_pixels` is said instead
        try:
            picture = Image.open(path, formats=PICTURES)
        except Image.DecompressionBombError:
            raise UserError(f"{path} has too many pixels; at most {MAX_PIXELS // 10**6} million are read") from None
    with picture, bounded(str(path), READING_SECONDS):
        check_pixels(path, picture.size)
        yield picture


@contextmanager
def reading(path: Path, size: int, content: int) -> Iterator[None]:
    """`bounded`, for a library that reads a recording.

    size : int. Bytes of its files, which decide on the time.
    content : int. Bytes that the content takes, which decide on the address space.
    """
    with bounded(str(path), READING_SECONDS + size / READING_RATE, 4 * content + READING_BYTES):
        yield


@contextmanager
def bounded(what: str, seconds: float, more_bytes: int | None = None) -> Iterator[None]:
    """Let a library work on a file for so long, and with so much more memory, and no further.

    what : str. The file, for the message.
    seconds : float. Wall-clock. Not kept outside the main thread, where no signal arrives, and only between two steps
    of
        Python: what a library does in one step of C must be bounded by memory.
    more_bytes : int, optional. Address space beyond what the process has now. Not for code that starts a GPU.
    Raises UserError when the time is over, or the memory is not given.
    """
    try:
        with _alarm(seconds), _ceiling(more_bytes):
            yield
    except _TooLong:
        raise UserError(f"{what}: not read after {seconds:.0f} s; it is damaged, or made to last") from None
    except MemoryError:
        raise UserError(f"{what}: asks for more memory than such a file needs; it is damaged, or made to") from None


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _TooLong after so many seconds, and again every second, where somebody caught it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(*_) -> None:
        raise _TooLong(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, too_long)
    left = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # of a block around this one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, *left)


@contextmanager
def _ceiling(more_bytes: int | None) -> Iterator[None]:
    """Lower the limit of address space to what there is now and so much more."""
    pages = Path("/proc/self/statm")  # not on every system
    if more_bytes is None or not pages.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = int(pages.read_text().split()[0]) * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (min(v for v in (ceiling, soft, hard) if v >= 0), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
