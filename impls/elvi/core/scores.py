"""What the rows of a layer's cache receive from queries: the scores that methods of choosing rows start from.

No attention matrix of the whole prompt is ever held: rows are recomputed from queries and keys, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.core.tokens import top
from elvi.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView
    from elvi.families.family import Family

SHORTEST = 8  # rows of an observation window, however short the question is
WHOLE_PROMPT = 1 << 40  # the window of a technique that needs the queries of all rows
CHUNK = 256  # query rows looked at together


def observers(query_row: Tensor, layout: Tokens, window: int, shortest: int = SHORTEST) -> int:
    """How many of the last rows observe: the text after the last picture, at most `window` and at least `shortest`.

    Questions about pictures are often shorter than windows made for long texts, and visual tokens are judged by text.
    """
    visual = layout.visual.nonzero()[:, 0]
    text = len(layout) - int(visual[-1]) - 1 if len(visual) else len(layout)
    return min(window, max(text, shortest), len(query_row))


def window_score(view: LayerView, rows: int) -> Tensor:
    """Mean attention [H, K] that every slot receives from the last `rows` queries and the query heads of its group."""
    return grouped(attention(view, slice(-rows, None)).mean(1), view.keys.shape[0])


def observation(view: LayerView, window: int) -> tuple[Tensor, Tensor]:
    """The score [H, K] of the window of observers, and the slots that hold them, bool [H, K]."""
    rows = observers(view.query_row, view.layout, window)
    return window_score(view, rows), view.row >= view.query_row[len(view.query_row) - rows]


def pooled(score: Tensor, kernel: int) -> Tensor:
    """Moving average [H, K] of odd width; beyond the ends there is zero, which counts."""
    return torch.nn.functional.avg_pool1d(score[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]


def tiered(tier: Tensor, score: Tensor) -> Tensor:
    """Ranks [H, K], the best one highest: by tier first, by score inside a tier, ties to the lower slot.

    Whole numbers: no penalty has to be large enough to part the tiers and yet leave the scores of one tier apart.
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, tier.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices)
    places = torch.arange(score.shape[-1], 0, -1, device=score.device)
    return torch.zeros_like(order).scatter_(-1, order, places.expand_as(order))


def observed(view: LayerView, window: int, kernel: int) -> Tensor:
    """Score [H, P] of the slots before the observers' own: what these attend to, smoothed over neighbours.

    The observers are the last K - P slots; what they receive themselves is not smoothed into the others.
    """
    rows = observers(view.query_row, view.layout, window)
    earlier = window_score(view, rows)[:, :-rows]
    return pooled(earlier, kernel) if earlier.shape[1] else earlier


def best_and_last(score: Tensor, count: int, total: int) -> Tensor:
    """Ascending slots [H, count] out of `total`: the last ones, which are not scored, and the best of score [H, P].

    Where `count` is too small for the last ones, the latest of them.
    """
    heads, earlier = score.shape
    best = top(score, max(0, count - (total - earlier)))
    last = torch.arange(total - count + best.shape[1], total, device=score.device)
    return torch.cat([best, last.expand(heads, -1)], dim=1)


def column_sums(view: LayerView) -> Tensor:
    """Attention [H, K] that every slot receives from all queries of the view, mean over its group of query heads."""
    total = sum((weights.sum(1) for weights in chunks(view)), start=torch.zeros((), device=view.query.device))
    return grouped(total, view.keys.shape[0])


def paid(view: LayerView, place: int, reads: Tensor) -> Tensor:
    """Attention [H, K] that query `place` of the view pays slots `reads` (bool [H, K]), mean over its group."""
    keys = view.keys.float()
    query = view.query[:, place].float().view(keys.shape[0], -1, keys.shape[2])  # [H, G, d]
    logits = query @ keys.mT * view.scaling
    return logits.masked_fill(~reads[:, None], float("-inf")).softmax(-1).mean(1)


def row_entropy(view: LayerView) -> Tensor:
    """Entropy [Hq, Q] in nats of what every query of the view attends to."""
    return torch.cat([-torch.xlogy(weights, weights).sum(-1) for weights in chunks(view)], dim=1)


def chunks(view: LayerView) -> Iterator[Tensor]:
    """Attention weights [Hq, c, K] of c queries of the view after c others."""
    for start in range(0, view.query.shape[1], CHUNK):
        yield attention(view, slice(start, start + CHUNK))


def attention(view: LayerView, rows: slice) -> Tensor:
    """Attention weights [Hq, R, K] of some queries of the view."""
    return replace(view, query=view.query[:, rows], query_row=view.query_row[rows]).attention()


def chunk_keys(keys: Tensor, chunk: int, kind: str) -> tuple[Tensor, ...]:
    """What stands for every chunk of so many rows of keys [n, d]: [n / chunk, d], one or two of them.

    kind: "mean" of the keys, or "envelope": the lowest and the highest value of each channel.
    """
    parts = keys.unflatten(0, (len(keys) // chunk, chunk))
    return (parts.mean(1),) if kind == "mean" else (parts.amin(1), parts.amax(1))


def chunk_score(query: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
    """How well J chunks match queries [..., Q, d]: products [..., Q, J] with the mean key, or their upper bound."""
    if len(keys) == 1:
        return query @ keys[0].mT
    low, high = keys
    return query.clamp(max=0) @ low.mT + query.clamp(min=0) @ high.mT


def grouped(score: Tensor, heads: int) -> Tensor:
    """Mean over the query heads [Hq, ...] that share a key-value head: [H, ...]."""
    return score.view(heads, -1, *score.shape[1:]).mean(1)


def without_orphans(view: LayerView, stays: Tensor) -> Tensor:
    """`stays` bool [H, K] without the text between pictures of which no head keeps a token: it belongs to them."""
    step = view.layout.step[view.row]
    alive = step[stays & view.visual].unique()
    return stays & (view.visual | torch.isin(step, alive) | (step < 0))


def check_groups(technique: object, family: Family) -> None:
    """Raise FitError where `grouped` has no meaning: key-value heads that serve different numbers of query heads."""
    asking, asked = family.config.num_attention_heads, family.config.num_key_value_heads
    if asking % asked:
        raise FitError(
            f"{type(technique).__name__} was asked of {family.name}, whose {asking} query heads do not share {asked} "
            "key-value heads evenly, so that scores per key-value head have no meaning: use another model."
        )
