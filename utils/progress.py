"""Progress: a bar where somebody watches a terminal, a line a minute in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

MINUTE = 60.0


def progress(iterable: Iterable | None = None, **settings) -> tqdm:
    """tqdm's bar, with tqdm's parameters; where stderr is no terminal, a line a minute in place of it."""
    if sys.stderr.isatty():
        return tqdm(iterable, **settings)
    once_a_minute = dict.fromkeys(("delay", "mininterval", "maxinterval"), MINUTE)
    log = {"file": _Lines(), "ascii": True, "ncols": 0, "miniters": 1} | once_a_minute
    return tqdm(iterable, **settings | log | {"leave": False})


class _Lines:
    """stderr, for a bar that writes over itself: each state becomes a line."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
