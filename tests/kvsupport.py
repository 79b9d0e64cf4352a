"""What the tests of cache techniques share: views made by hand, runs taken step by step, and masking as the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from support import clip_for, random_family
from torch import Tensor

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.rows import PAD, Dense
from elvi.core.run import Run
from elvi.core.store import LayerStore
from elvi.core.tokens import Tokens
from elvi.core.views import LayerView

QUESTION = "in frame 2 what color is at top left ?"
TOKENS = [11, 40, 23, 57, 8, 31, 62, 19, 45, 28, 36, 50]  # decoded whatever the model would say


@dataclass(frozen=True)
class Masked:
    """Nothing is dropped: every layer and head reads the prompt rows of `rows[layer][head]` and all generated ones."""

    rows: tuple
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def attend(self, view: LayerView) -> Tensor:
        reads = [torch.isin(row, kept) for row, kept in zip(view.row, self.rows[view.layer])]
        reads = torch.stack(reads) | (view.row >= len(view.layout))
        return reads.repeat_interleave(len(view.query) // len(view.keys), dim=0)[:, None].expand(
            *view.query.shape[:2], -1
        )


class Look:
    """Keeps everything, and remembers what it was shown."""

    needs = breaks = frozenset()
    lossless, rolling, window = True, False, 32

    def keep(self, views: list[LayerView]) -> list[None]:
        self.views = views
        return [None] * len(views)


def prefilled(*techniques, kind: str = "qwen2_5_vl", question: str = QUESTION, **clip) -> Run:
    """A run whose prompt has been read by a random-weight model."""
    run = Run(random_family(kind), Plan(*techniques))
    prefill(run, clip_for(kind, **clip), question)
    return run


def stepwise(run: Run, tokens: list[int] = TOKENS) -> Tensor:
    """Logits [n, V] after each token, decoded one by one."""
    rows = []
    for token in tokens:
        rows.append(verify(run, token, Draft())[0])
        run.commit([0])
    return torch.stack(rows)


def in_rounds(run: Run, depth: int = 4, tokens: list[int] = TOKENS) -> Tensor:
    """Logits [n, V] after each token, drafted as deep as the run lets them be; every other draft falls by half."""
    rows: list[Tensor] = []
    while len(rows) < len(tokens):
        first, *rest = tokens[len(rows) :]
        rest = rest[: run.depth(depth)]
        logits = verify(run, first, Draft.chain(rest))
        taken = 1 + (len(rest) if len(rows) % 2 else len(rest) // 2)
        run.commit(list(range(taken)))
        rows += logits[:taken]
    return torch.stack(rows)


def held(run: Run) -> list[list[Tensor]]:
    """Row numbers that every layer's heads hold."""
    return [[row[row != PAD].clone() for row in layer.row] for layer in run.store.layers]


def eager_attention(run, kind):
    """Attention weights [Hq, N, N] of every layer, as the model's own eager kernel computes them."""
    family = run.family
    family.model.set_attn_implementation({"text_config": "eager"})
    try:
        clip = family.steps(clip_for(kind))
        out = family.model(**family.inputs(clip, run.question), output_attentions=True)
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"})
    return [layer[0] for layer in out.attentions]


def view_of(keys: Tensor, query: Tensor, *, visual: Tensor | None = None, row: Tensor | None = None) -> LayerView:
    """A view of keys [H, K, d] (values: the same), queries [Hq, Q, d] at the end; visual bool [K]."""
    count = keys.shape[1] if row is None else int(row.max()) + 1
    device = keys.device
    visual = torch.zeros(count, dtype=torch.bool, device=device) if visual is None else visual
    cell = torch.where(visual[:, None], 0, -1).expand(count, 3)
    index = torch.arange(count, device=device)
    layout = Tokens(index[:, None].float(), index[None], index, cell, torch.ones_like(index), index)
    row = index.expand(keys.shape[:2]) if row is None else row
    query_row = index[count - query.shape[1] :]
    store = LayerStore()
    store.rows = Dense(keys, keys.clone(), row)
    return LayerView(0, store, query, query_row, keys.shape[-1] ** -0.5, layout)
