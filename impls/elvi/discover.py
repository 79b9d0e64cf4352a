"""Find techniques by walking the stage folders: the file name is the id, with `_` for `-`."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any

from elvi.errors import ElviError

STAGES = ("encode", "prefill", "decode", "serve", "related")
_HERE = Path(__file__).parent


class UnknownTechniqueError(ElviError):
    """An id that no module carries; `matches` are the ids closest to it."""

    def __init__(self, name: str) -> None:
        self.matches = difflib.get_close_matches(name, list_techniques(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(self.matches)}?" if self.matches else "`elvi list` names them all."
        super().__init__(f"There is no technique {name!r}: {hint}")


def list_techniques(stage: str | None = None) -> list[str]:
    """Ids of all runnable techniques in lifecycle order (cheap: nothing is imported)."""
    return [
        _id(path) for folder in STAGES if stage in (None, folder) for path in sorted((_HERE / folder).glob("[a-z]*.py"))
    ]


def source_of(name: str) -> Path:
    """The module file of a technique. Raises UnknownTechniqueError."""
    for folder in STAGES:
        if name in list_techniques(folder):
            return _HERE / folder / f"{name.replace('-', '_')}.py"
    raise UnknownTechniqueError(name)


def stage_of(name: str) -> str:
    """The stage folder a technique lives in."""
    return source_of(name).parent.name


def summary_of(name: str) -> str:
    """The first line of a technique's module docstring (cheap: the module is parsed, not imported)."""
    return (ast.get_docstring(ast.parse(source_of(name).read_text())) or "").partition("\n")[0]


def technique(name: str) -> type[Any]:
    """The technique class of an id: the first public frozen dataclass of its module."""
    module = importlib.import_module(f"elvi.{stage_of(name)}.{name.replace('-', '_')}")
    for _, member in sorted(inspect.getmembers(module, inspect.isclass), key=lambda item: _line(item[1])):
        if member.__module__ == module.__name__ and hasattr(member, "needs") and not member.__name__.startswith("_"):
            return member
    raise ElviError(f"The module of {name} holds no technique class: define one frozen dataclass with `needs`.")


def _id(path: Path) -> str:
    return path.stem.replace("_", "-")


def _line(member: type) -> int:
    return inspect.getsourcelines(member)[1] if member.__module__.startswith("elvi.") else 0
