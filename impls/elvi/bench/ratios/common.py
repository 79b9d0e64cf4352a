"""What several themes need: how often to measure, a clock, wide models, clips of noise, and unmodified models."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from elvi import tiny
from elvi.bench.speed import MODEL
from elvi.families.load import load
from elvi.media import Clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.families.family import Family

REPEATS, WIDE_REPEATS = 5, 3
SIDE, STEP_TOKENS = 256, 256  # pixels of a wide model's frames, and visual tokens of a time step (two frames)


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call on the CPU."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def unmodified(family: Family) -> Any:
    """A copy of the model on its own attention kernel, as transformers made it."""
    plain = copy.deepcopy(family.model)
    plain.set_attn_implementation(family.attention_kernel)
    return plain


def wide(layers: int, width: int, inner: int, key_value_heads: int, head_dim: int = 64, blocks: int = 1) -> Family:
    """A random-weight Qwen2.5-VL with a thin tower, and a language model so wide that arithmetic decides its speed.

    width: of its hidden states, in heads of head_dim; inner: of the MLPs; blocks: of the tower.
    """
    small = load(MODEL)
    config = transformers.AutoConfig.from_pretrained(tiny.path(MODEL))
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, inner, layers
    text.num_attention_heads, text.num_key_value_heads = width // head_dim, key_value_heads
    text.layer_types = ["full_attention"] * layers
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [part * head_dim // 64 for part in (8, 12, 12)]}
    vision = config.vision_config
    vision.depth, vision.out_hidden_size = blocks, width
    vision.fullatt_block_indexes = [block for block in vision.fullatt_block_indexes if block < blocks]
    torch.manual_seed(0)
    model = type(small.model)(config).to(small.device)
    processor = copy.deepcopy(small.image_processor)
    processor.size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    return type(small)("wide-qwen", model, small.tokenizer, processor)


def noise(visual_tokens: int) -> Clip:
    """A clip of random pixels that a wide model turns into so many visual tokens."""
    count = 2 * visual_tokens // STEP_TOKENS
    frames = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Clip(frames, np.arange(count) / 2, "what color is the star ?")
