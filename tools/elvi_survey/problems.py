"""What a run found wrong: one line each, `file:line:col code message — fix`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches

from elvi.errors import ElviError


@dataclass(frozen=True, order=True)
class Problem:
    """`file` is relative to the repository root; `line` and `column` start at 1."""

    file: str
    line: int
    column: int
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        """One line; what could steer a terminal is shown as `?`."""
        line = f"{self.file}:{self.line}:{self.column} {self.code} {self.message} — {self.fix}"
        return "".join(letter if letter.isprintable() else "?" for letter in line)

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


class CatalogError(ElviError):
    """The catalog cannot be used; `problems` says why."""

    def __init__(self, problems: list[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"The catalog has {count}: {problems[0]}; run `elvi-survey check` to see them all.")
        self.problems = problems


def suggest(asked: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """The fix for an unknown word: its nearest neighbour, else `otherwise`, else everything there is."""
    names = list(known)
    near = get_close_matches(str(asked), names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    if otherwise is not None:
        return otherwise
    return f"use one of {', '.join(names)}" if names else "nothing is defined there"
