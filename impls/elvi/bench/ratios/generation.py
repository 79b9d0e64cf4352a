"""Ratios of the loop itself: prefill and time per token, next to the unmodified model's own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.generate import generate
from elvi.core.meter import synchronise
from elvi.errors import FitError
from elvi.families.load import SMOLLM2, load
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family
    from elvi.media import Clip

TOKENS = 64
STORY = "Write a long story about a lighthouse keeper and a storm."


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """On the shipped model, and on SmolLM2 where it is installed."""
    clip = sample(HELD_OUT, "caption", 8)
    yield token_time(family, clip, None)
    yield prefill_time(family, clip)
    try:
        language = load(SMOLLM2)
    except FitError as error:
        tell(f"left out: {error}")
    else:
        yield token_time(language, None, STORY)


def token_time(family: Family, clip: Clip | None, question: str | None) -> Ratio:
    """TPOT of `elvi.generate` with an empty plan / of the unmodified model's own `generate`, greedy, same tokens."""
    plain = common.unmodified(family)
    inputs = family.inputs(clip, question or (clip.question if clip else None) or "")
    ratios = []
    for _ in range(common.REPEATS + 1):
        clock = _Clock()
        with torch.inference_mode():
            plain.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, streamer=clock)
        ours = generate(family, clip, question, max_new_tokens=TOKENS, ignore_eos=True).report
        ratios.append((ours.tpot_s or 0.0) / clock.seconds_per_token)
    what = f"time per output token on {family.name}, elvi.generate / model.generate ({TOKENS} tokens)"
    return Ratio(f"tpot-{family.name}", what, spread(ratios[1:]), None, 1.0)


class _Clock:
    """A transformers streamer that notes when tokens arrive (the prompt is announced first)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...

    @property
    def seconds_per_token(self) -> float:
        first, last = self.times[1], self.times[-1]
        return (last - first) / (len(self.times) - 2)


def prefill_time(family: Family, clip: Clip) -> Ratio:
    """From frames to the first token: elvi / preparing the model's inputs and one `model.forward`."""
    plain, ratios = common.unmodified(family), []
    for _ in range(common.REPEATS + 1):
        synchronise(family.device)
        start = time.perf_counter()
        with torch.inference_mode():
            plain(**family.inputs(clip, clip.question or ""), logits_to_keep=1, use_cache=True)
        synchronise(family.device)
        forward = time.perf_counter() - start
        ratios.append(generate(family, clip, max_new_tokens=1).report.ttft_s / forward)
    what = f"time to first token on {family.name}, elvi.generate / model.forward, both from frames"
    return Ratio("prefill", what, spread(ratios[1:]), None, 1.05)
