"""InfiniPot-V: a hard bound on the cache while a video streams in, held without knowing the question.

Kim et al., NeurIPS 2025, arXiv:2506.15745. Whenever the cache holds `target + block` time steps of n tokens each, every
head goes back to B = target n visual tokens, by two signals that need keys and values only:

- TaR, temporal redundancy: a key resembling the keys at its own place in the picture in the recent steps says little
  new, red(k at p) = mean over recent steps r of cos(k, k_r at p). The share `tar_ratio` of B goes to the recent steps
  and then to the least redundant older tokens;
- VaN, value norm: the rest of B goes to the tokens of the largest |v|.

Where we differ:
- Older tokens that survive are candidates again in later rounds, each compared at its own place in the picture; the
  released sample code reshapes whole frames, which holds in the first round only (our reconstruction (R); its README
  calls it a re-implementation that is not the full method).
- The length of a stream is not known, so the last rounds leave as much as the others; the sample code fills the cache
  up to its bound at the end of a clip.
- The pooling of value norms over neighbours, which the sample script switches off, is left out.
- The bound is smaller: 6 + 2 time steps where the sample script has 24 + 8, since the clips here are short.
- Text between the pictures belongs to the step before it, and leaves with the last token of that step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.scores import without_orphans
from elvi.core.tokens import top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView

FIRST = 1e9  # score of what has to be taken first


@dataclass(frozen=True)
class InfiniPotV:
    """Go back to `target` time steps' worth of visual tokens whenever `block` more have been read.

    tar_ratio: share of the budget that goes to tokens unlike the recent steps, the rest goes to large values;
    query_ratio: share of the held steps that counts as recent, at most `block`. Raises BudgetError for values out of
    range.
    """

    target: int = 6
    block: int = 2
    tar_ratio: float = 0.5
    query_ratio: float = 0.25

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN, Fact.SAME_KEYS_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    window: ClassVar[int] = 0
    full: ClassVar[dict[str, Any] | None] = {"target": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("target", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        check_range(self, "target", 1, float("inf"))
        check_range(self, "block", 1, float("inf"))
        check_range(self, "tar_ratio", 0, 1)
        check_range(self, "query_ratio", 0, 1)

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view) if view.phase == "piece" else None for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        per_step = int((view.layout.cell[:, 0] == 0).sum())
        visual = view.visual
        if int(visual[0].sum()) < (self.target + self.block) * per_step:
            return None
        slots = visual.nonzero()[:, 1].view(len(visual), -1)  # [H, m]
        chosen = slots.gather(1, self.choose(view, slots, per_step))
        stays = ~visual
        stays.scatter_(1, chosen, True)
        return without_orphans(view, stays).nonzero()[:, 1].view(len(visual), -1)

    def choose(self, view: LayerView, slots: Tensor, per_step: int) -> Tensor:
        """Which `target` steps' worth of the visual slots [H, m] stay: ascending places among them [H, B]."""
        wide = slots[..., None].expand(-1, -1, view.keys.shape[-1])
        keys, values = (part.gather(1, wide) for part in (view.keys, view.values))
        step = view.layout.cell[view.row.gather(1, slots), 0]  # [H, m]
        patch = self._patch(view, slots)
        recent = min(int((self.target + self.block) * self.query_ratio), self.block)
        is_recent = step > int(step.max()) - recent
        budget = self.target * per_step
        novelty = torch.where(is_recent, FIRST + step, -redundancy(keys, patch, is_recent, per_step))
        first = top(novelty, round(self.tar_ratio * budget))
        norm = values.float().norm(dim=-1)
        return top(norm.scatter(1, first, FIRST), budget)

    def _patch(self, view: LayerView, slots: Tensor) -> Tensor:
        """[H, m]: the place in the picture of each slot, counted in raster order."""
        cell = view.layout.cell[view.row.gather(1, slots)]
        return cell[..., 1] * (int(cell[..., 2].max()) + 1) + cell[..., 2]


def redundancy(keys: Tensor, patch: Tensor, recent: Tensor, per_step: int) -> Tensor:
    """Mean cosine [H, m] of each key with the recent ones at its own place in the picture (0 where there is none).

    keys [H, m, d], patch [H, m] below per_step, recent bool [H, m].
    """
    unit = normalize(keys.float(), dim=-1)
    place = patch[..., None].expand_as(unit)
    total = unit.new_zeros(len(unit), per_step, unit.shape[-1]).scatter_add_(1, place, unit * recent[..., None])
    count = unit.new_zeros(len(unit), per_step).scatter_add_(1, patch, recent.float())
    mean = total / count.clamp(min=1)[..., None]
    return (unit * mean.gather(1, place)).sum(-1)
