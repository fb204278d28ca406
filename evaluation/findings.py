"""What a check of the audit found, in one line."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SHOWN = 5  # findings of a kind
Checked = Iterator[tuple[str, str]]  # a finding's kind and words, of the run that is checked


@dataclass(frozen=True)
class Finding:
    """What a check found: ok, notice, cannot or BREACH, of what, in words."""

    kind: str
    check: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind:7} {self.check}: {self.words}"


def first_of(kind: str, check: str, words: Sequence[str], rest: str) -> Iterator[Finding]:
    """The first of many findings, and how many more there are: "3 more …"."""
    for one in words[:SHOWN]:
        yield Finding(kind, check, one)
    if len(words) > SHOWN:
        yield Finding(kind, check, f"{len(words) - SHOWN} more {rest}")


def of_run(check: Callable) -> Callable[..., Iterator[Finding]]:
    """A check of a run, which yields kinds and words, as one whose findings have the run's name."""

    @functools.wraps(check)
    def named(run, *rest) -> Iterator[Finding]:  # noqa: ANN001 - evaluation.decoded_runs.Run
        return (Finding(kind, run.name, words) for kind, words in check(run, *rest))

    return named
