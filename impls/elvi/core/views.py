"""What techniques are shown: the tokens' surroundings, the vision tower, and one layer's cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from elvi.errors import FitError

if TYPE_CHECKING:
    from elvi.core.store import LayerStore
    from elvi.core.tokens import Tokens
    from elvi.families.family import Family
    from elvi.media import Clip

Phase = Literal["piece", "prompt", "answer"]  # of a stream, the whole prompt, or while tokens are generated


@dataclass(frozen=True)
class Seen:
    """What a Reduce may look at besides the tokens themselves.

    question: its text, or None; question_index: ascending index of the question's tokens in the row (empty before the
    prompt is assembled); clip: the frames that the model saw (None for text alone, and in a stream at Layer(k));
    tower: attention inside the vision tower, indexed by `tokens.row` (at Encoded, and at Layer(0) of a prompt read in
    one piece); query [Hq, N, d], key [H, N, d]: post-RoPE projections of the layer before (at Layer(k) with k > 0
    only). At Tower: block, its number, of so many `blocks`, and its own key [heads, N, d]. At Layer(k): layer, k,
    family, and entered: how many visual tokens the first layer read (with k > 0, of a prompt read in one piece).
    memory: what the technique noted in earlier blocks or layers, and of a stream in earlier pieces.
    """

    question: str | None
    question_index: Tensor
    tower: TowerView | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    scaling: float = 1.0
    clip: Clip | None = None
    layer: int = 0
    family: Family | None = None
    entered: int = 0
    block: int | None = None
    blocks: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    def attention(self, rows: Tensor) -> Tensor:
        """Causal attention weights [Hq, R, N] of the rows asked for, in the layer before, recomputed from q and k."""
        assert self.query is not None, "attention exists from layer 1 on"
        assert self.key is not None
        return attention_rows(self.query[:, rows], self.key, rows, self.scaling)

    def attention_ahead(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """What `attention` would be in the layer that is about to read these tokens: [Hq, R, N]."""
        assert self.family is not None, "layers are known from Layer(0) on"
        hidden = self.family.text.layers[self.layer].input_layernorm(tokens.hidden)
        query = self.family.queries(self.layer, hidden[rows], tokens.position[:, rows])
        key = self.family.keys(self.layer, hidden, tokens.position)
        return attention_rows(query, key, rows, self.family.scaling)


@dataclass(frozen=True)
class TowerView:
    """Attention inside the vision tower for the layers a plan asked for, one row of tokens over all frames.

    A layer is a number (-1: the last) or a share of the depth (0.25: a quarter of the way), as it was asked for.
    """

    has_cls: bool
    cls: dict[float, Tensor] = field(default_factory=dict)
    joint: dict[float, Tensor] = field(default_factory=dict)
    mean: dict[float, Tensor] = field(default_factory=dict)
    key: dict[float, Tensor] = field(default_factory=dict)

    def spread(self, place: Tensor, total: int) -> TowerView:
        """The same with `total` rows, of which those at `place` [N] are these and the others zero."""

        def wide(values: Tensor) -> Tensor:
            return values.new_zeros(total, *values.shape[1:]).index_copy_(0, place, values)

        groups = (self.cls, self.joint, self.mean, self.key)
        return TowerView(self.has_cls, *({layer: wide(values) for layer, values in group.items()} for group in groups))

    def cls_attention(self, layer: float) -> Tensor:
        """[N]: what the class token pays each patch, mean over heads."""
        return self._of(self.cls, layer)

    def joint_cls_attention(self, layer: float) -> Tensor:
        """[N]: what the class token would pay if all heads were one as wide as the tower."""
        return self._of(self.joint, layer)

    def received(self, layer: float) -> Tensor:
        """[N]: mean attention each token receives from its frame (or window), mean over heads."""
        return self._of(self.mean, layer)

    def keys(self, layer: float) -> Tensor:
        """[N, d]: keys before scaling, mean over heads."""
        return self.head_keys(layer).mean(1)

    def head_keys(self, layer: float) -> Tensor:
        """[N, heads, d]: keys before scaling."""
        return self._of(self.key, layer)

    def _of(self, statistic: dict[float, Tensor], layer: float) -> Tensor:
        if layer not in statistic:
            raise FitError(
                f"Attention in layer {layer:g} of the vision tower was asked for, which this model does not offer for "
                "this input (tiled images have none): use another technique or model."
            )
        return statistic[layer]


@dataclass(frozen=True)
class LayerView:
    """One layer's cache as Keep, Attend, Fetch and Codec see it.

    query [Hq, Q, d]: post-RoPE queries (the rows in flight for Attend and Fetch, the last `window` prompt rows for
    Keep), query_row [Q] their row numbers; tree bool [Q, T]: which of the last T slots the rows in flight may read
    (None: all before them). phase: "piece" (of a stream), "prompt" (the whole prompt) or "answer". inputs [N, D]: what
    entered the layer's attention, and entering, the prompt's tokens as they entered the layer, if the technique asked
    for it. memory: what this technique remembers of this layer for the length of the run; shared: what it remembers
    across layers, the same as Seen.memory.
    """

    layer: int
    store: LayerStore
    query: Tensor
    query_row: Tensor
    scaling: float
    layout: Tokens
    family: Family | None = None
    phase: Phase = "prompt"
    tree: Tensor | None = None
    inputs: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    entering: Tokens | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        return self.store.read()

    @property
    def keys(self) -> Tensor:
        """[H, K, d], post-RoPE; read when asked for, copied and padded if heads hold different numbers of rows."""
        return self._read[0]

    @property
    def values(self) -> Tensor:
        """[H, K, d]"""
        return self._read[1]

    @cached_property
    def row(self) -> Tensor:
        """[H, K] row number of each slot, PAD where there is none."""
        return self.store.row

    @property
    def visual(self) -> Tensor:
        """bool [H, K]: slots that hold visual tokens (generated rows are text)."""
        inside = (self.row >= 0) & (self.row < len(self.layout))
        return inside & self.layout.visual[self.row.clamp(0, len(self.layout) - 1)]

    @cached_property
    def readable(self) -> Tensor:
        """bool [Q, K]: slots that each row of the view may read: all before it, of drafted ones its own past alone."""
        count, length = self.query.shape[1], self.store.length
        reads = torch.ones(count, length, dtype=torch.bool, device=self.query.device).tril(length - count)
        if self.tree is not None:
            reads[:, length - self.tree.shape[1] :] = self.tree
        return reads

    @property
    def parents(self) -> list[int]:
        """Which row of the view stands right before each of them, -1 where that is a row outside of the view."""
        count = self.query.shape[1]
        past = self.readable[:, self.store.length - count :].tril(-1)
        place = torch.arange(1, count + 1, device=past.device)
        return ((past * place).amax(1) - 1).tolist()

    def attention(self) -> Tensor:
        """Causal attention weights [Hq, Q, K] of the view's queries over all slots, in float32."""
        groups = self.query.shape[0] // self.keys.shape[0]
        keys = self.keys.repeat_interleave(groups, dim=0).float()
        logits = self.query.float() @ keys.mT * self.scaling
        row = self.row.repeat_interleave(groups, dim=0)[:, None, :]
        return logits.masked_fill((row > self.query_row[None, :, None]) | (row < 0), float("-inf")).softmax(-1)

    def positions(self, row: Tensor) -> Tensor:
        """Rotary positions [P, ...] of rows [...], generated ones too."""
        total = len(self.layout)
        given = self.layout.position[:, row.clamp(0, total - 1)]
        return torch.where(row < total, given, self.layout.position[0, -1] + 1 + row - total)


@dataclass(frozen=True)
class Fetched:
    """What the rows in flight read of the second tier: per head slots [Q, m], -1 for none; see Fetch in the seams."""

    slots: list[Tensor]
    looked: int = 0


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
