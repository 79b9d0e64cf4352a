"""Ratios of all techniques that leave fewer visual tokens: what choosing costs, the time that is saved, compiled loops.

They are measured on a random-weight model as deep as the shipped one and so wide that arithmetic decides its speed, and
a clip of 2,048 visual tokens. Every round runs the unmodified model, then each technique at about a quarter of the
visual tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi import discover, spec
from elvi.bench.kernels import recorded
from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import MODEL, Ratio
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.seams import Reduce, SelectFrames
from elvi.core.spread import farthest, similarity
from elvi.errors import ElviError
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.core.meter import Report
    from elvi.families.family import Family
    from elvi.media import Clip

    Round = dict[str, Report]  # by id; the unmodified model's under ""

BUDGET = 0.25  # of the visual tokens, as near as a technique's own sweep comes
WIDE = {"width": 768, "inner": 2112, "key_value_heads": 4, "blocks": 4}
SECONDS = 8  # of the clip; on the wide model 2,048 visual tokens
LEAST = 0.01  # of the TTFT: what is saved counts as no less


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """Selection and TTFT of every technique, then compiled loops on what those techniques gave them."""
    large, clip = common.wide(layers=family.num_layers, **WIDE), sample(HELD_OUT, "caption", SECONDS)
    large.name = MODEL  # what techniques have looked up for the shipped model, layer by layer, holds for this one
    plans = {"": Plan(), **dict(reducers(family, large, clip, tell))}
    for plan in plans.values():
        generate(large, clip.take(range(2)), plan=plan, max_new_tokens=1)
    with recorded() as kernels:
        rounds = [every(large, clip, plans)]
    rounds += [every(large, clip, plans) for _ in range(common.WIDE_REPEATS - 1)]
    for name in plans:
        if name:
            yield from ratios(name, large, rounds)
    yield divprune_kernel()
    for kernel in kernels.values():
        what = f"{kernel.module}.{kernel.loop}, times faster than its twin in torch (arguments {kernel.shapes})"
        speedups = kernel.speedups(common.REPEATS + 1)[1:]
        yield Ratio(f"{kernel.name}-kernel", what, spread(speedups), 5.0, None)


def reducers(family: Family, large: Family, clip: Clip, tell: Callable[[str], None]) -> Iterator[tuple[str, Plan]]:
    """(id, plan) of every technique that drops or merges frames or visual tokens, at about a quarter of them.

    How many a setting leaves is looked up on the shipped model, which is quick.
    """
    total = _left(generate(family, clip, plan=Plan(), max_new_tokens=1).report)
    for name in discover.list_techniques():
        technique = spec.parse(name)
        if not isinstance(technique, Reduce | SelectFrames) or not hasattr(technique, "sweep"):
            continue
        field, values = technique.sweep
        plans = [Plan(*spec.whole(dataclasses.replace(technique, **{field: value}))) for value in values]
        try:
            plans[0].check(large)
            left = [_left(generate(family, clip, plan=plan, max_new_tokens=1).report) for plan in plans]
        except ElviError as error:
            tell(f"left out: {error}")
        else:
            yield name, min(zip(left, plans), key=lambda pair: abs(pair[0] - BUDGET * total))[1]


def _left(report: Report) -> float:
    return report.visual_tokens["cache_mean"]


def every(family: Family, clip: Clip, plans: dict[str, Plan]) -> Round:
    return {name: generate(family, clip, plan=plan, max_new_tokens=1).report for name, plan in plans.items()}


def ratios(name: str, family: Family, rounds: list[Round]) -> Iterator[Ratio]:
    """What choosing takes of the time that fewer tokens save, and TTFT next to FLOPs, choosing included."""
    plain, ours = rounds[0][""], rounds[0][name]
    total = plain.visual_tokens["encoded"]
    where = (
        f"{', '.join(ours.plan)}, {total:,.0f} visual tokens of which {_left(ours) / total:.0%} are left, "
        f"{family.num_layers} layers of width {family.config.hidden_size}, {ours.attention} kernel"
    )
    costs = [_overhead(each[""], each[name]) for each in rounds]
    what = f"seconds of selection / seconds of TTFT that fewer tokens save, selection apart: {where}"
    yield Ratio(f"overhead-{name}", what, spread(costs), None, 0.1)
    times = [(each[name].ttft_s / each[""].ttft_s) / (each[name].flops / each[""].flops) for each in rounds]
    yield Ratio(f"ttft-{name}", f"TTFT ratio / FLOP ratio: {where}", spread(times), 0.85, 1.15)


def _overhead(plain: Report, ours: Report) -> float:
    choosing = ours.frames_s + ours.select_s - plain.frames_s - plain.select_s
    return choosing / max(plain.ttft_s - (ours.ttft_s - choosing), LEAST * plain.ttft_s)


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
