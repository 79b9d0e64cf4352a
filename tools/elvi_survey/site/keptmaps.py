"""What techniques keep of one frame, drawn from `kept.json` (see `elvi.bench.kept`)."""

from markupsafe import Markup, escape

from elvi_survey.site.figures import picture
from elvi_survey.site.results import Result

SIDE, STRIP = 60.0, 14.0  # of the frame, and of the row of bars below it
SHAPES = {  # outlines around the middle of a thing, in pixels of the clip
    "circle": "m-11,0a11,11 0 1 0 22,0a11,11 0 1 0-22,0z",
    "square": "m-10-10h20v20h-20z",
    "triangle": "m0-11l11,20h-22z",
    "cross": "m-3-11h6v8h8v6h-8v8h-6v-8h-8v-6h8z",
    "star": "m0-12l3.4,7.4l8.6.4l-6.6,5.2l2.4,8l-7.8-4.6l-7.8,4.6l2.4-8l-6.6-5.2l8.6-.4z",
}


def kept_map(kept: Result, technique: str, stage: str, name: str) -> Markup:
    """The places of the frame from which a token is left, and below it how many are left of every time step."""
    rows, columns = kept.value(f"techniques/{technique}/grid")
    width, height = SIDE / columns, SIDE / rows
    at = escape(f"{kept.address}#techniques/{technique}/frame")
    cells = "".join(
        f"M{2 + x * width:.3g},{2 + y * height:.3g}h{0.9 * width:.2g}v{0.9 * height:.2g}h-{0.9 * width:.2g}z"
        for y, x in kept.value(f"techniques/{technique}/frame")
    )
    drawn = [
        f'<path class="l-edge" d="M1,1h{SIDE + 2:g}v{SIDE + 2:g}h-{SIDE + 2:g}z"/>',
        f'<path class="f-mark" data-result-id="{at}" d="{cells}"/>',
        _strip(kept.value(f"techniques/{technique}/steps"), rows * columns, kept.value("clip/step")),
    ]
    label = f"What {name} keeps of the frame, and how much of every time step"
    return picture(f"0 0 {SIDE + 4:g} {SIDE + STRIP + 10:g}", label, stage, drawn)


def _strip(counts: list[int], most: int, shown: int) -> str:
    """A bar per time step; a stroke below the one that the frame shows."""
    step, base = SIDE / len(counts), SIDE + STRIP + 5
    tall = [round(STRIP * min(1, count / most), 1) for count in counts]
    bars = "".join(f"M{2 + (i + 0.5) * step:.3g},{base:g}v-{high:g}" for i, high in enumerate(tall) if high)
    if len({*counts}) == 1 and tall[0]:  # as many of every step: one long bar is shorter to write
        return f'<path class="f-edge" d="M2,{base:g}v-{tall[0]:g}h{SIDE:g}v{tall[0]:g}z"/>' + _here(shown, step, base)
    return f'<path class="l-edge" stroke-width="{0.7 * step:.2g}" d="{bars}"/>' + _here(shown, step, base)


def _here(shown: int, step: float, base: float) -> str:
    return f'<path class="l-ink" stroke-width="2" d="M{2 + shown * step:.3g},{base + 2.5:g}h{step:.2g}"/>'


def frame(kept: Result) -> Markup:
    """The things that the frame shows, in outline."""
    side = kept.value("clip/side")
    things = "".join(
        f'<path class="l-ink" stroke-width="1.6" d="M{x},{y}{SHAPES[thing["shape"]]}"/>'
        for thing in kept.value("clip/things")
        for x, y in [thing["at"]]
    )
    at = escape(f"{kept.address}#clip/things")
    box = f'<path class="l-edge" stroke-width="1.5" d="M1,1h{side - 2}v{side - 2}h-{side - 2}z"/>'
    said = f'{box}<g data-result-id="{at}">{things}</g>'
    return picture(f"0 0 {side} {side}", "The frame in outline; the words below name what it shows", "encode", [said])


def things(kept: Result) -> str:
    """What the frame shows, in words."""
    return ", ".join(f"a {thing['color']} {thing['shape']}" for thing in kept.value("clip/things"))
