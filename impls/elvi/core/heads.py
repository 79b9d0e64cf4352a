"""Attention over a cache whose heads are read one by one: ragged rows, and rows fetched from the second tier."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from elvi.core.rows import Rows
    from elvi.core.views import Fetched


def attend_by_head(
    query: Tensor,
    near: list[tuple[Tensor, Tensor]],
    far: Rows | None,
    fetched: Fetched | None,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """Output [Hq, Q, d] of queries [Hq, Q, d] over all rows of the first tier and those fetched from the second.

    near: keys, values [K_h, d] of every head; mask bool or float [Hq or 1, Q, K] over the slots as the cache's `row`
    lists them; None: causal.
    """
    groups = query.shape[0] // len(near)
    count, longest = query.shape[1], max(len(keys) for keys, _ in near)
    if mask is None and count > 1:
        mask = torch.ones(1, count, longest, dtype=torch.bool, device=query.device).tril(longest - count)
    slots, taken = [], repeat(None)
    if far is not None and fetched is not None and any(wanted.shape[1] for wanted in fetched.slots):
        slots = fetched.slots
        taken = far.take([wanted.clamp(min=0) for wanted in slots])
    out = []
    for head, ((keys, values), more) in enumerate(zip(near, taken)):
        asking = query[head * groups : (head + 1) * groups]  # [G, Q, d]
        allowed = None
        if mask is not None:
            own = mask if mask.shape[0] == 1 else mask[head * groups : (head + 1) * groups]
            allowed = own[:, :, longest - len(keys) :].expand(groups, -1, -1)
        if more is None or not slots[head].shape[1]:
            rows = None if allowed is None else allowed.flatten(0, 1)
            read = scaled_dot_product_attention(
                asking.flatten(0, 1)[None], keys[None], values[None], attn_mask=rows, scale=scaling
            )[0]
            out.append(read.view(groups, count, -1))
        else:
            out.append(_with_fetched(asking, (keys, values), more, slots[head], allowed, scaling))
    return torch.cat(out)


def _with_fetched(
    asking: Tensor,
    near: tuple[Tensor, Tensor],
    far: tuple[Tensor, Tensor],
    slots: Tensor,
    allowed: Tensor | None,
    scaling: float,
) -> Tensor:
    """[G, Q, d]: every row reads its own rows [Q, m, d] of `far` and what it is allowed [G, Q, n] of `near`.

    slots [Q, m]: where those are from, -1 for none.
    """
    count, wanted = slots.shape
    keys, values = (
        torch.cat([there.to(here.device), here.expand(count, *here.shape)], dim=1) for there, here in zip(far, near)
    )
    there = (slots >= 0).to(asking.device).expand(len(asking), count, wanted)
    here = torch.ones(1, dtype=torch.bool, device=asking.device).expand(len(asking), count, near[0].shape[0])
    here = here if allowed is None else allowed
    if here.dtype != torch.bool:
        there = torch.zeros_like(there, dtype=here.dtype).masked_fill(~there, float("-inf"))
    reads = torch.cat([there, here], dim=-1).transpose(0, 1)  # [Q, G, m + n]
    read = scaled_dot_product_attention(asking.transpose(0, 1), keys, values, attn_mask=reads, scale=scaling)
    return read.transpose(0, 1)
