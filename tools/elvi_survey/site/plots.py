"""Budget plots: quality and cost against the budget that was kept, as inline SVG from one results file.

Quality and cost are two panels, never two vertical axes. Marks have the shape of the stage, random selection at
the same budget is grey, the unmodified model dashed. Labels sit on the lines. Every mark carries the address of its
value in `data-result-id`.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from elvi_survey.site.figures import BAR, GLYPHS, picture
from elvi_survey.site.results import Axis, Result, budget_axis, cells

LEFT, RIGHT, TOP, BOTTOM = 38.0, 318.0, 16.0, 202.0
BELOW = 26.0  # from words above a mark to words below it


@dataclass(frozen=True)
class Point:
    """A mark: horizontal and vertical value, quartiles where repeats were timed, the address of the vertical value."""

    x: float
    y: float
    address: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """Vertical range of a panel with its ticks."""

    low: float
    high: float
    step: float

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def ticks(self) -> list[float]:
        return [self.low + self.step * i for i in range(round((self.high - self.low) / self.step) + 1)]


STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def scale_for(values: list[float], *, floor: bool) -> Scale:
    """At most six round steps that hold the values and 1; from zero when `floor`."""
    high = max(1.0, *values)
    low = 0.0 if floor else min(*values, 1.0 - STEPS[0])
    step = next((step for step in STEPS if (high - low) / step <= 5), high - low)
    below, above = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(below * step, above * step, step)


def points(result: Result, group: str, axis: Axis, path: str) -> list[Point]:
    """One point per cell, in order of the budget; a path that ends at a spread gives its median and quartiles."""
    found = []
    for where, cell in cells(result, group):
        here = result.value(f"{where}/{path}")
        if here is None:
            continue
        spread = here if isinstance(here, dict) else {"median": here, "q1": None, "q3": None}
        tail = f"{path}/median" if isinstance(here, dict) else path
        address = f"{result.address}#{where}/{tail}"
        found.append(Point(cell[axis.path], spread["median"], address, spread["q1"], spread["q3"]))
    return sorted(found, key=lambda point: point.x)


def _x(share: float) -> float:
    return LEFT + min(share, 1.1) / 1.1 * (RIGHT - LEFT + 20)


def _short(value: float) -> str:
    """A coordinate with one decimal, or none where it is zero."""
    return f"{value:.1f}".removesuffix(".0")


def _grid(scale: Scale) -> str:
    ticks = [(scale.y(v), v) for v in (round(tick, 3) for tick in scale.ticks())]
    rules = "".join(f"M{LEFT:g},{_short(y)}H{RIGHT:g}" for y, _ in ticks)
    rows = "".join(f'<text class="end tick" x="{LEFT - 6:g}" y="{_short(y + 4)}">{v:g}</text>' for y, v in ticks)
    columns = "".join(
        f'<text class="mid tick" x="{_short(_x(s / 100))}" y="220">{s} %</text>' for s in (20, 40, 60, 80, 100)
    )
    return f'<path class="l-rule" d="{rules}"/>{rows}{columns}'


def _line(marks: list[Point], scale: Scale, css: str) -> str:
    if len(marks) < 2:
        return ""
    path = " ".join(f"{_short(_x(p.x))},{_short(scale.y(p.y))}" for p in marks)
    return f'<path class="{css}" stroke-width="2" d="M{path}"/>'


def _bars(marks: list[Point], scale: Scale) -> str:
    drawn = "".join(
        f"M{_short(_x(p.x))},{_short(scale.y(p.low))}V{_short(scale.y(p.high))}"
        for p in marks
        if p.low is not None and p.high is not None
    )
    return f'<path class="l-mark" stroke-width="1.4" d="{drawn}"/>' if drawn else ""


def _shapes(marks: list[Point], scale: Scale, shape: str, css: str) -> str:
    return "".join(
        f'<path class="{css} halo" data-result-id="{escape(p.address)}" '
        f'transform="translate({_short(_x(p.x) - 4.5)} {_short(scale.y(p.y) - 4.5)}) scale(.75)" d="{shape}"/>'
        for p in marks
    )


def _label(x: float, y: float, words: str, css: str) -> str:
    """Words at the end of a line: to the right of the mark, or above it where the panel ends."""
    if x > LEFT + 0.6 * (RIGHT - LEFT):
        return f'<text class="{css} end" x="{x + 4:.1f}" y="{max(y - 9, 11):.1f}">{escape(words)}</text>'
    return f'<text class="{css}" x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(words)}</text>'


@dataclass(frozen=True)
class Panel:
    """What one panel shows: our marks, random selection, and the unmodified model as a level with the words on it."""

    ours: list[Point]
    random: list[Point]
    plain: Point
    plain_name: str
    scale: Scale


def panel(stage: str, name: str, label: str, shown: Panel) -> Markup:
    """Draw a panel; `name` stands at the end of our line, `label` is the text alternative."""
    scale, ours, random = shown.scale, shown.ours, shown.random
    parts = [_grid(scale), _level(shown), _line(random, scale, "l-edge")]
    parts += [_shapes(random, scale, GLYPHS["decode"], "f-soft"), _bars(ours, scale), _line(ours, scale, "l-mark")]
    parts.append(_shapes(ours, scale, GLYPHS.get(stage, BAR), "f-mark"))
    x, y = _x(ours[-1].x), scale.y(ours[-1].y)
    rival = scale.y(random[-1].y) if random else y
    parts.append(_label(x, y if y <= rival else y + BELOW, name, "t-s"))
    if random:  # whichever line ends higher has its words above the mark, the other below
        parts.append(_label(_x(random[-1].x), rival + BELOW if y <= rival else rival, "random, same budget", ""))
    return picture("0 0 340 228", label, stage, parts)


def _level(shown: Panel) -> str:
    """The dashed level of the unmodified model with its words above it, or below where the panel ends."""
    plain, y = shown.plain, shown.scale.y(shown.plain.y)
    traced = f' data-result-id="{escape(plain.address)}"' if plain.address else ""
    return (
        f'<path class="l-ink" stroke-dasharray="3 3" d="M{LEFT:g},{y:.1f}H{RIGHT:g}"/>'
        f'<text{traced} x="{LEFT + 4:g}" y="{y - 5 if y > TOP + 14 else y + 14:.1f}">{escape(shown.plain_name)}</text>'
    )


def charts(result: Result, stage: str, name: str) -> list[tuple[str, Markup, Markup]]:
    """(heading, detail, picture) of the quality and the cost panel; empty where no budget varies between the cells."""
    axis = budget_axis(result)
    if axis is None:
        return []
    where, what = QUALITY["decode" if stage == "decode" else "prompt"]
    quality = points(result, "cells", axis, f"{where}/accuracy")
    rival = points(result, "random", axis, f"{where}/accuracy")
    address = f"baseline/{where}/accuracy"
    plain = Point(1.0, result.value(address), f"{result.address}#{address}")
    scale = scale_for([point.y for point in [*quality, *rival, plain]], floor=False)
    shown = Panel(quality, rival, plain, f"unmodified model {plain.y:.3f}", scale)
    label = f"Accuracy of {name} against the budget; a table holds the numbers"
    asked = Markup("{}, of {}").format(what, result.show(f"baseline/{where}/of"))
    return [("Accuracy", asked, panel(stage, name, label, shown)), *_cost(result, stage, name, axis)]


# What happens to the cache after the prefill shows in long answers: a one-word answer comes from the prefill itself.
QUALITY = {
    "prompt": ("quality", "right answers to questions"),
    "decode": ("quality/captions", "right sentences of captions"),
}


def _cost(result: Result, stage: str, name: str, axis: Axis) -> list[tuple[str, Markup, Markup]]:
    """The panel of time: per output token for decoding, to the first token otherwise; empty where it was not timed."""
    decoding = stage == "decode"
    key, what = ("tpot_ratio", "Time per output token") if decoding else ("ttft_ratio", "Time to first token")
    timed = points(result, "cells", axis, key)
    if not timed:
        return []
    scale = scale_for([point.y if point.high is None else point.high for point in timed], floor=True)
    shown = Panel(timed, [], Point(1.0, 1.0, ""), "unmodified model", scale)
    label = f"{what} of {name} relative to the unmodified model; a table holds the numbers"
    words = "relative to the unmodified model, both {}; bars are quartiles"
    return [(what, Markup(words).format(result.show("model/attention")), panel(stage, name, label, shown))]
