"""Attention over some blocks of a prompt's square of logits: what is left out is never computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Which blocks the rows of a prompt read, for an Attend that acts while a prompt is read in one piece.

    read bool [Hq, R, C]: whether row block r reads key block c; of height x width tokens, the last ones maybe shorter.
    order [Hq, N]: the tokens in the order in which they are cut into blocks (None: as they stand). Inside of what is
    read, every token reads those before it and itself, whatever the order. skip_below: a key block whose logits all lie
    so far below the running maximum of their row, over the key blocks read before, adds no values (None: all do).
    """

    read: Tensor
    height: int
    width: int
    order: Tensor | None = None
    skip_below: float | None = None

    def mask(self, rows: int) -> Tensor:
        """The same as bool [Hq, N, N] over tokens as they stand, without the causal rule and `skip_below`."""
        wide = self.read.repeat_interleave(self.height, 1)[:, :rows].repeat_interleave(self.width, 2)[:, :, :rows]
        if self.order is None:
            return wide
        place = self.order.argsort(-1)
        wide = wide.gather(1, place[:, :, None].expand(-1, -1, rows))
        return wide.gather(2, place[:, None].expand(-1, rows, -1))

    @property
    def density(self) -> float:
        """Blocks read as a share of those on and below the diagonal, as the tokens are ordered."""
        heads, rows, columns = self.read.shape
        return float(self.read.sum()) / (heads * int(reachable(rows, columns, self.height, self.width).sum()))


def reachable(rows: int, columns: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """bool [R, C]: key blocks that begin no later than a row block ends."""
    first, last = torch.arange(columns, device=device) * width, torch.arange(1, rows + 1, device=device) * height
    return first[None] < last[:, None]


def fewest(mass: Tensor, threshold: float, always: Tensor) -> Tensor:
    """The fewest entries of each row that hold `threshold` of its sum, those of `always` among them: bool [..., R, C].

    mass [..., R, C], not negative; always bool [..., R, C] counts towards the threshold; ties go to the earlier entry.
    """
    wanted_sum = threshold * mass.sum(-1, keepdim=True)
    sure = (mass * always).sum(-1, keepdim=True)
    rest, order = mass.masked_fill(always, 0).sort(dim=-1, descending=True, stable=True)
    wanted = (sure + rest.cumsum(-1) - rest < wanted_sum) & (rest > 0)
    return torch.zeros_like(wanted).scatter(-1, order, wanted) | always


def attend_blocks(query: Tensor, keys: Tensor, values: Tensor, blocks: Blocks, scaling: float) -> Tensor:
    """Output [Hq, N, d] of queries [Hq, N, d] over keys, values [H, N, d], in time that shrinks with the density."""
    groups, total = len(query) // len(keys), query.shape[1]
    out = values.new_empty(*query.shape[:2], values.shape[-1])
    straight = torch.arange(total, device=query.device)
    for head in range(len(query)):
        order = straight if blocks.order is None else blocks.order[head]
        key, value = (_cut(part[head // groups][order], blocks.width) for part in (keys, values))
        place = _cut(order, blocks.width, filling=total)  # [C, width]; no row reads what fills up the last block
        asking = query[head][order] * scaling
        for row, first in enumerate(range(0, total, blocks.height)):
            rows = order[first : first + blocks.height]
            chosen = blocks.read[head, row].nonzero()[:, 0]
            logits = (asking[first : first + blocks.height] @ key[chosen].flatten(0, 1).mT).float()
            # In prompt order only the last blocks hold tokens that come later than some of the rows.
            later = len(chosen) if blocks.order is not None else int(((chosen + 1) * blocks.width > first).sum())
            if later:
                reach = place[chosen[-later:]].flatten()[None] <= rows[:, None]
                logits[:, -reach.shape[1] :].masked_fill_(~reach, float("-inf"))
            weights = logits.softmax(-1)
            if blocks.skip_below is not None and blocks.skip_below < float("inf"):
                adds = _adds(logits.unflatten(1, (-1, blocks.width)), blocks.skip_below)
                chosen, weights = chosen[adds], weights.unflatten(1, (-1, blocks.width))[:, adds].flatten(1)
            out[head, rows] = weights.to(value.dtype) @ value[chosen].flatten(0, 1)
    return out


def _cut(part: Tensor, width: int, filling: int = 0) -> Tensor:
    """[N, ...] in blocks [C, width, ...], the last one filled up."""
    missing = -len(part) % width
    filled = torch.cat([part, part.new_full((missing, *part.shape[1:]), filling)]) if missing else part
    return filled.unflatten(0, (-1, width))


def _adds(logits: Tensor, skip_below: float) -> Tensor | slice:
    """Which of n blocks add values to any row: logits [rows, n, width] of these, read in this order."""
    highest = logits.amax(-1)
    beneath = (highest - highest.cummax(-1).values).nan_to_num(nan=float("-inf"))
    adds = (beneath >= -skip_below).any(0)
    return slice(None) if bool(adds.all()) else adds
