"""Rows that leave the cache, merged into those that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from elvi.core.store import Kept

MERGING = ("none", "averaged", "pivot", "weighted")  # what `merged` may be asked for
CHUNK = 512  # leaving rows looked at together


def merged(keys: Tensor, values: Tensor, slots: Tensor, merging: str) -> Kept | Tensor:
    """What stays of a layer when every row that leaves is merged into the kept row whose key is most alike.

    keys, values [H, K, d]; slots [H, b]: of every head those that stay, ascending. A leaving row e goes to the kept row
    c of its head with the highest cosine between their keys (ties: the lower slot); its value goes with it. With C_c
    what c is given, c becomes (c + sum C_c) / (1 + |C_c|), where a contribution is

        averaged: e        pivot: (e + c) / 2        weighted: cos(e, c) e.

    "none" drops what leaves, and the slots come back as they are. Computed in float32, stored in the dtype given.
    """
    heads, total = keys.shape[:2]
    if merging == "none" or not 0 < slots.shape[1] < total:
        return slots
    leaves = torch.ones(heads, total, dtype=torch.bool, device=keys.device).scatter_(1, slots, False)
    leaving = leaves.nonzero()[:, 1].view(heads, -1)
    stay = [taken(part, slots) for part in (keys, values)]
    given = [torch.zeros_like(part) for part in stay]
    count = torch.zeros(heads, slots.shape[1], 1, device=keys.device)
    direction = torch.nn.functional.normalize(stay[0], dim=-1)
    for start in range(0, leaving.shape[1], CHUNK):
        gone = [taken(part, leaving[:, start : start + CHUNK]) for part in (keys, values)]
        cosine, match = (torch.nn.functional.normalize(gone[0], dim=-1) @ direction.mT).max(-1)
        # Sums as products with a matrix of ones and zeros: the same in every run, on every device.
        goes = torch.nn.functional.one_hot(match, slots.shape[1]).mT.to(cosine.dtype)  # [H, b, c]
        count += goes.sum(-1, keepdim=True)
        share = goes * cosine[:, None] if merging == "weighted" else goes
        given = [so_far + share @ part for so_far, part in zip(given, gone)]
    if merging == "pivot":
        given = [(part + count * own) / 2 for part, own in zip(given, stay)]
    new_keys, new_values = ((own + part) / (1 + count) for own, part in zip(stay, given))
    return Kept(slots, keys=new_keys.to(keys.dtype), values=new_values.to(values.dtype))


def taken(rows: Tensor, slots: Tensor) -> Tensor:
    """Rows [H, K, d] at slots [H, b], in float32: [H, b, d]."""
    return rows.gather(1, slots[..., None].expand(-1, -1, rows.shape[-1])).float()
