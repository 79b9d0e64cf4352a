"""SpargeAttn: block-sparse attention that trusts a block's mean only where its tokens are alike.

Zhang et al., ICML 2025, arXiv:2502.18137. The prompt is cut into blocks of query rows and of keys. With q_a and k_b
their means, softmax over b of q_a k_b / sqrt d says what share of its attention a block of rows pays each block of
keys, and the fewest blocks that hold the share tau of it are read. A mean says nothing of tokens that point apart, so a
block's self-similarity, the mean cosine over all pairs of its tokens,

    sim(B) = || sum of unit vectors ||^2 / |B|^2,

has to exceed theta: key blocks below it are read by all rows, row blocks below it read all keys. A second filter skips
the values of a key block whose logits lie further than lambda below the running maximum in all rows.

The second filter is a reconstruction (R), as the kernel itself was not read: it looks at whole row blocks, where the
kernel looks at the rows of one warp.

Where we differ:
- The diagonal is always read; in the released code a low threshold may hide a row from itself.
- Products are computed in the model's own precision, not in 8 bits, so that full selection is dense attention.
- One triple of thresholds for all heads (the released code can search them per head).
- `top_k` reads a fixed share of the blocks that a row could read; the released code takes the share of all blocks.
- Acts on prompts longer than two row blocks. A row's reads depend on its block, so it acts in prefill only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from elvi.core.blocks import Blocks, fewest, reachable
from elvi.core.facts import Fact
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class SpargeAttn:
    """Read, for every block of rows, the key blocks whose means promise most, and all that cannot be judged by a mean.

    threshold: tau, share of the promised attention (1: all); similarity: theta, from which on a block's mean is trusted
    (-1: always); skip_below: lambda, in logits; top_k: share of the blocks instead of a threshold; rows, keys: block
    sizes in tokens; smooth: whether the mean key is taken off before similarity is judged. Raises BudgetError for
    values out of range.
    """

    threshold: float = 0.98
    similarity: float = 0.6
    skip_below: float = 50.0
    top_k: float | None = None
    rows: int = 128
    keys: int = 64
    smooth: bool = True

    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"threshold": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("threshold", (0.5, 0.8, 0.9, 0.98))

    def __post_init__(self) -> None:
        check_range(self, "threshold", 0.0, 1.0)
        check_range(self, "similarity", -1.0, 1.0)
        check_range(self, "skip_below", 0.0, float("inf"))
        check_range(self, "rows", 1, float("inf"))
        check_range(self, "keys", 1, float("inf"))
        if self.top_k is not None:
            check_range(self, "top_k", 0.0, 1.0)

    def attend(self, view: LayerView) -> Blocks | None:
        total = view.query.shape[1]
        if total <= 2 * self.rows or (self.threshold == 1.0 and self.top_k is None):
            return None
        groups = len(view.query) // len(view.keys)
        key = view.keys.float()
        row_mean, row_sim = summary(view.query.float(), self.rows)
        key_mean, _ = summary(key, self.keys)
        _, key_sim = summary(key - key.mean(1, keepdim=True) if self.smooth else key, self.keys)
        key_mean, key_sim = key_mean.repeat_interleave(groups, 0), key_sim.repeat_interleave(groups, 0)
        logits = row_mean @ key_mean.mT * view.scaling
        read = self.choose(logits, row_sim > self.similarity, key_sim > self.similarity)
        return Blocks(read, self.rows, self.keys, skip_below=self.skip_below)

    def choose(self, logits: Tensor, row_trusted: Tensor, key_trusted: Tensor) -> Tensor:
        """Blocks read bool [Hq, R, C], from logits [Hq, R, C] of means and which blocks' means are trusted."""
        legal = reachable(*logits.shape[1:], self.rows, self.keys, logits.device)
        judged = legal & key_trusted[:, None]
        mass = logits.masked_fill(~judged, float("-inf")).softmax(-1).nan_to_num(0.0)
        if self.top_k is None:
            chosen = fewest(mass, self.threshold, torch.zeros_like(judged))
        else:
            rank = mass.argsort(dim=-1, descending=True, stable=True).argsort(-1)
            chosen = judged & (rank < (self.top_k * legal.sum(-1, keepdim=True)).ceil())
        return (chosen | ~key_trusted[:, None] | ~row_trusted[:, :, None] | self.own(legal)) & legal

    def own(self, legal: Tensor) -> Tensor:
        """bool [R, C]: key blocks that hold a row block's own tokens."""
        first = torch.arange(legal.shape[0], device=legal.device)[:, None] * self.rows
        return legal & (torch.arange(1, legal.shape[1] + 1, device=legal.device) * self.keys > first)


def summary(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean [H, B, d] and self-similarity [H, B] of blocks of so many rows [H, N, d]; the last one may be shorter."""
    missing = -rows.shape[1] % size
    count = torch.full((-(-rows.shape[1] // size),), float(size), device=rows.device)
    count[-1] -= missing
    mean, unit = (
        pad(part, (0, 0, 0, missing)).unflatten(1, (-1, size)).sum(2) / count[:, None]
        for part in (rows, normalize(rows, dim=-1))
    )
    return mean, unit.square().sum(-1)
