"""A smaller cache on the pages: quality against the bytes a step reads, between random selection and the full cache.

Numbers come from the cells of results files (see `elvi.bench.results`); cells that draft stand elsewhere.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from elvi_survey.site.figures import BAR, GLYPHS, picture
from elvi_survey.site.results import Result, rows

LOWERED = "KV bytes"  # what a category must lower, in the words of the taxonomy, for its techniques to stand here
BUDGET = 0.1  # share of the full cache's bytes at which techniques are compared with random selection
KINDS = (("quality", "questions"), ("quality/captions", "caption sentences"))


@dataclass(frozen=True)
class Row:
    """One cell: a technique at a setting. `rival`: the path of random selection of as much, None without one."""

    result: Result
    path: str
    cell: dict[str, Any]
    rival: str | None

    @property
    def ratio(self) -> float:
        return _read(self.cell)

    def right(self, where: str) -> int:
        return self.result.value(f"{self.path}/{where}/correct")


def _read(cell: dict[str, Any]) -> float:
    """Bytes of the cache that a decoding step reads, as a share of the full cache's; of older files, those it holds.

    What is held in the first tier alone would flatter techniques that fetch from a second one.
    """
    return cell.get("kv_read_ratio", cell["kv_ratio"])


@dataclass(frozen=True)
class Curve:
    """A technique on one model and machine: its rows from the fewest bytes to the most."""

    rows: list[Row]

    @property
    def result(self) -> Result:
        return self.rows[0].result

    @property
    def smallest(self) -> Row:
        return self.rows[0]

    @property
    def compared(self) -> Row | None:
        """The row nearest to `BUDGET` of those with random selection."""
        return _nearest([row for row in self.rows if row.rival])

    @property
    def near(self) -> Row:
        """The row nearest to `BUDGET` of those that a line joins."""
        return _nearest(self.swept) or self.smallest

    @property
    def swept(self) -> list[Row]:
        """The rows that differ in the swept field alone, which a line may join; variants set other fields."""
        first = self.result.data["cells"][0]["setting"]
        return [row for row in self.rows if row.cell["setting"].keys() == first.keys()]

    @property
    def whole(self) -> bool:
        """Whether as much is right at its smallest budget as with the full cache."""
        return all(self.smallest.right(where) >= self.result.value(f"baseline/{where}/correct") for where, _ in KINDS)


def _nearest(found: list[Row]) -> Row | None:
    return min(found, key=lambda row: abs(row.ratio - BUDGET), default=None)


@dataclass(frozen=True)
class Group:
    """Curves that may stand in one picture, those that keep most at their smallest budget first.

    They are of the same machine, model and questions, and of an unmodified model that answered the same.
    """

    curves: list[Curve]

    @property
    def first(self) -> Result:
        return self.curves[0].result

    @property
    def techniques(self) -> list[str]:
        return [curve.result.technique for curve in self.curves]

    @property
    def asked(self) -> list[tuple[str, str]]:
        """(path, words) of what was asked at all; a text prompt has no right answer."""
        return [(where, words) for where, words in KINDS if self.first.value(f"baseline/{where}/of")]

    def no_better(self, where: str) -> list[Row]:
        """Rows next to `BUDGET` where random selection of as much gets as many right, or more."""
        found = [row for curve in self.curves if (row := curve.compared)]
        return [row for row in found if row.right(where) <= row.result.value(f"{row.rival}/{where}/correct")]

    def not_above(self, baselines: list[tuple[str, str]], where: str) -> list[tuple[Row, Row]]:
        """(row, row of its baseline) next to `BUDGET` where the baseline gets as many right, or more.

        baselines: (technique, what its paper compares it with), by id.
        """
        near = {curve.result.technique: curve.near for curve in self.curves}
        pairs = [(near[one], near[other]) for one, other in baselines if one in near and other in near]
        return [(row, rival) for row, rival in pairs if row.right(where) <= rival.right(where)]

    @property
    def whole(self) -> list[Row]:
        return [curve.smallest for curve in self.curves if curve.whole]

    @property
    def unrivalled(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.compared is None]

    @property
    def far(self) -> bool:
        """Whether any row holds bytes in a second tier."""
        return any(row.cell.get("kv_far_bytes") for curve in self.curves for row in curve.rows)

    @property
    def span(self) -> tuple[float, float]:
        """Fewest and most bytes of the picture, as shares of the full cache."""
        ratios = [row.ratio for curve in self.curves for row in curve.rows]
        return min(0.05, *ratios), max(1.0, *ratios)


def groups(results: dict[str, list[Result]], technique_ids: list[str]) -> list[Group]:
    """All of these techniques that can be compared, by machine, model, protocol and answers of the unmodified model.

    Where no technique varies its bytes there is no group.
    """
    found: dict[str, list[Curve]] = {}
    for result in (result for id_ in technique_ids for result in results.get(id_, [])):
        cells = [Row(result, *rest) for rest in rows(result) if not rest[1].get("speculation")]
        if cells:
            same = [result.data[part] for part in ("hardware", "model", "protocol")]
            key = json.dumps([*same, result.value("baseline/quality")], sort_keys=True)
            found.setdefault(key, []).append(Curve(sorted(cells, key=lambda row: row.ratio)))
    made = [Group(sorted(curves, key=_kept)) for curves in found.values() if any(map(_varies, curves))]
    return sorted(made, key=lambda group: (group.first.value("model/name") != "tiny-qwen", group.first.address))


def _varies(curve: Curve) -> bool:
    return len({round(row.ratio, 3) for row in curve.rows}) > 1


def _kept(curve: Curve) -> tuple[int, int, float, str]:
    row = curve.smallest
    return -row.right("quality/captions"), -row.right("quality"), row.ratio, curve.result.technique


WIDTH, HEIGHT = 176, 122
LEFT, RIGHT, TOP, BOTTOM = 22.0, 140.0, 20.0, 98.0  # to the right there is room for a word
TICKS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class _Scale:
    """The scale of all panels of a group: shares of bytes on a logarithmic axis, right sentences on a linear one."""

    low: float
    high: float
    most: int

    def x(self, share: float) -> float:
        return LEFT + math.log(share / self.low) / math.log(self.high / self.low) * (RIGHT - LEFT)

    def y(self, right: float) -> float:
        return BOTTOM - right / self.most * (BOTTOM - TOP)


@dataclass(frozen=True)
class _Mark:
    """Where a cell stands in a panel, the address of its number, and whether the line of its kind passes through."""

    x: float
    y: float
    address: str
    joined: bool


def panel(curve: Curve, group: Group, stage: str, name: str) -> Markup:
    """Right caption sentences of a technique over its bytes; random selection is grey, the full cache dashed."""
    scale = _Scale(*group.span, group.first.value("baseline/quality/captions/of"))
    swept = curve.swept
    ours = [_mark(row.result, row.path, scale, joined=row in swept) for row in curve.rows]
    random = [_mark(row.result, row.rival, scale, joined=row in swept) for row in curve.rows if row.rival]
    plain = _mark(curve.result, "baseline", scale, joined=False)
    drawn = [*_grid(scale), *_level(plain), _line(random, "l-edge", 1.4)]
    drawn += [
        f'<circle class="f-soft halo" data-result-id="{mark.address}" cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="2.6"/>'
        for mark in random
    ]
    drawn.append(_line(ours, "l-mark", 2))
    drawn += [
        f'<g transform="translate({mark.x - 4:.1f} {mark.y - 4:.1f}) scale(.667)">'
        f'<path class="f-mark halo" data-result-id="{mark.address}" d="{GLYPHS.get(stage, BAR)}"/></g>'
        for mark in ours
    ]
    if random:
        drawn.append(f'<text x="{random[-1].x + 8:.1f}" y="{random[-1].y + 4:.1f}">random</text>')
    label = f"Right caption sentences of {name} against the bytes a step reads; the table below has the numbers"
    return picture(f"0 0 {WIDTH} {HEIGHT}", label, stage, drawn)


def _mark(result: Result, path: str, scale: _Scale, *, joined: bool) -> _Mark:
    where = f"{path}/quality/captions/correct"
    x, y = scale.x(_read(result.value(path))), scale.y(result.value(where))
    return _Mark(x, y, str(escape(f"{result.address}#{where}")), joined)


def _level(plain: _Mark) -> Iterable[str]:
    yield f'<path class="l-ink" stroke-dasharray="3 3" d="M{LEFT:g},{plain.y:.1f}H{RIGHT:g}"/>'
    yield f'<text data-result-id="{plain.address}" x="{LEFT + 2:g}" y="{plain.y - 7:.1f}">full cache</text>'


def _grid(scale: _Scale) -> Iterable[str]:
    for right in (0, scale.most):
        y = scale.y(right)
        yield f'<path class="l-rule" d="M{LEFT:g},{y:.1f}H{RIGHT:g}"/>'
        yield f'<text class="end tick" x="{LEFT - 5:g}" y="{y + 4:.1f}">{right}</text>'
    for share in TICKS:
        if scale.low <= share <= scale.high:
            yield f'<text class="mid tick" x="{scale.x(share):.1f}" y="{BOTTOM + 18:g}">{100 * share:g}</text>'


def _line(marks: list[_Mark], css: str, width: float) -> str:
    joined = [f"{mark.x:.1f},{mark.y:.1f}" for mark in marks if mark.joined]
    return f'<path class="{css}" stroke-width="{width}" d="M{" ".join(joined)}"/>' if len(joined) > 1 else ""
