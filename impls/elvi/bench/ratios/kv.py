"""Ratios of what leaves the key-value cache: its bytes, the time per token, and the time that choosing takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elvi.bench.measure import spread
from elvi.bench.speed import Ratio
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.tokens import budget
from elvi.decode.snapkv import SnapKV
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    yield snapkv_bytes(family)


def snapkv_bytes(family: Family) -> Ratio:
    """Allocated cache bytes after SnapKV / rows x layers x heads x head size x 2 x bytes per number: exactly 1."""
    clip, ratios = sample(HELD_OUT, "caption", 8), []
    for keep_ratio in (0.1, 0.25, 0.5, 0.75):
        report = generate(family, clip, plan=Plan(SnapKV(keep_ratio=keep_ratio)), max_new_tokens=1).report
        rows = budget(keep_ratio, report.prompt_tokens)
        numbers = rows * family.num_layers * family.config.num_key_value_heads * family.head_dim * 2
        ratios.append(report.kv_bytes / (numbers * family.dtype.itemsize))
    return Ratio("snapkv-bytes", "bytes of the cache after SnapKV / as the budget says", spread(ratios), 1.0, 1.0)
