"""Drive the unmodified decoder layers of a transformers model, with techniques at their seams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from elvi.core.blocks import Blocks, attend_blocks
from elvi.core.heads import attend_by_head
from elvi.core.run import Run
from elvi.core.views import Fetched, Seen

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens

KERNEL = "elvi"  # the name under which transformers knows `attention`


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
            before = tokens
            if run.plan.reducers_at(index):
                tokens = _reduce(tokens, index, run)
            if index == 0 and run.plan.compacts:
                tokens = tokens.compact()
            if tokens is not before:
                embeddings = _rotary(text, tokens)
            if index == 0 or tokens is not before:  # merging in the tower has given masses, too
                run.placed(tokens)
            run.meter.layer(len(tokens), int(tokens.visual.sum()), run.store.layers[index].length)
        run.store.rows = tokens.row
        if run.prefilling and run.plan.inputs:
            run.inputs[index] = layer.input_layernorm(tokens.hidden)
        if run.prefilling and run.plan.entering:
            run.entering[index] = tokens
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
        for reducer in run.plan.reducers_at(index):
            if query is not None and key is not None and len(rows) > len(tokens):  # the one before dropped some
                left = torch.searchsorted(rows, tokens.row)
                rows, query, key = tokens.row, query[:, left], key[:, left]
            question = torch.isin(tokens.row, run.question_rows).nonzero()[:, 0]
            seen = Seen(
                run.question,
                question,
                run.tower if index == 0 else None,
                query=query,
                key=key,
                scaling=scaling,
                clip=run.clip,
                layer=index,
                family=run.family,
                entered=run.meter.layer_visual_tokens[0] if index else 0,
                memory=run.memory.setdefault((id(reducer), -1), {}),
            )
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
    layer = module.layer_idx
    store = run.store.layers[layer]
    mask = _mask(run, layer, query[0])
    fetched = _fetched(run, layer, query[0])
    run.attended(layer, query[0], key[0], scaling)
    if isinstance(mask, Blocks):
        out = attend_blocks(query[0], key[0], value[0], mask, scaling)[None]
    elif store.by_head:
        out = attend_by_head(query[0], store.heads(), store.far, fetched, mask, scaling)[None]
    elif mask is None:
        return kernel(module, query, key, value, None, scaling=scaling, **kwargs)
    else:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask[None], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def _fetched(run: Run, layer: int, query: Tensor) -> Fetched | None:
    """What is fetched from the second tier, where there is one; in decoding, what is read is counted."""
    store, fetched = run.store.layers[layer], None
    if store.far is not None and run.plan.fetchers:
        technique = run.plan.fetchers[0]
        fetched = technique.fetch(run.view(technique, layer, query, run.store.rows))
    if not run.prefilling and run.skip is None:
        run.meter.kv_read_bytes += store.held_bytes
        if fetched is not None and store.far is not None:
            rows = sum(int((slots >= 0).sum()) for slots in fetched.slots)
            run.meter.kv_read_bytes += round(rows * store.far.row_bytes) + fetched.looked
    return fetched


def _mask(run: Run, layer: int, query: Tensor) -> Tensor | Blocks | None:
    """What the rows in flight may read: None (plain causal), Blocks, or bool / float [Hq or 1, Q, K]."""
    count, keys = query.shape[1], run.store.layers[layer].length
    mask = None
    if run.tree is not None:
        mask = torch.ones(1, count, keys, dtype=torch.bool, device=query.device)
        mask[:, :, keys - run.tree.shape[1] :] = run.tree
    elif 1 < count < keys:
        mask = _causal(count, keys, query)
    acting = [each for each in run.plan.attends if (each.prefill if run.prefilling else each.decode)]
    reads = [each.attend(run.view(each, layer, query, run.store.rows)) for each in acting]
    reads = [extra for extra in reads if extra is not None]
    if mask is None and len(reads) == 1 and isinstance(reads[0], Blocks) and query.device.type == "cpu":
        return reads[0]
    for extra in reads:
        if isinstance(extra, Blocks):
            extra = extra.mask(count)
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
