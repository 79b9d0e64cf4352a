"""Quality on the shipped models, next to random selection of as much at the same place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import elvi
from elvi.bench.floor import twin
from elvi.core.facts import Fact
from elvi.families.family import Family
from elvi.media import Clip, uniform

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


@dataclass(frozen=True)
class Evenly:
    """As many frames as a technique would choose, spread evenly over the clip."""

    of: Any
    needs: frozenset[Fact] = frozenset()
    breaks: frozenset[Fact] = frozenset()
    lossless: bool = False

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        return uniform(len(clip), len(self.of.select_frames(clip, question)))


def chosen_and_spread(name: str, technique: Any, **options: int) -> tuple[int, int]:
    """Needles found in the frames that a technique chooses, and in as many that are spread evenly."""
    return needles_found(name, technique, **options), needles_found(name, Evenly(technique), **options)
