"""PACT: pruning and clustering-based token reduction for faster visual language models.

Dhouib et al., CVPR 2025, arXiv:2504.08966. Entering one early layer l, without the question or any attention map:

1. EUTI. With q, k the queries and keys of layer l before rotation, over all rows up to the last visual one: a_h =
   softmax_j(mean q_h . k_h,j / sqrt d). The p n visual tokens with the highest (mean_h a_h,j) ||x_j|| go on.
2. DBDPC. Of their rotated keys, all heads side by side, d_ij = 1 - cos and rho_i = sum_j exp(-(d_ij / d_c)^2), d_c = 2.
   By falling rho, a token becomes a centre if it is farther than `cutoff` from every centre so far. All others join the
   nearest, and so do pruned tokens within `recover` times the cutoff of one. A centre becomes the mean of its cluster.

From layer l on, keys of clusters of w tokens count w times: log w is added to their logits (proportional attention).

Where we differ:
- Centres are found one after another in a compiled kernel; the released code finds the same ones in rounds.
- p n is rounded half up and at least 1, below which the released code wraps around. A cutoff of 0 merges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen

REACH = 2.0  # d_c


@dataclass(frozen=True)
class PACT:
    """Drop what the mean query passes by, merge keys that are close, and let merged tokens weigh what they hold.

    layer: l; keep_ratio: p, share of the visual tokens that is clustered; cutoff: largest distance in a cluster (paper:
    0.21, 0.1 for Qwen2-VL); recover: how much farther pruned tokens may be. Raises BudgetError for values out of range.
    """

    layer: int = 4
    keep_ratio: float = 0.55
    cutoff: float = 0.21
    recover: float = 1.5

    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = True
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "cutoff": 0.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.55, 0.8))

    def __post_init__(self) -> None:
        check_range(self, "layer", 1, float("inf"))
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "cutoff", 0.0, 2.0)
        check_range(self, "recover", 0.0, float("inf"))

    @property
    def at(self) -> Layer:
        return Layer(self.layer)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        if not len(visual):
            return tokens
        kept = top(importance(tokens, seen, visual), max(1, budget(self.keep_ratio, len(visual))))
        distance = distances(tokens, seen, visual)
        centre = kept[centres(distance[kept][:, kept], self.cutoff).sort().values] if self.cutoff else kept
        far, nearest = distance[:, centre].min(1)
        near = far <= self.recover * self.cutoff
        near[kept] = True  # within the cutoff of a centre, or else they would be one
        owner = torch.arange(len(tokens), device=visual.device)
        owner[visual] = torch.where(near, visual[centre[nearest]], -1)
        owner[visual[centre]] = visual[centre]
        owner[-1] = len(tokens) - 1  # the row whose logits are wanted, should the prompt end in a picture
        return tokens.fold(owner)

    def attend(self, view: LayerView) -> Tensor | None:
        if view.layer < self.layer:
            return None
        given = (view.row >= 0) & (view.row < len(view.layout))  # what is generated counts once
        mass = torch.where(given, view.layout.mass[view.row.clamp(0, len(view.layout) - 1)], 1.0)
        if bool((mass == 1).all()):
            return None
        bias = mass.log().to(view.query.dtype).repeat_interleave(len(view.query) // len(mass), 0)  # [Hq, K]
        return bias[:, None].expand(-1, view.query.shape[1], -1)


def importance(tokens: Tokens, seen: Seen, visual: Tensor) -> Tensor:
    """What the mean query pays the tokens at visual [n], times the length of their hidden states: float32 [n]."""
    before = tokens.keep(torch.arange(int(visual[-1]) + 1, device=visual.device))
    query, key = (part.float() for part in projected(before, seen, torch.zeros_like(before.position)))
    query = query.mean(1).view(len(key), -1, key.shape[2])
    share = (query @ key.mT * seen.scaling).softmax(-1).mean((0, 1))
    return share[visual] * tokens.hidden[visual].float().norm(dim=-1)


def distances(tokens: Tokens, seen: Seen, visual: Tensor) -> Tensor:
    """Cosine distance float32 [n, n] of the rotated keys, all heads side by side, of the tokens at visual [n]."""
    key = projected(tokens, seen, tokens.position)[1][:, visual]
    unit = normalize(key.float().transpose(0, 1).flatten(1), dim=-1)
    return (1 - unit @ unit.mT).clamp(min=0).fill_diagonal_(0)


def projected(tokens: Tokens, seen: Seen, position: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [Hq, N, d] and keys [H, N, d] that the layer to come makes of the tokens at these positions."""
    assert seen.family is not None, "layers are known from Layer(0) on"
    hidden = seen.family.text.layers[seen.layer].input_layernorm(tokens.hidden)
    return seen.family.queries(seen.layer, hidden, position), seen.family.keys(seen.layer, hidden, position)


def centres(distance: Tensor, cutoff: float) -> Tensor:
    """Index of the centres among tokens at distances [n, n], in the order in which they were found."""
    order = (-(distance / REACH).square()).exp().sum(-1).sort(descending=True, stable=True).indices
    if distance.device.type == "cpu":
        return torch.from_numpy(scan(distance.numpy(), order.numpy(), np.float32(cutoff)))
    return scan_reference(distance, order, cutoff)


@numba.njit(cache=True)
def scan(distance: np.ndarray, order: np.ndarray, cutoff: np.float32) -> np.ndarray:
    """In this order, every token that is farther than the cutoff from all chosen so far: int64 [m]."""
    chosen, taken = [], np.zeros(len(order), np.bool_)
    for token in order:
        if not taken[token]:
            chosen.append(token)
            taken |= distance[token] <= cutoff
    return np.array(chosen)


def scan_reference(distance: Tensor, order: Tensor, cutoff: float) -> Tensor:
    """The same choice as `scan`, in torch."""
    taken, chosen = torch.zeros_like(order, dtype=torch.bool), []
    for token in order.tolist():
        if not taken[token]:
            chosen.append(token)
            taken |= distance[token] <= cutoff
    return torch.tensor(chosen, device=order.device)
