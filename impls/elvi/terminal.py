"""Printing to a terminal, or to a page where there is none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

PAGE = 120  # columns where there is no terminal


def echo(what: Any) -> None:
    """Print a text or a rich table."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else PAGE).print(what)


def progress() -> Progress:
    """A bar on stderr with the count and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
