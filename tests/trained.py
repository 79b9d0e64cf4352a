"""Quality on the shipped models, next to random selection of as much at the same place."""

from __future__ import annotations

from functools import cache
from typing import Any

import elvi
from elvi.bench.floor import twin
from elvi.families.family import Family

NEEDLES = range(10_000, 10_020)  # held out from training


@cache
def trained(name: str) -> Family:
    return elvi.load(name, device="cpu")


def needles_found(name: str, *techniques: Any, seconds: int = 8) -> int:
    """How many questions about the one frame that shows a star are answered as expected, of 20."""
    clips = (elvi.sample(number, kind="needle", seconds=seconds) for number in NEEDLES)
    plan = elvi.Plan(*techniques)
    return sum(elvi.generate(trained(name), clip, plan=plan, max_new_tokens=3).text == clip.expected for clip in clips)


def chosen_and_random(name: str, technique: Any, **options: int) -> tuple[int, int]:
    """Needles found by a technique, and by random selection of as many frames or tokens."""
    return needles_found(name, technique, **options), needles_found(name, twin(technique, 0), **options)
