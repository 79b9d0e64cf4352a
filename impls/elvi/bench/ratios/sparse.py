"""Ratio of block-sparse attention: the time that skipped blocks save, with the time that choosing them takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.blocks import attend_blocks
from elvi.core.store import LayerStore
from elvi.core.tokens import Tokens
from elvi.core.views import LayerView
from elvi.prefill.spargeattn import SpargeAttn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family

TOKENS, HEADS, KEY_VALUE_HEADS, WIDTH = 8192, 8, 2, 64
SHARE = 0.22  # with the diagonal, which is always read, a quarter of the blocks


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """Dense sdpa against what a technique reads of random queries and keys."""
    torch.manual_seed(0)
    query = torch.randn(HEADS, TOKENS, WIDTH)
    keys, values = torch.randn(2, KEY_VALUE_HEADS, TOKENS, WIDTH)
    rows, scaling = torch.arange(TOKENS), WIDTH**-0.5
    layout = Tokens(query[0, :, :0], rows[None], rows, torch.full((TOKENS, 3), -1), torch.ones(TOKENS), rows)
    store = LayerStore()
    store.write(keys, values, rows)
    technique = SpargeAttn(top_k=SHARE, similarity=-1.0)

    def dense() -> torch.Tensor:
        return scaled_dot_product_attention(
            query[None], keys[None], values[None], is_causal=True, scale=scaling, enable_gqa=True
        )

    def sparse() -> float:
        blocks = technique.attend(LayerView(0, store, query, rows, scaling, layout))
        assert blocks is not None, "the prompt is long enough"
        attend_blocks(query, keys, values, blocks, scaling)
        return blocks.density

    speedups = []
    for _ in range(common.REPEATS + 1):
        plain, _ = common.clocked(dense)
        ours, density = common.clocked(sparse)
        speedups.append(plain / ours)
    what = (
        f"dense sdpa / block-sparse attention with {density:.0%} of the blocks, chosen by {technique!r} in this time, "
        f"{TOKENS:,} tokens, {HEADS} heads of {WIDTH}"
    )
    yield Ratio("block-sparse", what, spread(speedups[1:]), 2.0, None)
