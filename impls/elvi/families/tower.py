"""Look into a vision tower while it runs: attention and keys of single layers, without the eager kernel."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from elvi.core.seams import Tower
from elvi.core.views import Seen, TowerView
from elvi.families.family import linear_flops

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from elvi.core.seams import Reduce
    from elvi.core.tokens import Tokens

KERNEL = "elvi_tower"
ROWS = 256  # query rows of the tower looked at together
WATCHING: ContextVar[Probe | Keys | None] = ContextVar("WATCHING", default=None)


class Probe:
    """Records the attention modules asked for, inside `with probe:`.

    layers: numbers, which may count from the end (-1 is the last), or shares of the tower's depth, from 0.0 to below
    1.0: of the blocks that see a whole frame (`whole`, None: all do) the nearest one. Not every tower hands keyword
    arguments down to its attention (SigLIP does not), hence the context variable.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        layers: Collection[float],
        has_cls: bool,
        whole: Sequence[int] | None = None,
    ) -> None:
        self.has_cls = has_cls
        self._names: dict[int, list[float]] = {}
        for layer in layers:
            number = layer if isinstance(layer, int) else _nearest(int(layer * len(modules)), whole)
            self._names.setdefault(id(modules[number]), []).append(layer)
        self._records: dict[float, list[tuple[Tensor, ...]]] = {layer: [] for layer in layers}

    def __enter__(self) -> Probe:
        self._token = WATCHING.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        WATCHING.reset(self._token)

    def see(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> None:
        """query, key [B, heads, n, d]; with a class token it is the first of the n."""
        layers = self._names.get(id(module))
        if layers is None:
            return
        paid, total = _columns(query.float(), key.float(), scaling)
        skip = int(self.has_cls)
        whole = key.transpose(1, 2)  # [B, n, heads, d]
        joint = torch.einsum("bhd,bnhd->bn", query[:, :, 0].float(), whole.float())
        joint *= (query.shape[1] * query.shape[3]) ** -0.5
        record = (
            paid[:, skip:].flatten(),
            joint.softmax(-1)[:, skip:].flatten(),
            (total[:, skip:] / query.shape[2]).flatten(),
            whole[:, skip:].flatten(0, 1),
        )
        for layer in layers:
            self._records[layer].append(record)

    def view(self, order: Tensor | None = None, unit: int = 1) -> TowerView:
        """Per token: `unit` consecutive patches are averaged into one token, then put in `order`."""
        cls, joint, mean, keys = {}, {}, {}, {}
        for layer, records in self._records.items():
            joined = [torch.cat(parts).unflatten(0, (-1, unit)).mean(1) for parts in zip(*records)]
            joined = joined if order is None else [part[order] for part in joined]
            cls[layer], joint[layer], mean[layer], keys[layer] = joined
        return TowerView(self.has_cls, cls if self.has_cls else {}, joint if self.has_cls else {}, mean, keys)


def _columns(query: Tensor, key: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Of attention weights, mean over heads: the first row and the sum of all rows, [B, n] each.

    Rows are looked at a few at a time, so that no n x n map is held.
    """
    paid, total = query.new_empty(0), torch.zeros_like(key[:, 0, :, 0])
    for rows in query.split(ROWS, dim=2):
        weights = (rows @ key.mT * scaling).softmax(-1).mean(1)
        paid = paid if paid.numel() else weights[:, 0]
        total += weights.sum(1)
    return paid, total


class Keys:
    """Remembers the keys [B, heads, n, d] of the attention that runs inside `with keys:`."""

    def __enter__(self) -> Keys:
        self._token = WATCHING.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        WATCHING.reset(self._token)

    def see(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> None:
        self.last = key


def through(blocks: Sequence[Any], summary: Tensor, tokens: Tokens, reducers: Sequence[Reduce]) -> tuple[Tokens, float]:
    """Run blocks over the patches of all frames, reducers acting between attention and MLP; and the FLOPs of it.

    summary [F, 0 or 1, D]: the class token of every frame, which stays as it is.
    """
    frames, first, width = summary.shape
    proportional, flops = all(getattr(reducer, "proportional", True) for reducer in reducers), 0.0
    memories: list[dict[str, Any]] = [{} for _ in reducers]
    hidden = torch.cat([summary, tokens.hidden.view(frames, -1, width)], dim=1)
    for index, block in enumerate(blocks):
        count = hidden.shape[1]
        bias = None
        if proportional and bool((tokens.mass != 1).any()):
            bias = torch.nn.functional.pad(tokens.mass.log().view(frames, 1, 1, -1), (first, 0)).to(hidden.dtype)
        with Keys() as keys:
            hidden = hidden + block.self_attn(hidden_states=block.layer_norm1(hidden), attention_mask=bias)[0]
        for reducer, memory in zip(reducers, memories):
            if isinstance(reducer.at, Tower) and index in reducer.at:
                key = keys.last[:, :, first:].transpose(0, 1).flatten(1, 2)
                seen = Seen(None, tokens.row[:0], key=key, block=index, blocks=len(blocks), memory=memory)
                tokens = reducer.reduce(tokens.with_hidden(hidden[:, first:].flatten(0, 1)), seen)
                hidden = torch.cat([hidden[:, :first], tokens.hidden.view(frames, -1, width)], dim=1)
        flops += linear_flops(block.self_attn, frames * count) + 4.0 * frames * count**2 * width
        flops += linear_flops(block.mlp, frames * hidden.shape[1])
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    return tokens.with_hidden(hidden[:, first:].flatten(0, 1)), flops


def _nearest(layer: int, whole: Sequence[int] | None) -> int:
    return layer if whole is None else min(whole, key=lambda each: (abs(each - layer), each))


def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """The tower's own kernel; a probe, if there is one, sees queries and keys on the way."""
    probe = WATCHING.get()
    if probe is not None:
        probe.see(module, query, key, scaling)
    kernel = ALL_ATTENTION_FUNCTIONS[module.config.elvi_kernel]
    return kernel(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def attach(model: nn.Module, config) -> None:
    """Route a vision tower's attention through this module."""
    if config._attn_implementation != KERNEL:
        config.elvi_kernel = config._attn_implementation
        model.set_attn_implementation({"vision_config": KERNEL})


AttentionInterface.register(KERNEL, attention)
