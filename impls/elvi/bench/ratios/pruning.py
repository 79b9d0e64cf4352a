"""Ratios of pruning before and inside the language model: the time that it saves, and the time that choosing takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.spread import farthest, similarity
from elvi.prefill.divprune import DivPrune
from elvi.prefill.fastv import FastV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family

VISUAL = 2048  # visual tokens


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """The compiled choice of DivPrune, then pruning on a wide model."""
    yield divprune_kernel()
    large = common.wide(layers=14, width=1024, inner=2816, key_value_heads=4)
    yield pruning(large, FastV(layer=2, keep_ratio=0.5))
    yield pruning(large, DivPrune(keep_ratio=0.25))


def pruning(family: Family, technique: Any) -> Ratio:
    """TTFT ratio, selection included / the FLOP ratio that the meter predicts."""
    clip = common.noise(VISUAL)
    plans = Plan(), Plan(technique)
    reports = [
        [generate(family, clip, plan=plan, max_new_tokens=1).report for plan in plans]
        for _ in range(common.WIDE_REPEATS + 1)
    ]
    assert reports[0][0].visual_tokens["encoded"] == VISUAL, "the clip was made for so many"
    values = [(ours.ttft_s / plain.ttft_s) / (ours.flops / plain.flops) for plain, ours in reports[1:]]
    what = f"TTFT ratio / FLOP ratio of {technique!r} at {VISUAL:,} visual tokens, width {family.config.hidden_size}"
    return Ratio(f"ttft-{type(technique).__name__.lower()}", what, spread(values), 0.85, 1.15)


def divprune_kernel() -> Ratio:
    """DivPrune's compiled choice against the plain loop, both from the same similarities."""
    torch.manual_seed(0)
    cosine = similarity(torch.randn(2048, 1024))
    speedups = []
    for _ in range(common.REPEATS + 1):
        plain, expected = common.clocked(lambda: plain_loop(cosine, 256))
        ours, chosen = common.clocked(lambda: farthest(cosine, 256))
        assert chosen.tolist() == expected.tolist()
        speedups.append(plain / ours)
    what = "DivPrune's kernel, times faster than the plain torch loop (2,048 tokens, 256 kept, width 1,024)"
    return Ratio("divprune-kernel", what, spread(speedups[1:]), 10.0, None)


def plain_loop(cosine: Tensor, count: int) -> Tensor:
    """The choice as it is usually written: in every step the rows of all chosen tokens are looked at again."""
    chosen = cosine.clone().fill_diagonal_(float("-inf")).amax(0).argmin()[None]
    while len(chosen) < count:
        nearest = cosine[chosen].amax(0)
        nearest[chosen] = float("inf")
        chosen = torch.cat([chosen, nearest.argmin()[None]])
    return chosen
