"""Related systems: work of the survey's family that acts on no stage of vision-language inference.

Each is a package with models of its own, whose public frozen dataclass follows `System`. It cannot be part of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table of results, as the terminal and the record's page show it. Every row has one value per column."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    note: str = ""

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"{self.title!r} has {len(self.columns)} columns and a row of other length: {wrong[0]}.")


class System(Protocol):
    """What a related system can do; its fields are what can be set on the command line.

    prompt: a text to try it with, as its page does; None where it reads no text.
    """

    prompt: ClassVar[str | None]

    def run(self, prompt: str | None) -> list[Table]:
        """Answer one input with the shipped weights (None: the embedded default)."""
        ...

    def bench(self, tick: Callable[[int, int], None]) -> list[Table]:
        """The experiment that the page shows. `tick(done, total)` after each part."""
        ...

    def train(self, out: Path, data: Path | None, *, resume: bool, tick: Callable[[int, int], None]) -> None:
        """Train from the seed into the folder `out`, saving after every part; `resume` goes on from what it holds."""
        ...


def shown(value: Value) -> str:
    """A value as people read it: four significant digits, thousands apart, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
