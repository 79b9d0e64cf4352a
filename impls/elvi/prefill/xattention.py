"""XAttention: block-sparse attention with antidiagonal scoring.

Xu et al., ICML 2025, arXiv:2503.16428. Attention logits are cut into blocks of B x B. Summing a block's logits along
antidiagonals of stride s touches every query and every key of the block and crosses vertical and slashed patterns
alike, so it tells a block's share of the attention at 1/s of the cost. Each row of blocks then keeps the fewest blocks
whose shares sum to tau. With an even stride, a slash one token wide at an even distance passes between antidiagonals.

Where we differ:
- On the CPU the blocks left out are skipped, one matrix product after another; on other devices they are masked.
- Key block 0 and the diagonal block are always read and count towards tau. In its first chunk the released code counts
  the diagonal only, and it takes one block more than the rule asks for.
- One threshold for all heads (the paper profiles one per head for a language model); tau = 1 is dense.
- The whole prompt is scored at once instead of in chunks; rows that only fill up the last block weigh nothing.

A row's reads depend on the other rows of its block, so it acts while the prompt is read and never while decoding: rows
that are decoded or verified read everything, and speculation stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from elvi.core.blocks import Blocks, fewest
from elvi.core.facts import Fact
from elvi.errors import BudgetError, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class XAttention:
    """Read, for every block of the prompt, only the key blocks that hold a share of its attention.

    block: B in tokens; stride: s, a divisor of B; threshold: tau, share of a row of blocks that is kept (1: all).
    Raises BudgetError for values out of range.
    """

    block: int = 128
    stride: int = 16
    threshold: float = 0.9

    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"threshold": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("threshold", (0.5, 0.7, 0.8, 0.9, 0.95))

    def __post_init__(self) -> None:
        check_range(self, "block", 1, float("inf"))
        check_range(self, "stride", 1, self.block)
        check_range(self, "threshold", 0.0, 1.0)
        if self.block % self.stride:
            raise BudgetError(
                f"XAttention was asked for stride={self.stride} in blocks of {self.block}, which it does not divide: "
                "use a divisor of the block."
            )

    def attend(self, view: LayerView) -> Blocks | None:
        rows = view.query.shape[1]
        if self.threshold == 1.0 or rows <= 2 * self.block:  # two blocks a row are always read
            return None
        keys = view.keys.repeat_interleave(view.query.shape[0] // view.keys.shape[0], dim=0)
        logits = antidiagonal(view.query, keys, self.stride, self.block) * view.scaling
        mass = block_mass(logits, rows, self.stride, self.block)
        return Blocks(select(mass, self.threshold), self.block, self.block)


def antidiagonal(query: Tensor, keys: Tensor, stride: int, block: int) -> Tensor:
    """Mean dot product on the antidiagonal of every stride x stride tile: query, keys [Hq, N, d] -> [Hq, G, G].

    G counts the tiles of N rounded up to whole blocks; missing rows are zero. Groups of `stride` rows are laid side by
    side, the queries of a group in reverse, so that one product sums one antidiagonal.
    """
    missing = -query.shape[1] % block
    query, keys = (pad(part.float(), (0, 0, 0, missing)).unflatten(1, (-1, stride)) for part in (query, keys))
    return query.flip(2).flatten(2) @ keys.flatten(2).mT / stride


def block_mass(logits: Tensor, rows: int, stride: int, block: int) -> Tensor:
    """Share of the attention that each block holds: logits [Hq, G, G] of tiles -> [Hq, R, R], rows summing to 1.

    The softmax runs over the tiles up to the diagonal; tiles beyond the prompt's `rows` weigh nothing.
    """
    groups, per_block = logits.shape[1], block // stride
    later = torch.ones(groups, groups, dtype=torch.bool, device=logits.device).triu(1)
    share = logits.masked_fill(later, float("-inf")).softmax(-1)
    share[:, -(-rows // stride) :] = 0
    mass = share.unflatten(2, (-1, per_block)).sum(3).unflatten(1, (-1, per_block)).sum(2)
    return mass / mass.sum(-1, keepdim=True)


def select(mass: Tensor, threshold: float) -> Tensor:
    """The fewest blocks of each row that hold `threshold` of it, block 0 and the diagonal among them: bool [Hq, R, R].

    mass [Hq, R, R] with rows summing to 1 and nothing above the diagonal; ties go to the earlier block.
    """
    always = torch.eye(mass.shape[1], dtype=torch.bool, device=mass.device)
    always[:, 0] = True
    return fewest(mass, threshold, always.expand_as(mass)) & torch.ones_like(always).tril()
