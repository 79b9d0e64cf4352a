"""Find techniques by walking the stage folders: the file name is the id, with `_` for `-`.

Those of `related` are packages: systems with models of their own (see `elvi.related`), which no plan can hold.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from elvi.errors import ElviError

RELATED = "related"
STAGES = ("encode", "prefill", "decode", "serve", RELATED)
_HERE = Path(__file__).parent


class UnknownTechniqueError(ElviError):
    """An id that no module carries; `matches` are the ids closest to it."""

    def __init__(self, name: str) -> None:
        self.matches = difflib.get_close_matches(name, list_all(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(self.matches)}?" if self.matches else "`elvi list` names them all."
        super().__init__(f"There is no technique {name!r}: {hint}")


def list_techniques(stage: str | None = None) -> list[str]:
    """Ids of all runnable techniques in lifecycle order (cheap: nothing is imported); `related` only when asked for."""
    folders = (stage,) if stage else STAGES[: STAGES.index(RELATED)]
    return [_id(path) for folder in folders for path in _modules(folder)]


def list_all() -> list[str]:
    """Ids of all that can be run: the techniques, then the related systems."""
    return [*list_techniques(), *list_techniques(RELATED)]


def source_of(name: str) -> Path:
    """The module file of a technique. Raises UnknownTechniqueError."""
    for folder in STAGES:
        for path in _modules(folder):
            if _id(path) == name:
                return path
    raise UnknownTechniqueError(name)


def stage_of(name: str) -> str:
    """The stage folder a technique lives in."""
    return source_of(name).relative_to(_HERE).parts[0]


def summary_of(name: str) -> str:
    """The first line of a technique's module docstring (cheap: the module is parsed, not imported)."""
    return (ast.get_docstring(ast.parse(source_of(name).read_text())) or "").partition("\n")[0]


@cache
def technique(name: str) -> type[Any]:
    """The technique class of an id: the first public frozen dataclass of its module."""
    stage = stage_of(name)
    module = importlib.import_module(f"elvi.{stage}.{name.replace('-', '_')}")
    mark = "bench" if stage == RELATED else "needs"
    for _, member in sorted(inspect.getmembers(module, inspect.isclass), key=lambda item: _line(item[1])):
        if member.__module__ == module.__name__ and hasattr(member, mark) and not member.__name__.startswith("_"):
            return member
    raise ElviError(f"The module of {name} holds no technique class: define one frozen dataclass with `{mark}`.")


def _modules(stage: str) -> list[Path]:
    return sorted((_HERE / stage).glob("[a-z]*/__init__.py" if stage == RELATED else "[a-z]*.py"))


def _id(path: Path) -> str:
    return (path.parent.name if path.stem == "__init__" else path.stem).replace("_", "-")


def _line(member: type) -> int:
    return inspect.getsourcelines(member)[1] if member.__module__.startswith("elvi.") else 0
