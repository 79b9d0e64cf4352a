"""Results files as the pages need them: every printed number keeps the address of the value it came from.

An address is `<hardware>/<model>/<technique>#<key>/<key>/…`, the file under `results/` and the path inside its JSON.
Files of related systems stand in `related` instead of a model's folder and hold tables instead of cells.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from elvi.related import shown
from elvi_survey.site.errors import SiteError

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """One results file: measurements of one technique on one machine."""

    address: str
    data: dict[str, Any]

    @property
    def technique(self) -> str:
        return self.data["technique"]

    def value(self, path: str) -> Any:
        """The value at `path`, keys and list positions separated by slashes; None where a key on the way is null."""
        found: Any = self.data
        for key in path.split("/"):
            if found is None:
                return None
            found = found[int(key) if isinstance(found, list) else key]
        return found

    def show(self, path: str, form: str = "plain") -> Markup:
        """The value as text inside an element that names its address; a dash where the file says null."""
        return Markup('<span class="num" {}>{}</span>').format(*self._named(path, form))

    def cell(self, path: str, form: str = "cell", head: bool = False) -> Markup:
        """The same as a cell of a table, or as the head of its row."""
        made = '<th scope="row" class="num" {}>{}</th>' if head else '<td class="r num" {}>{}</td>'
        return Markup(made).format(*self._named(path, form))

    def _named(self, path: str, form: str) -> tuple[Markup, str]:
        found = self.value(path)
        return Markup('data-result-id="{}#{}"').format(self.address, path), "–" if found is None else FORMS[form](found)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


FORMS = {
    "plain": _plain,
    "ms": lambda value: f"{1000 * value:.2f} ms",
    "share": lambda value: f"{100 * value:.0f} %",
    "ratio": lambda value: f"{value:.2f}",
    "accuracy": lambda value: f"{value:.3f}",
    "megabytes": lambda value: f"{value / 1e6:.2f} MB",
    "count": lambda value: f"{value:,.1f}".removesuffix(".0"),
    "commit": lambda value: str(value)[:7],
    "list": lambda value: ", ".join(map(str, value)),
    "cell": shown,
    "setting": lambda value: ", ".join(f"{key} = {item}" for key, item in value.items()) or "defaults",
}


@dataclass(frozen=True)
class Axis:
    """The budget that varies between the cells of a file: its path inside a cell and its name."""

    path: str
    name: str


AXES = (
    Axis("kept_share", "Visual tokens kept, averaged over all layers"),
    Axis("kv_ratio", "Bytes of key-value cache kept"),
)
READ = Axis("kv_read_ratio", "Bytes of key-value cache that a decoding step reads")


def budget_axis(result: Result) -> Axis | None:
    """The first budget that differs between cells; None where the technique has no budget to vary.

    Where rows rest in a second tier and are fetched from there, it is what a step reads, not what the first one holds.
    """
    if any(cell.get("kv_far_bytes") for cell in result.data["cells"]):
        return READ
    for axis in AXES:
        if len({round(cell[axis.path], 3) for cell in result.data["cells"]}) > 1:
            return axis
    return None


def load_results(root: Path) -> dict[str, list[Result]]:
    """Results by technique id, in order of machine and model. Raises SiteError on a file of another schema."""
    found: dict[str, list[Result]] = {}
    for path in sorted(root.glob("*/*/*.json")):
        result = Result(path.relative_to(root).with_suffix("").as_posix(), _read(path))
        found.setdefault(result.technique, []).append(result)
    return found


def load_machines(root: Path) -> dict[str, list[Result]]:
    """What was measured of many techniques together, by name of the file (`speed`, `kept`), in order of machine."""
    found: dict[str, list[Result]] = {}
    for path in sorted(root.glob("*/*.json")):
        found.setdefault(path.stem, []).append(Result(f"{path.parent.name}/{path.stem}", _json(path)))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SiteError(f"{path} is not JSON ({error}); write it again with `elvi bench`.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise SiteError(f"{path} is not a results file of schema {SCHEMA}; write it again with `elvi bench`.")
    return data


def _read(path: Path) -> dict[str, Any]:
    data = _json(path)
    if data.get("technique") != path.stem:
        raise SiteError(f"{path} is not a results file for {path.stem}; write it again with `elvi bench`.")
    if "heads" in data and not _is_map(data["heads"]):
        raise SiteError(f"{path} has a map of heads that is no grid of two kinds; write it again with `elvi bench`.")
    return data


def _is_map(heads: dict[str, Any]) -> bool:
    """Whether there are two names, and as many heads in every layer, each of kind 0 or 1."""
    grid = heads["grid"]
    even = bool(grid) and {len(layer) for layer in grid} == {len(grid[0] or [None])}
    return len(heads["names"]) == 2 and even and all(kind in (0, 1) for layer in grid for kind in layer)


def cells(result: Result, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, cell) of a group, `cells` or `random`."""
    for i, cell in enumerate(result.data[group]):
        yield f"{group}/{i}", cell


def rows(result: Result) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """(path, cell, path of the random selection with the same setting or None)."""
    rivals = {json.dumps(cell["setting"], sort_keys=True): path for path, cell in cells(result, "random")}
    for path, cell in cells(result, "cells"):
        yield path, cell, rivals.get(json.dumps(cell["setting"], sort_keys=True))
