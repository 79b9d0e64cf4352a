"""The world that the tiny models know: coloured shapes on a 3x3 board, filmed at two frames a second.

One *second* shows a set of things for two raw frames of 96x96 pixels (nine cells of 32 pixels), so a clip of n seconds
has 2n frames; "frame k" in a question means second k, counted from 1. Location and time are visible: red ramps with x
and green with y in the background, and a bar along the lower edge is 3 pixels longer every second, like a player's
progress bar (32 seconds fill it). A thing stays for the next second with probability 1/2; in a motion clip one thing
crosses the board at a steady pace and the others rest.

Everything is integer arithmetic on `random.Random` seeded by a string, so a clip is the same bytes on every machine.
`sample(n)` uses the key "n:0". Training draws the keys "n:stream" with n < HELD_OUT and other streams, so no sample of
any n, and nothing with n >= HELD_OUT, is ever trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from elvi.media import Clip

SIDE, CELL, RADIUS, PACE = 96, 32, 11, 2  # pixels, pixels, pixels, raw frames a second
HELD_OUT = 10_000
SHAPES = ("circle", "square", "triangle", "cross", "star")
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 200),
    "white": (235, 235, 235),
}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
KINDS = ("shape", "color", "count", "motion", "needle", "caption")
SECONDS = {"shape": (1, 8), "color": (1, 8), "count": (1, 8), "motion": (2, 8), "needle": (8, 32), "caption": (4, 8)}
THINGS = {"caption": (2, 3), "motion": (1, 2), "needle": (1, 3)}  # others: 1 to 4 a second
PLACES = [(row, column) for row in range(3) for column in range(3)]


@dataclass(frozen=True)
class Thing:
    """A shape on the board during one second; `at` holds its centre (x, y) in pixels in each of the two raw frames."""

    shape: str
    color: str
    at: tuple[tuple[int, int], tuple[int, int]]

    @property
    def row(self) -> int:
        return self.at[0][1] // CELL

    @property
    def column(self) -> int:
        return self.at[0][0] // CELL

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    def __str__(self) -> str:
        return f"a {self.color} {self.shape} at {self.place}"


@dataclass(frozen=True)
class Scene:
    """What is to be seen: the things of every second in reading order, and the direction of the mover if one moves."""

    seconds: tuple[tuple[Thing, ...], ...]
    mover: Thing | None = None
    direction: str | None = None

    def caption(self) -> str:
        """Every thing of every second, in reading order."""
        return " ".join(
            f"frame {k} : " + " , ".join(map(str, things)) + " ." for k, things in enumerate(self.seconds, start=1)
        )

    def turns(self, kind: str) -> list[tuple[str, str]]:
        """All (question, answer) pairs of one kind; the mover is asked about only by its motion."""
        numbered = list(enumerate(self.seconds, start=1))
        if kind == "caption":
            return [("describe the clip", self.caption())]
        if kind == "motion":
            mover, answer = self.mover, self.direction
            return [(f"which way does the {mover.color} {mover.shape} move ?", answer)] if mover and answer else []
        if kind == "needle":
            stars = [thing for _, things in numbered for thing in things if thing.shape == "star"]
            return [("what color is the star ?", star.color) for star in stars]
        if kind == "count":
            return [(f"in frame {k} how many objects are there ?", str(len(things))) for k, things in numbered]
        return [
            (f"in frame {k} what {kind} is at {thing.place} ?", getattr(thing, kind))
            for k, things in numbered
            for thing in things
            if not self.mover or (thing.shape, thing.color) != (self.mover.shape, self.mover.color)
        ]


def scene(rng: Random, kind: str, seconds: int) -> Scene:
    """A random scene of so many seconds that can be asked a question of this kind."""
    if kind == "motion":
        return _moving(rng, seconds)
    low, high = THINGS.get(kind, (1, 4))
    past: list[Thing] = []
    shown = []
    for _ in range(seconds):
        wanted = rng.randint(low, high)
        past = [_wiggle(rng, thing) for thing in past if rng.random() < 0.5][:wanted]
        free = [place for place in PLACES if place not in [(thing.row, thing.column) for thing in past]]
        past += [_new(rng, place) for place in rng.sample(free, wanted - len(past))]
        shown.append(past)
    if kind == "needle":
        second = rng.randrange(seconds)
        taken = [(thing.row, thing.column) for thing in shown[second]]
        star = replace(_new(rng, rng.choice([place for place in PLACES if place not in taken])), shape="star")
        shown[second] = [*shown[second], star]
    return Scene(tuple(_reading_order(things) for things in shown))


def _moving(rng: Random, seconds: int) -> Scene:
    """One thing crosses the board along a row or a column, one or two others rest off its lane."""
    direction = rng.choice(list(DIRECTIONS))
    across, down = DIRECTIONS[direction]
    lane, others = rng.randrange(3), rng.randint(*THINGS["motion"])
    mover = _new(rng, (lane, lane))
    start = (SIDE - CELL) * (across + down < 0) + CELL // 2
    course = [start + (across + down) * (SIDE - CELL) * f // (PACE * seconds - 1) for f in range(PACE * seconds)]
    track = [(p, mover.at[0][1]) if across else (mover.at[0][0], p) for p in course]
    free = [place for place in PLACES if place[0 if across else 1] != lane]
    resting: list[Thing] = []
    for place in rng.sample(free, others):
        thing = _new(rng, place)
        while (thing.shape, thing.color) in [(mover.shape, mover.color), *((t.shape, t.color) for t in resting)]:
            thing = _new(rng, place)
        resting.append(thing)
    shown = [
        _reading_order(
            [replace(mover, at=(track[2 * k], track[2 * k + 1])), *(_wiggle(rng, thing) for thing in resting)]
        )
        for k in range(seconds)
    ]
    return Scene(tuple(shown), mover, direction)


def _new(rng: Random, place: tuple[int, int]) -> Thing:
    """A thing other than a star, up to three pixels off the middle of its cell."""
    x, y = (CELL // 2 + CELL * cell + rng.randint(-3, 3) for cell in (place[1], place[0]))
    return _wiggle(rng, Thing(rng.choice(SHAPES[:4]), rng.choice(list(COLORS)), ((x, y), (x, y))))


def _wiggle(rng: Random, thing: Thing) -> Thing:
    """The same thing a little off in the second raw frame, as a camera would have it."""
    x, y = thing.at[0]
    return replace(thing, at=((x, y), (x + rng.randint(-1, 1), y + rng.randint(-1, 1))))


def _reading_order(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: (thing.row, thing.column)))


def render(rng: Random, things: tuple[Thing, ...], second: int) -> np.ndarray:
    """The two raw frames of one second (counted from 0): uint8 [2, 96, 96, 3]."""
    noise = np.frombuffer(rng.randbytes(PACE * SIDE * SIDE * 3), np.uint8).reshape(PACE, SIDE, SIDE, 3) & 15
    frames = noise + _background()
    for thing in things:
        for frame, (x, y) in zip(frames, thing.at, strict=True):
            window = frame[y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1]
            grain = noise[0, : 2 * RADIUS + 1, : 2 * RADIUS + 1, :1]
            np.copyto(window, np.array(COLORS[thing.color], np.uint8) + grain, where=_mask(thing.shape)[..., None])
    frames[:, -3:, : 3 * (second + 1)] = 200
    return frames


@cache
def _background() -> np.ndarray:
    ramp = (np.arange(SIDE) * 60 // SIDE).astype(np.uint8)
    board = np.zeros((SIDE, SIDE, 3), np.uint8)
    board[..., 0], board[..., 1] = ramp[None, :], ramp[:, None]
    return board


@cache
def _mask(shape: str) -> np.ndarray:
    """Which of the 23x23 pixels around the centre belong to the shape."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    up, down = ((s * y <= 5) & (3 * abs(x) <= 2 * (s * y + RADIUS)) for s in (1, -1))
    return {
        "circle": x * x + y * y <= RADIUS * RADIUS,
        "square": (abs(x) <= 9) & (abs(y) <= 9),
        "triangle": (y <= 9) & (20 * abs(x) <= 11 * (y + RADIUS)),
        "cross": (abs(x) <= 3) | (abs(y) <= 3),
        "star": up | down,
    }[shape]


def draw(n: int, stream: int | str, kind: str, seconds: int | None = None) -> tuple[Scene, Random]:
    """The scene of key "n:stream" and the generator to render it with; `seconds` is drawn when not given."""
    rng = Random(f"{n}:{stream}")
    drawn = rng.randint(*SECONDS[kind])
    return scene(rng, kind, seconds or drawn), rng


def film(shown: Scene, rng: Random) -> np.ndarray:
    """All raw frames of a scene: uint8 [2 x seconds, 96, 96, 3]."""
    return np.concatenate([render(rng, things, second) for second, things in enumerate(shown.seconds)])


def sample(n: int, kind: str | None = None, seconds: int | None = None) -> Clip:
    """Clip number n with a question and its answer; kinds take turns (n modulo 6) unless one is asked for.

    seconds: length of the clip (1 to 32; motion needs 2); None draws a usual one for the kind.
    Raises ElviError for a kind that is not in KINDS or a length outside the range.
    """
    from elvi.media import Clip

    kind = _checked(kind or KINDS[n % len(KINDS)], seconds)
    shown, rng = draw(n, 0, kind, seconds)
    question, answer = rng.choice(shown.turns(kind))
    frames = film(shown, rng)
    return Clip(frames, np.arange(len(frames)) / PACE, question, answer, kind)


def sample_scene(n: int, kind: str | None = None, seconds: int | None = None) -> Scene:
    """What `sample` with the same arguments shows."""
    return draw(n, 0, _checked(kind or KINDS[n % len(KINDS)], seconds), seconds)[0]


def _checked(kind: str, seconds: int | None) -> str:
    from elvi.errors import ElviError

    if kind not in KINDS:
        raise ElviError(f"There is no sample of kind {kind!r}: take one of {', '.join(KINDS)}.")
    low = 2 if kind == "motion" else 1
    if seconds is not None and not low <= seconds <= SIDE // 3:
        raise ElviError(f"A {kind} sample cannot last {seconds} seconds: ask for {low} to {SIDE // 3}.")
    return kind
