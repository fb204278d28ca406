"""What a file from a stranger may cost, in one place. Each limit is checked before the memory is taken."""

import re
import resource
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, loading

MAX_RATIO = 50  # unpacked size over packed size of a zip or a compressed MATLAB file; EEG shrinks to a third at best
SMALL = 100 << 20  # bytes that any of them may unpack to
MAX_DEPTH = 2  # zips inside a zip
MAX_MEMBERS = 25_000  # files in a zip with all that is nested in it; THINGS has 16,740 images
MAX_DIRECTORY = 400 * MAX_MEMBERS  # bytes of a zip's own list of its files
MAX_PIXELS = 50_000_000  # of a photo: a camera's 48 megapixels; in RGB 150 MB
MAX_SIDE, MAX_ASPECT = 20_000, 100  # pixels, of a panorama; a model resizes the short side of a strip to 224 pixels,
# and the long one as much
# the readers of Pillow that are used; the one for EPS, which it would choose by a file's content, starts a program
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_JSON, MAX_ROWS = 64 << 20, 1 << 30  # bytes of a JSON file; of decoded trials, some 2,000 each
# characters of a chat template (published: up to 10,000), and of what a tokenizer puts around a text (1,000)
MAX_TEMPLATE = 100_000
MAX_ADDED = 10_000  # characters that it may add to a chat, besides as many again; published ones add some hundred
TEMPLATE_SECONDS, TEMPLATE_BYTES = 5.0, 512 << 20  # to fill in a chat template
READING_SECONDS, READING_RATE = 40.0, 2 << 20  # to read a recording: this, and a second for so many bytes
READING_BYTES = 2 << 30  # address space for that, besides what the content needs
MAX_WORDS, MAX_NAME = 4_000, 400  # characters of a generated text, a prompt; of a person, a class, an image (in a key)
MAX_LABEL = 100_000  # of a class; ImageNet has 21,841
MAX_TEXT = 10 << 20  # bytes of a table of events or a header in text; Visual Imagery's tables have 20 kB
LOADED_RATIO, LOADED_SMALL = 16, 1 << 30  # bytes in memory for a byte of a MATLAB file (16-bit samples, packed to a
# third, become doubles: 12), and what a file of any size may take
MAX_VALUES, MAX_LEVELS = 1 << 20, 64  # values that a file of any size may stand for; containers inside containers
MAX_LAYERS, MAX_SIZE, MAX_INPUT = 1_000, 1 << 24, 4_096  # of a model's config: layers and entries of a list; any other
# number (vocabularies have up to 262,144 words); pixels of a picture that a preprocessor makes
MAX_GROWTH = 1_000  # characters that a tokenizer's rules put in the place of one
MAX_SETTING = 1 << 20  # a number in the settings of a checkpoint: 77 states of 768 are 59,136


class _TooLong(BaseException):
    """The time is over. No `Exception`: a library that tries something else after any error would go on."""


def check_pixels(path: Path, size: tuple[int, int]) -> None:
    """Raise UserError for a picture that is too large to open; `size` is what its header says."""
    if size[0] * size[1] > MAX_PIXELS or max(size) > min(MAX_SIDE, MAX_ASPECT * min(size)):
        most = f"at most {MAX_PIXELS // 10**6} million are read, {MAX_SIDE} a side, {MAX_ASPECT} to 1"
        raise UserError(f"{path} has {size[0]} × {size[1]} pixels; {most}")


def check_plain(content: object, plain: tuple[type, ...], n_bytes: int, check: Callable | None = None) -> None:
    """Raise ValueError where what a file holds is more than plain values in lists, tuples, dicts and object arrays.

    A pickle may name one list many times, and who writes it out, or makes an array of it, takes each time anew.
    So values count as often as they stand there: at most MAX_VALUES, or as many as the file has bytes.

    check : callable, optional. Looks at each value, and raises ValueError where it is none that is read.
    """
    counts = {}  # id of a container → values that it stands for; 0 while it is open

    def count(value: object, level: int) -> int:
        if (parts := _parts(value)) is None:
            if not isinstance(value, plain):
                raise ValueError(f"a {type(value).__name__} is no data")
            if check is not None:
                check(value)
            return 1
        if level > MAX_LEVELS or counts.get(id(value)) == 0:
            raise ValueError("its lists are nested too deep, or hold themselves")
        if id(value) not in counts:
            counts[id(value)] = 0
            counts[id(value)] = 1 + sum(count(part, level + 1) for part in parts)
            if counts[id(value)] > max(MAX_VALUES, n_bytes):
                raise ValueError("its lists name one another over and over; it is made to last")
        return counts[id(value)]

    count(content, 1)


def _parts(value: object) -> Sequence | None:
    """What a container holds; None for a value."""
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | set):
        return list(value)
    if getattr(getattr(value, "dtype", None), "hasobject", False) and hasattr(value, "tolist"):
        return value.ravel().tolist()
    return None


def check_text(value: object, name: str, most: int = MAX_WORDS) -> str:
    """A text that rows, keys and tables can hold; ValueError for what is none: too long, a lone surrogate, a zero."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name} is {str(value)[:80]!r}; expected text of at most {most} characters")
    if "\0" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
        raise ValueError(f"{name} {value[:80]!r} holds a zero character, or half of one")
    return value


def must_be_plain(path: Path) -> None:
    """Raise UserError where a path is there and is no plain file: a FIFO or a device would be read for ever."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no plain file")


@contextmanager
def opened_picture(path: Path) -> Iterator:
    """Open a picture for decoding inside the block, with Pillow.

    Raises UserError where it is too large, before it takes memory, or takes too long; for what is no picture, and for a
        truncated one, what Pillow raises.
    """
    from PIL import Image  # slow to import, and a script's -h reads this module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the line of `check_pixels` is said instead
        must_be_plain(path)
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
def guarded(path: Path, hint: str = "it is damaged, or none of its kind; export or fetch it again") -> Iterator[None]:
    """The guard of all that is done with a stranger's recording: read, checked, made into arrays, refused.

    It may take READING_SECONDS and a second for READING_RATE bytes, and LOADED_RATIO times its size and READING_BYTES.
    Raises UserError, one line with the file's name, in place of whatever is raised, limits included.
    """
    size = path.stat().st_size if path.is_file() else LOADED_SMALL
    with loading(str(path), hint), reading(path, size, LOADED_RATIO * size // 4):
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
