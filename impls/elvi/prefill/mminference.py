"""MMInference: block-sparse attention over tokens permuted so that the grid of a video becomes dense.

Li et al., ICML 2025, arXiv:2504.16083. In a video the same patch of other frames draws attention, which in prompt order
comes back at the stride of a frame. Sorted by patch first and by time second, such a grid is a dense block, and with
text apart from vision the pattern no longer changes inside a block. Every head has one of three patterns:

    A-shape         the first block and the nearest ones
    vertical-slash  blocks of columns, and of diagonals, that hold the attention of some probing rows
    grid            blocks of columns of the permuted prompt that hold the attention of some probing rows

and rows of text and of vision choose their columns apart, by probes of their own (the paper's Q-boundary).

The public repository holds no modality-aware part and only a summary of it was read: a reconstruction (R).
- The pattern of a head is the one of highest recall on the probes of this prompt at equal blocks; the paper searches it
  offline once per head. No table has to be shipped.
- The permutation is known from the cells of the tokens, so that no stride is searched and frames may differ in size.
- Vertical and slash compete for blocks by the sum of their masses; a row block always reads its own block.
- `keep_ratio` of the blocks that a row block could read is read, instead of a budget in FLOPs per pattern.
- The permutation is carried out on copies of keys and values, not in the loads of a kernel; causality is that of the
  prompt's order throughout. Prompts of two blocks or less are read in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.blocks import Blocks
from elvi.core.facts import Fact
from elvi.core.views import attention_rows
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView

PATTERNS = ("A-shape", "vertical-slash", "grid")


@dataclass(frozen=True)
class MMInference:
    """Read a share of the blocks, chosen per head by one of three patterns in prompt order or sorted by patch.

    keep_ratio: share of the blocks that a row block could read, its own and more; block: tokens in a row or column of a
    block; probes: how many of the last rows of text, and of vision, are asked. Raises BudgetError out of range.
    """

    keep_ratio: float = 0.25
    block: int = 64
    probes: int = 64

    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "block", 1, float("inf"))
        check_range(self, "probes", 1, float("inf"))

    def attend(self, view: LayerView) -> Blocks | None:
        total = view.query.shape[1]
        if self.keep_ratio == 1.0 or total <= 2 * self.block:
            return None
        cell = view.layout.cell[view.query_row]
        orders = torch.stack([torch.arange(total, device=cell.device), by_patch(cell)])
        reads, recalls = self.patterns(view, orders, cell[:, 0] >= 0)
        best = recalls.argmax(0)  # [Hq]; ties to the pattern named first
        heads = torch.arange(len(best), device=best.device)
        return Blocks(reads[best, heads], self.block, self.block, orders[(best == PATTERNS.index("grid")).long()])

    def patterns(self, view: LayerView, orders: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks read by every pattern bool [3, Hq, R, R], and the share of the probes' attention in them [3, Hq]."""
        straight, grid = orders
        groups = [rows[-self.probes :] for rows in ((~visual).nonzero()[:, 0], visual.nonzero()[:, 0]) if len(rows)]
        paid = [attention_rows(view.query[:, rows], view.keys, rows, view.scaling) for rows in groups]
        member = (visual & (~visual).any()).long()  # which group a row belongs to; one kind alone is group 0
        block = torch.arange(-(-len(visual) // self.block), device=visual.device)
        near = -(block[:, None] - block[None]).abs().float()
        near[:, 0] = 1.0  # the first block before all others
        count = len(block)
        reads, recalls = [], []
        for pattern, order in zip(PATTERNS, (straight, straight, grid)):
            place = order.argsort()  # of every token in this order
            of_block = place // self.block
            kind = member[order[block * self.block]]
            if pattern == "A-shape":
                wanted = near.expand(len(view.query), -1, -1)
            else:
                columns = torch.stack([per_block(part.mean(1), of_block, count) for part in paid], dim=1)
                wanted = columns[:, kind]  # [Hq, R, C]
                if pattern == "vertical-slash":
                    wanted = wanted + diagonals(paid, groups, self.block, count)[:, kind, block]
            read = self.choose(wanted, order)
            held = [(part * read[:, of_block[rows]][:, :, of_block]).sum((1, 2)) for part, rows in zip(paid, groups)]
            reads.append(read)
            recalls.append(torch.stack(held).sum(0) / sum(map(len, groups)))
        return torch.stack(reads), torch.stack(recalls)

    def choose(self, wanted: Tensor, order: Tensor) -> Tensor:
        """The blocks of highest score [Hq, R, R], a share of those that hold an earlier token, own ones first."""
        parts = order.split(self.block)
        first, last = (torch.stack([part.amin() if low else part.amax() for part in parts]) for low in (True, False))
        legal = first[None] <= last[:, None]
        wanted = wanted.masked_fill(~legal, float("-inf"))
        wanted.diagonal(dim1=1, dim2=2).fill_(float("inf"))
        rank = wanted.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return legal & (rank < (self.keep_ratio * legal.sum(-1, keepdim=True)).ceil().clamp(min=1))


def by_patch(cell: Tensor) -> Tensor:
    """The tokens [N] of cells [N, 3] as (t, y, x), text first, then patch by patch, each through time."""
    order = torch.arange(len(cell), device=cell.device)
    for axis in (0, 2, 1):  # a stable sort by the last key first
        order = order[cell[order, axis].sort(stable=True).indices]
    return order[(cell[order, 0] >= 0).long().sort(stable=True).indices]


def per_block(paid: Tensor, of_block: Tensor, count: int) -> Tensor:
    """Attention paid to keys [Hq, N], summed over the block of each: [Hq, C]."""
    return torch.zeros(len(paid), count, device=paid.device).index_add_(1, of_block, paid)


def diagonals(paid: list[Tensor], groups: list[Tensor], block: int, count: int) -> Tensor:
    """What the probes of every group pay at each distance in blocks, laid out as [Hq, groups, R, C]."""
    laid = torch.arange(count, device=groups[0].device)
    distance = (laid[:, None] - laid[None]).clamp(min=0)
    out = []
    for part, rows in zip(paid, groups):
        away = ((rows[:, None] - torch.arange(part.shape[2], device=rows.device)).clamp(min=0) // block).flatten()
        out.append(per_block(part.flatten(1) / len(rows), away, count)[:, distance])
    return torch.stack(out, dim=1)
