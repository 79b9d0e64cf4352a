"""Drive the unmodified decoder layers of a transformers model, with techniques at their seams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from elvi.core.run import Run
from elvi.core.views import Seen

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens

KERNEL = "elvi"


def walk(tokens: Tokens, run: Run) -> Tensor:
    """Run all decoder layers over `tokens` and return the normed hidden states [N', D] of the rows that reach the end.

    While the prompt is read, reducers act at their layers, so N' may be smaller than N; the last row always stays.
    """
    text = run.family.text
    embeddings = _rotary(text, tokens)
    if run.prefilling and run.watched_layer is not None:
        run.entered = tokens
    for index, layer in enumerate(text.layers):
        if run.prefilling:
            if index in run.plan.layer_reducers:
                tokens = _reduce(tokens, index, run)
                embeddings = _rotary(text, tokens)
            run.meter.layer(len(tokens), int(tokens.visual.sum()))
        run.store.rows = tokens.row
        tokens = tokens.with_hidden(_through(layer, index, tokens.hidden[None], embeddings, run)[0])
        if index == run.watched_layer:
            run.watched = tokens
    return text.norm(tokens.hidden[None])[0]


def _through(layer, index: int, hidden: Tensor, embeddings: tuple[Tensor, Tensor], run: Run) -> Tensor:
    """One decoder layer; sub-layers that the run skips are passed by, and skipped attention leaves no cache rows."""
    shared = {
        "attention_mask": None,
        "position_ids": None,
        "past_key_values": run.store,
        "use_cache": True,
        "position_embeddings": embeddings,
        "run": run,
    }
    if run.skip is None:
        return layer(hidden, **shared)
    if index not in run.skip.attention:
        hidden = hidden + layer.self_attn(hidden_states=layer.input_layernorm(hidden), **shared)[0]
    if index not in run.skip.mlp:
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden


def _rotary(text, tokens: Tokens) -> tuple[Tensor, Tensor]:
    position = tokens.position[:, None] if tokens.position.shape[0] > 1 else tokens.position
    return text.rotary_emb(tokens.hidden[None], position)


def _reduce(tokens: Tokens, index: int, run: Run) -> Tokens:
    with run.meter.time("select"):
        query, key, scaling = run.last or (None, None, 1.0)
        rows = tokens.row
        for reducer in run.plan.layer_reducers[index]:
            if query is not None and key is not None and len(rows) > len(tokens):  # the one before dropped some
                left = torch.searchsorted(rows, tokens.row)
                rows, query, key = tokens.row, query[:, left], key[:, left]
            question = torch.isin(tokens.row, run.question_rows).nonzero()[:, 0]
            seen = Seen(run.question, question, query=query, key=key, scaling=scaling)
            tokens = reducer.reduce(tokens, seen)
        run.last = None
    return tokens


def attention(module, query, key, value, attention_mask, *, scaling: float, run: Run | None = None, **kwargs):
    """The one attention function. Without a run it is the model's own kernel, so `model.forward` stays what it was.

    query [1, Hq, Q, d]; key, value [1, H, K, d] as the store returned them. Returns [1, Q, Hq, d] and None.
    """
    kernel = ALL_ATTENTION_FUNCTIONS[module.config.elvi_kernel]
    if run is None:
        return kernel(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    mask = _mask(run, module.layer_idx, query[0], key[0], value[0])
    run.attended(module.layer_idx, query[0], key[0], scaling)
    if mask is None:
        return kernel(module, query, key, value, None, scaling=scaling, **kwargs)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask[None], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def _mask(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """What the rows in flight may read: None (plain causal), or bool / float [Hq or 1, Q, K]."""
    count, keys = query.shape[1], key.shape[1]
    mask = None
    if run.tree is not None:
        mask = torch.ones(1, count, keys, dtype=torch.bool, device=query.device)
        mask[:, :, keys - run.tree.shape[1] :] = run.tree
    elif 1 < count < keys:
        mask = _causal(count, keys, query)
    for technique in run.plan.attends:
        if not (technique.prefill if run.prefilling else technique.decode):
            continue
        extra = technique.attend(run.view(layer, query, run.store.rows, (key, value)))
        if extra is not None:
            mask = _combine(_causal(count, keys, query) if mask is None else mask, extra)
    return mask


def _causal(count: int, keys: int, like: Tensor) -> Tensor:
    return torch.ones(1, count, keys, dtype=torch.bool, device=like.device).tril(keys - count)


def _combine(mask: Tensor, extra: Tensor) -> Tensor:
    if extra.dtype == torch.bool and mask.dtype == torch.bool:
        return mask & extra
    if extra.dtype == torch.bool:
        return mask.masked_fill(~extra, float("-inf"))
    if mask.dtype == torch.bool:
        return extra.masked_fill(~mask, float("-inf"))
    return mask + extra


def attach(model) -> str:
    """Route a model's text attention through this module, on top of its own kernel, whose name is returned."""
    config = model.config.get_text_config()
    kernel = config._attn_implementation
    if kernel != KERNEL:
        config.elvi_kernel = kernel
        AttentionMaskInterface.register(KERNEL, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
        nested = hasattr(model.config, "text_config")
        model.set_attn_implementation({"text_config": KERNEL} if nested else KERNEL)
    return config.elvi_kernel


AttentionInterface.register(KERNEL, attention)
