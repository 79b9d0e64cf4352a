"""HybridKV (reconstruction): prune the heads that always look at the same rows, fetch for those that do not.

Zeng et al., ACL 2026, arXiv:2604.05887. Static heads look at the same few tokens throughout an answer, dynamic heads
move on from step to step; which is which depends on the input. With a_h the attention that the prompt's last rows (the
question) pay in key-value head h, and B the budget of all n heads, three stages follow when the prompt has been read:

1. Classify: s_h is the mass of a_h in as many best entries as a head may keep; static if s_h >= theta.
2. Allocate: n_s static heads get r B n_s / n rows, shared out by 1 - s_h; dynamic heads share the others evenly.
3. Compress: static heads keep text first, then the visual rows with the highest pooled a_h, once. Dynamic heads move
   the prompt to the second tier in chunks, and every query row fetches those whose mean key matches it best.

Where we differ: only the abstract and three digests could be read, no formula and no code. They give the stages, theta,
r, text before pictures, and budgets in whole chunks; all else is our reconstruction (R), with a field for each choice.
With `charge`, a dynamic head pays for chunk keys and its last, partial chunk, which stays near: a step reads no more of
the prompt than the budget. A dynamic head whose share buys no chunk is pruned; chunks are fetched anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.budgets import split
from elvi.core.facts import Fact
from elvi.core.scores import check_groups, chunk_keys, chunk_score, observation, pooled
from elvi.core.store import Kept
from elvi.core.tokens import budget, top
from elvi.core.views import Fetched
from elvi.errors import BudgetError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class HybridKV:
    """Prune static heads once; let dynamic heads fetch chunks of the prompt for every row (reconstruction).

    keep_ratio: share of the prompt's rows that a head reads on average; theta: least s_h of static heads (0: all are,
    above 1: none); score: "mass", or "nucleus": 1 - the share of rows that hold `nucleus` of a_h; coefficient: r;
    weight of static heads: "inverse" (1 - s_h) or "score"; window: most rows that observe, and stay in static heads;
    floor: least rows of a static head, as far as the budget goes; kernel: odd width of pooling; chunk: rows;
    chunk_key: "mean" or "envelope". Raises BudgetError for values out of range, FitError for unevenly shared keys.
    """

    keep_ratio: float = 0.1
    theta: float = 0.9
    score: str = "mass"
    nucleus: float = 0.95
    coefficient: float = 1.2
    weight: str = "inverse"
    window: int = 32
    floor: int = 32
    kernel: int = 5
    text_prior: bool = True
    chunk: int = 16
    chunk_key: str = "mean"
    charge: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER, Fact.ONE_TIER}
    )
    head_names: ClassVar[tuple[str, ...]] = ("dynamic", "static")
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        for field, high in (("keep_ratio", 1.0), ("nucleus", 1.0), ("coefficient", float("inf"))):
            check_range(self, field, 0.0, high, open_low=True)
        for field, low in (("theta", 0), ("window", 1), ("floor", 0), ("kernel", 1), ("chunk", 1)):
            check_range(self, field, low, float("inf"))
        check_choice(self, "score", "mass", "nucleus")
        check_choice(self, "weight", "inverse", "score")
        check_choice(self, "chunk_key", "mean", "envelope")
        if self.kernel % 2 == 0:
            raise BudgetError(f"HybridKV was asked for kernel={self.kernel}, which has no middle: use an odd number.")

    fit = check_groups

    def head_map(self, views: list[LayerView]) -> list[list[int]]:
        """The kind of each head of each layer, by its place in `head_names`."""
        return (self.sparsity(views) >= self.theta).int().tolist()

    def sparsity(self, views: list[LayerView]) -> Tensor:
        """s_h [L, H], between 0 and 1 (all attention goes to one row), on the CPU."""
        return torch.stack([self._sparsity(observation(view, self.window)[0]) for view in views]).cpu()

    def keep(self, views: list[LayerView]) -> list[Kept | list[Tensor] | None]:
        length = torch.tensor([view.row.shape[1] for view in views])
        if budget(self.keep_ratio, int(length.sum())) == length.sum():
            return [None] * len(views)
        rows, fetches = self.budgets(self.sparsity(views), length)
        return [self._divide(*each) for each in zip(views, rows.tolist(), fetches.tolist())]

    def budgets(self, sparsity: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [L, H] that heads keep or fetch, and which of them fetch, for prompts of `length` [L] in each layer."""
        static, most = sparsity >= self.theta, length[:, None].expand_as(sparsity)
        total, count = budget(self.keep_ratio, int(most.sum())), int(static.sum())
        given = int(self.coefficient * total * count / static.numel() + 0.5)
        given = max(total - int(most[~static].sum()), min(given, total, int(most[static].sum())))
        share = (total - given) // max(1, static.numel() - count)
        rows = most.clamp(max=share)
        weight = sparsity if self.weight == "score" else 1 - sparsity + 1e-6  # no weight is zero
        rows[static] = split(weight[static], given, most[static], min(self.floor, given // max(1, count)))
        chunks = length // self.chunk
        spent = length % self.chunk + (chunks if self.chunk_key == "envelope" else (chunks + 1) // 2)  # keys: half rows
        bought = (share - spent * self.charge).clamp(min=0) // self.chunk
        fetches = ~static & (bought > 0)[:, None]
        return torch.where(fetches, bought.minimum(chunks)[:, None] * self.chunk, rows), fetches

    def fetch(self, view: LayerView) -> Fetched:
        chunks, slots = view.memory["chunks"], []
        for query, (count, keys) in zip(view.query.unflatten(0, (len(chunks), -1)), chunks):  # [G, Q, d]
            best = top(chunk_score(query, keys).amax(0), count)  # [Q, count]
            slots.append((best[..., None] * self.chunk + torch.arange(self.chunk, device=best.device)).flatten(1))
        return Fetched(slots, sum(part.nbytes for _, keys in chunks for part in keys))

    def _sparsity(self, attention: Tensor) -> Tensor:
        best, total = attention.double().sort(dim=-1, descending=True).values, attention.shape[1]
        if self.score == "mass":
            return best[:, : max(1, budget(self.keep_ratio, total))].sum(-1).clamp(max=1.0)
        return 1 - ((best.cumsum(-1) < self.nucleus * best.sum(-1, keepdim=True)).sum(-1) + 1) / total

    def _divide(self, view: LayerView, rows: list[int], fetches: list[bool]) -> Kept | list[Tensor]:
        """What the heads of one layer keep near and far; a head that fetches keeps its last, partial chunk near."""
        rank, slots = self._rank(view), torch.arange(view.row.shape[1], device=view.row.device)
        far = [slots[: len(slots) // self.chunk * self.chunk if fetch else 0] for fetch in fetches]
        near = [slots[len(there) :] if len(there) else top(row, n) for there, row, n in zip(far, rank, rows)]
        if not any(fetches):
            return near
        keys = [chunk_keys(keys[there], self.chunk, self.chunk_key) for keys, there in zip(view.keys, far)]
        view.memory["chunks"] = [(n // self.chunk * fetch, part) for n, fetch, part in zip(rows, fetches, keys)]
        return Kept(near, far=far)

    def _rank(self, view: LayerView) -> Tensor:
        """float64 [H, K], highest for what static heads keep first: the window, its latest rows; text; the best."""
        attention, inside = observation(view, self.window)
        score = pooled(attention.masked_fill(inside, 0.0), self.kernel)
        if self.text_prior:
            score = torch.where(view.visual, score.double(), 2.0 + attention.double())
        return torch.where(inside, 4.0 + view.row, score)
