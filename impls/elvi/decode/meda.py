"""MEDA: layers whose attention is spread out get more of the cache.

Wan et al., NAACL 2025, arXiv:2502.17599. A layer that attends to few rows can do with few. With A the attention over
the whole prompt of T rows and H(A) the entropy of all its rows in nats, layer l of L layers gets the share

    E_l = mean over heads of H(A) / T,    w = softmax(E / temperature),    rho_l = w_l L rho,

of its rows, never less than 1 % nor more than all. Half of them are the latest rows, half those with the highest sums
of attention, text before pictures; the evicted ones are merged into the kept row whose key is most alike, as in LOOK-M.

Where we differ:
- The paper measures entropy across modalities, text rows over visual keys and visual rows over text keys; the released
  code measures all of A. That is the default here, and entropy="cross_modal" the paper's: A restricted to the keys of
  the other modality and scaled back to 1, the mean over text rows plus that over visual rows. The mask stays causal.
- Clamping no longer changes the total: what some layers cannot take, or must be given, is settled with the others, and
  the budgets add up to `keep_ratio`. exact=False clamps and rounds down, as the released code does.
- The paper's softmax of entropies in nats is temperature=1. Where layers differ by several nats, a higher one keeps it
  from giving nearly all to one layer.
- The latest rows are half of the budget; the released code widens them to the number of text rows.
- The released code compresses when the first token is decoded. Nothing reads the cache before, so it is done at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.budgets import split
from elvi.core.facts import Fact
from elvi.core.merge import MERGING, merged
from elvi.core.scores import WHOLE_PROMPT, chunks, column_sums, row_entropy, tiered
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.store import Kept
    from elvi.core.views import LayerView

LEAST = 0.01  # share of its rows that every layer keeps
PICTURE, TEXT, RECENT = 0, 1, 2


@dataclass(frozen=True)
class MEDA:
    """Split the cache over the layers by the entropy of their attention, then keep and merge in each of them.

    keep_ratio: rho, mean share of the prompt's rows that a head keeps; entropy: "full" or "cross_modal"; temperature:
    of the softmax over layers; merging: "pivot", "averaged", "weighted" or "none"; exact: whether budgets add up to
    keep_ratio. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.2
    entropy: str = "full"
    temperature: float = 1.0
    merging: str = "pivot"
    exact: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER, Fact.EXACT_VALUES}
    )
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = WHOLE_PROMPT
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_choice(self, "entropy", "full", "cross_modal")
        check_range(self, "temperature", 0.0, float("inf"), open_low=True)
        check_choice(self, "merging", *MERGING)

    def keep(self, views: list[LayerView]) -> list[Kept | Tensor | None]:
        measure = across_modalities if self.entropy == "cross_modal" else spread
        entropy = torch.stack([measure(view) for view in views]).cpu()
        lengths = torch.tensor([view.keys.shape[1] for view in views])
        counts = self.budgets(entropy, lengths).tolist()
        return [self._keep(view, count) for view, count in zip(views, counts)]

    def budgets(self, entropy: Tensor, lengths: Tensor) -> Tensor:
        """Rows [L] that the heads of each layer keep, from the layers' entropies [L] and how many they hold [L]."""
        share = (entropy.double() / self.temperature).softmax(0) * len(entropy) * self.keep_ratio
        if not self.exact:
            return 2 * (lengths * share.clamp(LEAST, 1.0) / 2).long()
        total = sum(budget(self.keep_ratio, length) for length in lengths.tolist())
        return floored(share * lengths, total, lengths, (lengths * min(LEAST, self.keep_ratio)).long())

    def _keep(self, view: LayerView, count: int) -> Kept | Tensor | None:
        total = view.keys.shape[1]
        if count == total:
            return None
        tier = torch.where(view.visual, PICTURE, TEXT)
        tier[:, total - budget(0.5, count) :] = RECENT
        return merged(view.keys, view.values, top(tiered(tier, column_sums(view)), count), self.merging)


def spread(view: LayerView) -> Tensor:
    """Mean entropy of what all rows and heads attend to, in nats."""
    return row_entropy(view).mean()


def across_modalities(view: LayerView) -> Tensor:
    """Mean entropy of text rows over visual keys, plus that of visual rows over text keys, in nats.

    Rows that see no key of the other modality have entropy 0, and so has a prompt of one modality.
    """
    asks = view.layout.visual[view.query_row]  # [Q]
    groups = len(view.query) // len(view.keys)
    held = (view.visual * 1).repeat_interleave(groups, dim=0)[:, None]  # [Hq, 1, K]
    other, start = [], 0
    for weights in chunks(view):
        mine = asks[start : start + weights.shape[1], None]
        start += weights.shape[1]
        across = weights * (held != mine * 1)
        across = across / across.sum(-1, keepdim=True).clamp(min=torch.finfo(across.dtype).tiny)
        other.append(torch.special.entr(across).sum(-1).mean(0))
    entropy = torch.cat(other)
    return sum((entropy[rows].mean() for rows in (asks, ~asks) if rows.any()), start=entropy.new_zeros(()))


def floored(weight: Tensor, total: int, most: Tensor, least: Tensor) -> Tensor:
    """`total` rows in proportion to weight [L]; parts that would get less than `least` get that, others the rest."""
    low = torch.zeros_like(most, dtype=torch.bool)
    while True:
        parts = split(weight.masked_fill(low, 0.0), total, most, least * low)
        below = (parts < least) & ~low
        if not below.any():
            return parts
        low |= below
