"""MadaKV: every head splits its cache between text and pictures as it attends to them.

Li et al., ACL 2025, arXiv:2506.15724. Heads differ in what they look at. The last prompt rows are proxies P of the
answer; psi_i is the attention that row i receives from them, w_v and w_t are its sums over visual and text rows.

1. Modality preference: of the phi rows of a head, phi_v = phi w_v / (w_v + w_t) are visual and phi - phi_v text, the
   best by psi of each.
2. Hierarchical compensation: a head needs k = k_v + k_t rows, the fewest visual and text ones that hold the share theta
   of w_v and of w_t. A layer that needs more than its budget leaves less to those after it, and the other way round,

       phi(l+1) = phi(l) - K(l) / (L - l),    K(l) = mean over heads of k - phi(l).

The body of the paper was not available; this follows a digest that gives its equations. Ours (R):
- The digest sums K over heads, which makes the step as many times too large as there are heads; here it is their mean.
- Proxies always stay and are set apart: masses, needs and budgets of the two modalities are those of the rows before.
- The number of proxies (at most the text after the last picture, but 8 at least) and theta.
- retention="plan": layer l keeps phi(l). "demand": it keeps what it needs, as long as later layers can have their
  proxies, and the last layer gets what is left; K is then what was really kept too much, so that the sum stays.
- phi is bounded by the proxies and by what a layer holds, and its sum need not be what was asked for. What is left of
  the total is shared out equally; what exceeds it is taken in proportion. Where attention is spread out, so that all
  layers need more than they can have, the step as printed leaves late layers little else.
- Where a modality has fewer rows than its part, the other one takes the rest. Grouped queries share one selection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.budgets import split
from elvi.core.facts import Fact
from elvi.core.scores import observers, tiered, window_score
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class MadaKV:
    """Split each head's budget by modality, and hand surplus and deficit on from layer to layer.

    keep_ratio: alpha, mean share of the prompt's rows that a head keeps; window: |P|, at most so many last rows are
    proxies; theta: share of the attention that is needed; retention: "plan" or "demand". Raises BudgetError for values
    out of range.
    """

    keep_ratio: float = 0.2
    window: int = 32
    theta: float = 0.9
    retention: str = "plan"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "theta", 0.0, 1.0, open_low=True)
        check_choice(self, "retention", "plan", "demand")

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        lengths = [view.keys.shape[1] for view in views]
        total = sum(budget(self.keep_ratio, length) for length in lengths)
        if total == sum(lengths):
            return [None] * len(views)
        rows = [observers(view.query_row, view.layout, self.window) for view in views]
        needs = [needed(view, proxies, self.theta) for view, proxies in zip(views, rows)]
        counts = self.budgets(needs, lengths, total, max(rows)).tolist()
        return [chosen(view, proxies, count) for view, proxies, count in zip(views, rows, counts)]

    def budgets(self, needs: list[float], lengths: list[int], total: int, proxies: int) -> Tensor:
        """Rows [L] that the heads of each layer keep: `total` in all; needs: mean over heads of what they need."""
        layers = len(needs)
        phi, least = total / layers, min(proxies, total // layers)
        wanted = []
        for later, need, length in zip(reversed(range(layers)), needs, lengths):
            phi = min(max(phi, least), length)
            kept = spent = phi
            if self.retention == "demand" and later:
                kept = spent = min(max(need, least), phi + (phi - least) * later)
            elif later:
                spent = need
            wanted.append(kept)
            phi -= (spent - phi) / max(later, 1)
        planned, most = torch.tensor(wanted), torch.tensor(lengths)
        if sum(wanted) > total:
            return split(planned - least, total, most, least)
        return split(torch.ones(layers), total, most, planned.floor())


def needed(view: LayerView, proxies: int, theta: float) -> float:
    """Mean over heads of the rows needed: proxies, and the fewest of each modality that hold theta of its attention."""
    score, own = window_score(view, proxies), is_proxy(view, proxies)
    need = own.sum(1)
    for modality in (view.visual & ~own, ~view.visual & ~own):
        mass = (score.double() * modality).sort(dim=1, descending=True).values.cumsum(1)
        goal = theta * mass[:, -1:]
        need = need + ((mass < goal).sum(1) + 1) * (goal[:, 0] > 0)
    return float(need.double().mean())


def chosen(view: LayerView, proxies: int, count: int) -> Tensor:
    """Slots [H, count]: the proxies (their latest, if they are more), then of each modality what receives most."""
    score, own = window_score(view, proxies), is_proxy(view, proxies)
    visual, text = view.visual & ~own, ~view.visual & ~own
    rest = count - own.sum(1).clamp(max=count)  # [H]
    mass_v, mass_t = ((score * part).sum(1) for part in (visual, text))
    wanted = (rest * (mass_v / (mass_v + mass_t)).nan_to_num() + 0.5).long()
    num_visual = wanted.maximum(rest - text.sum(1)).minimum(visual.sum(1))
    stays = torch.zeros_like(own)
    for part, ranked, number in (
        (visual, score, num_visual),
        (text, score, rest - num_visual),
        (own, view.row, count - rest),
    ):
        stays |= tiered(part.int(), ranked) > part.shape[1] - number[:, None]
    return stays.nonzero()[:, 1].view(len(stays), count)


def is_proxy(view: LayerView, proxies: int) -> Tensor:
    """bool [H, K]: the slots of the last `proxies` prompt rows."""
    return view.row >= view.query_row[len(view.query_row) - proxies]
