"""What the tests of streaming techniques share: streams of noise, step by step."""

from __future__ import annotations

import numpy as np
from support import noise_clip, random_family

from elvi.core.plan import Plan
from elvi.core.stream import Stream


def watched(technique, seconds: int, kind: str = "qwen2_5_vl", each=lambda stream: None, seed: int = 0) -> Stream:
    """A stream that has seen so many seconds of noise; `each` is called after every time step."""
    family = random_family(kind)
    stream = Stream(family, Plan(technique) if technique else Plan())
    clip = family.steps(noise_clip(seconds, seed=seed))
    for step in range(len(family.one_per_step(clip))):
        stream.see(family.take_steps(clip, np.array([step])))
        each(stream)
    return stream


def layers(stream: Stream):
    return stream.pieces.run.store.layers


def views(stream: Stream, technique) -> list:
    """What the technique is shown of every layer between two pieces."""
    run = stream.pieces.run
    run.phase = "piece"
    return run._committed_views(technique)
