"""What techniques are shown: the tokens' surroundings, the vision tower, and one layer's cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.errors import FitError

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens


@dataclass(frozen=True)
class Seen:
    """What a Reduce may look at besides the tokens themselves.

    question: its text, or None; question_index: ascending index of the question's tokens in the row (empty before the
    prompt is assembled); tower: attention inside the vision tower (at Encoded only); query [Hq, N, d], key [H, N, d]:
    post-RoPE projections of the layer before (at Layer(k) with k > 0 only).
    """

    question: str | None
    question_index: Tensor
    tower: TowerView | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    scaling: float = 1.0

    def attention(self, rows: Tensor) -> Tensor:
        """Causal attention weights [Hq, R, N] of the rows asked for, in the layer before, recomputed from q and k."""
        assert self.query is not None, "attention exists from layer 1 on"
        assert self.key is not None
        return attention_rows(self.query[:, rows], self.key, rows, self.scaling)


@dataclass(frozen=True)
class TowerView:
    """Attention inside the vision tower for the layers a plan asked for, one row of tokens over all frames.

    cls_attention(l) [N]: what the class token pays each patch, summed over heads; received(l) [N]: mean attention each
    token receives from its frame (or window), summed over heads; keys(l) [N, d]: head-mean keys before scaling.
    """

    has_cls: bool
    cls: dict[int, Tensor] = field(default_factory=dict)
    mean: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)

    def cls_attention(self, layer: int) -> Tensor:
        return self._of(self.cls, layer)

    def received(self, layer: int) -> Tensor:
        return self._of(self.mean, layer)

    def keys(self, layer: int) -> Tensor:
        return self._of(self.key, layer)

    def _of(self, statistic: dict[int, Tensor], layer: int) -> Tensor:
        if layer not in statistic:
            raise FitError(
                f"Attention in layer {layer} of the vision tower was asked for, which this model does not offer for "
                "this input (tiled images have none): use another technique or model."
            )
        return statistic[layer]


@dataclass(frozen=True)
class LayerView:
    """One layer's cache as Keep, Attend and Codec see it.

    keys, values [H, K, d]; row [H, K] row number of each slot; query [Hq, Q, d] post-RoPE queries (the rows in flight
    for Attend, the last `window` prompt rows for Keep) and query_row [Q] their row numbers.
    """

    layer: int
    keys: Tensor
    values: Tensor
    row: Tensor
    query: Tensor
    query_row: Tensor
    scaling: float
    layout: Tokens

    @property
    def visual(self) -> Tensor:
        """bool [H, K]: slots that hold visual tokens (generated rows are text)."""
        inside = self.row < len(self.layout)
        return inside & self.layout.visual[self.row.clamp(max=len(self.layout) - 1)]

    def attention(self) -> Tensor:
        """Causal attention weights [Hq, Q, K] of the view's queries over all slots, in float32."""
        groups = self.query.shape[0] // self.keys.shape[0]
        keys = self.keys.repeat_interleave(groups, dim=0).float()
        logits = self.query.float() @ keys.mT * self.scaling
        later = self.row.repeat_interleave(groups, dim=0)[:, None, :] > self.query_row[None, :, None]
        return logits.masked_fill(later, float("-inf")).softmax(-1)


def attention_rows(query: Tensor, key: Tensor, rows: Tensor, scaling: float) -> Tensor:
    """Causal attention weights [Hq, R, N]: query [Hq, R, d] standing at index `rows` [R] over key [H, N, d]."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0).float()
    logits = query.float() @ key.mT * scaling
    later = torch.arange(key.shape[1], device=key.device)[None] > rows[:, None]
    return logits.masked_fill(later, float("-inf")).softmax(-1)


@dataclass(frozen=True)
class Skip:
    """Sub-layers, by decoder layer, that a model passes by while it drafts for itself."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
