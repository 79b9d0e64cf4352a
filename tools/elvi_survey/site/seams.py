"""Pictures of token reduction: right answers against the tokens left, a panel per seam, and what is kept of a frame."""

from collections.abc import Callable, Iterable

from markupsafe import Markup, escape

from elvi_survey.site.figures import picture
from elvi_survey.site.reduction import BUDGET, Curve, Group, Row

Place = Callable[[float, int], tuple[int, int]]  # of a share of the tokens and a number of right answers

WIDTH, HEIGHT = 300, 178
LEFT, RIGHT, TOP, BOTTOM = 24.0, 286.0, 22.0, 150.0
MARKS = {  # the shapes of the stages, from their upper left corners on, which are (-3, -3) from their middles
    "encode": "h6v6h-6z",
    "prefill": "v6h6z",
    "decode": "m0,3a3,3 0 1 0 6,0a3,3 0 1 0-6,0z",
}


def seam_panel(curves: list[Curve], group: Group, task: str, stage: str, label: str) -> Markup:
    """Right answers of the techniques at one seam over the tokens they leave, the floors below, the model dashed."""
    most = group.first.value(f"baseline/{task}/of")

    def place(share: float, right: int) -> tuple[int, int]:
        return round(LEFT + share * (RIGHT - LEFT)), round(BOTTOM - right / most * (BOTTOM - TOP))

    level = place(0, group.first.value(f"baseline/{task}/correct"))[1]
    at = f"{group.first.address}#baseline/{task}/correct"
    drawn = [*_axes(most), _chance(curves, task, place)]
    drawn.append(f'<path class="l-ink" stroke-dasharray="3 3" d="M{LEFT:g},{level}H{RIGHT:g}"/>')
    drawn.append(
        f'<text class="end" data-result-id="{escape(at)}" x="{RIGHT:g}" y="{level - 7}">unmodified model</text>'
    )
    for curve in curves:
        marks = [place(row.share, row.right(task)) for row in curve.rows]
        line = " ".join(f"{x},{y}" for x, y in marks)
        shapes = "".join(f"M{x - 3},{y - 3}{MARKS[stage]}" for x, y in marks)
        drawn.append(
            f'<g data-result-id="{escape(curve.result.address)}#cells">'
            f'<path class="l-mark" d="M{line}"/><path class="f-mark" d="{shapes}"/></g>'
        )
    if group.kept:
        drawn.append(_even(curves, group, task, place))
    return picture(f"0 0 {WIDTH} {HEIGHT}", label, stage, drawn)


def _axes(most: int) -> Iterable[str]:
    for right, y in ((0, BOTTOM), (most, TOP)):
        yield f'<path class="l-rule" d="M{LEFT:g},{y:g}H{RIGHT:g}"/>'
        yield f'<text class="end tick" x="{LEFT - 5:g}" y="{y + 4:g}">{right}</text>'
    x = LEFT + BUDGET * (RIGHT - LEFT)
    yield f'<path class="l-rule" d="M{x:.0f},{TOP:g}V{BOTTOM:g}"/>'
    for share in (0, 25, 50, 75, 100):
        x = LEFT + share / 100 * (RIGHT - LEFT)
        yield f'<text class="mid tick" x="{x:.0f}" y="{BOTTOM + 19:g}">{share}</text>'


def _chance(curves: list[Curve], task: str, place: Place) -> str:
    """Random selection: a grey dot wherever some technique has a mark."""
    rows = [row for curve in curves for row in curve.rows]
    pairs = [(_share(row), chance) for row in rows if (chance := row.by_chance(task)) is not None]
    dots = dict.fromkeys(place(*pair) for pair in pairs)
    path = "".join(f"M{x},{y}h0" for x, y in dots)
    return f'<path class="l-edge" stroke-width="5" stroke-linecap="round" d="{path}"/>' if path else ""


def _share(row: Row) -> float:
    return row.result.value(f"{row.rival}/kept_share")


def _even(curves: list[Curve], group: Group, task: str, place: Place) -> str:
    """Evenly spaced selection next to the budget: a cross."""
    pairs = [(curve.near.share, group.even(curve)) for curve in curves]
    right = [(share, group.kept.value(f"{even}/{task}/correct")) for share, even in pairs if group.kept and even]
    path = "".join(f"M{x - 3},{y}h6m-3-3v6" for x, y in dict.fromkeys(place(*pair) for pair in right))
    return f'<path class="l-ink" stroke-width="1.4" d="{path}"/>' if path else ""


def task_cells(curve: Curve, task: str) -> Markup:
    """Cells of a table, from the fewest tokens on: what is right, by random selection, and the share of tokens left."""
    told = []
    for row in curve.rows:
        chance = row.by_chance(task)
        beside = f"{'–' if chance is None else chance} at {100 * row.share:.0f} %"
        told.append(Markup("<td>{} <small>{}</small></td>").format(row.right(task), beside))
    return Markup("").join(told)
