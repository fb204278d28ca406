"""What a check of the audit found, in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check found: ok, notice, cannot or BREACH, of what, in words."""

    kind: str
    check: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind:7} {self.check}: {self.words}"
