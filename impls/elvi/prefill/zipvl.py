"""ZipVL: every layer reads and caches the fewest tokens that hold a share of its attention.

He et al., ICCV 2025, arXiv:2410.08584. In each layer a few probe rows, the latest ones and some drawn at random, say
what attention every token receives. With a_j the sum over probes of what they pay token j (mean over heads), the layer
needs the smallest p whose p largest a_j sum to the share tau of all of it. Which p tokens: those of the largest
a_j / (number of probes that can see j), since early tokens are seen by more of them. The prompt's attention is
computed among these tokens, and the cache of the layer keeps them only.

The official repository could not be read, only summaries: what follows is a reconstruction (R).
- All rows read the important keys (and themselves); summaries do not say what happens to the others' rows.
- tau is swept, as its published value was not seen; the latest 64 tokens count as important.
- The version that drops unimportant tokens from the cache, not the earlier one that stores them in fewer bits.

Where we differ:
- Random probes are drawn from a generator of their own, seeded per layer.
- The reference masks keys; it shows what is read and cached, not the speed of a gathered kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.tokens import top
from elvi.core.views import attention_rows
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class ZipVL:
    """Read and cache, in each layer, the fewest tokens that hold `threshold` (tau) of the attention of some probes.

    recent: how many of the latest rows are probes, and important; drawn: how many probes are drawn at random from the
    rows before them. Raises BudgetError for values out of range.
    """

    threshold: float = 0.95
    recent: int = 64
    drawn: int = 64
    seed: int = 0

    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = 0
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"threshold": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("threshold", (0.7, 0.8, 0.9, 0.95))

    def __post_init__(self) -> None:
        check_range(self, "threshold", 0.0, 1.0)
        check_range(self, "recent", 1, float("inf"))
        check_range(self, "drawn", 0, float("inf"))

    def attend(self, view: LayerView) -> Tensor | None:
        total = view.query.shape[1]
        if self.threshold == 1.0 or total <= self.recent:
            return None
        important = self.important(view)
        view.memory["important"] = view.query_row[important]
        itself = torch.eye(total, dtype=torch.bool, device=important.device)
        return (important | itself)[None]

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        important = view.memory.pop("important", None)
        if important is None:
            return None
        stays = torch.isin(view.row[0], important)  # another technique may have dropped some of them before
        return stays.nonzero()[:, 0].expand(len(view.row), -1)

    def important(self, view: LayerView) -> Tensor:
        """bool [N]: the tokens of the prompt that this layer reads and keeps."""
        total = view.query.shape[1]
        probes = self.probes(total, view.layer).to(view.query.device)
        paid = attention_rows(view.query[:, probes], view.keys, probes, view.scaling).mean(0).sum(0)  # [N]
        before = torch.searchsorted(probes, torch.arange(total, device=probes.device))  # probes that cannot see it
        seen = len(probes) - before
        chosen = torch.zeros(total, dtype=torch.bool, device=probes.device)
        chosen[top(paid / seen, fewest_count(paid, self.threshold))] = True
        chosen[-self.recent :] = True
        return chosen

    def probes(self, total: int, layer: int) -> Tensor:
        """Ascending rows that are asked: the latest ones, and some of the others drawn at random."""
        earlier = total - self.recent
        generator = torch.Generator().manual_seed(self.seed * 1000 + layer)
        drawn = torch.randperm(earlier, generator=generator)[: self.drawn].sort().values
        return torch.cat([drawn, torch.arange(earlier, total)])


def fewest_count(paid: Tensor, threshold: float) -> int:
    """The smallest number of entries of paid [N] that sum to a share of all of it."""
    best = paid.double().sort(descending=True).values.cumsum(0)
    return int((best < threshold * best[-1] * (1 - 1e-12)).sum()) + 1
