"""Which heads are of which kind: a map of layers and heads from the `heads` of a results file, and it in words."""

from markupsafe import Markup, escape

from elvi_survey.site.figures import picture
from elvi_survey.site.results import Result

LEFT, TOP, WIDTH, MOST = 24.0, 4.0, 312.0, 14.0


def kinds(result: Result) -> list[tuple[str, int]]:
    """(name, how many heads) of each kind."""
    heads = result.data["heads"]
    return [(name, sum(layer.count(kind) for layer in heads["grid"])) for kind, name in enumerate(heads["names"])]


def layers(result: Result) -> list[tuple[int, list[list[int]]]]:
    """(layer, heads of each kind), counted from 0."""
    grid = result.data["heads"]["grid"]
    return [(n, [[h for h, each in enumerate(row) if each == kind] for kind in (0, 1)]) for n, row in enumerate(grid)]


def head_map(result: Result, stage: str) -> Markup:
    """A square per head, layers from left to right: filled for kind 1, open for kind 0."""
    grid = result.data["heads"]["grid"]
    step, last_layer, last_head = min(MOST, WIDTH / len(grid)), len(grid) - 1, len(grid[0]) - 1
    side, squares = 0.72 * step, ["", ""]
    for layer, row in enumerate(grid):
        for head, kind in enumerate(row):
            x, y = LEFT + layer * step, TOP + head * step
            squares[kind] += f"M{x:.1f},{y:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z"
    traced = f'data-result-id="{escape(result.address)}#heads/grid"'
    drawn = [f'<path class="{css}" {traced} d="{d}"/>' for css, d in zip(("l-mark", "f-mark"), squares, strict=True)]
    for head in _ends(last_head, step, 12):
        y = TOP + head * step + side / 2 + 4
        drawn.append(f'<text class="end tick" x="{LEFT - 6:g}" y="{y:.1f}">{head}</text>')
    below = TOP + last_head * step + side + 15
    for layer in _ends(last_layer, step, 24):
        x = LEFT + layer * step + side / 2
        drawn.append(f'<text class="mid tick" x="{x:.1f}" y="{below:.1f}">{layer}</text>')
    counted = " and ".join(f"{count} {name}" for name, count in kinds(result))
    label = f"Heads by kind, {counted}; the table below names them"
    return picture(f"0 0 340 {below + 5:.0f}", label, stage, drawn)


def _ends(last: int, step: float, room: float) -> list[int]:
    """The first and the last number of an axis, if there is room for both words."""
    return [0, last] if last * step >= room else [0]
