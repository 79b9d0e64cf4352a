"""Small random-weight models of every family, and helpers that several test files share."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from elvi.core.accept import Draft
from elvi.families.family import Family
from elvi.media import Clip
from elvi.tiny import models, tokenizer

FAMILIES = ("qwen2_5_vl", "llava_onevision", "llava", "llama")


@cache
def random_family(kind: str, layers: int = 3) -> Family:
    """A family around a freshly initialised model (compare logits, not tokens: such models repeat themselves)."""
    torch.manual_seed(0)
    with torch.inference_mode(False):  # shared between tests, whichever asks first
        return globals()[f"_{kind}"](layers)


@cache
def native_family(least: int = 4) -> Family:
    """The random Qwen2.5-VL with a processor that reads pictures from `least` tokens on (4, as for the real ones)."""
    family = copy(random_family("qwen2_5_vl"))
    family.image_processor = copy(family.image_processor)
    family.image_processor.size = {"shortest_edge": least * 16 * 16, "longest_edge": 96 * 96 * 4}
    return family


def _spread(model):
    """Larger weights than an initialisation has, so that attention and logits are not nearly uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model.eval()


def _qwen2_5_vl(layers: int) -> Family:
    from transformers import Qwen2VLImageProcessorPil

    from elvi.families.qwen2_5_vl import Qwen25VL

    normal = {"image_mean": [0.25] * 3, "image_std": [0.25] * 3}
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 96 * 96, "longest_edge": 96 * 96 * 4},
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        **normal,
    )
    return Qwen25VL("random-qwen", _spread(models.qwen(layers)), tokenizer.words("qwen"), processor)


def _llava(layers: int) -> Family:
    from transformers import CLIPImageProcessorPil

    from elvi.families.llava import Llava

    processor = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    return Llava("random-llava", _spread(models.llava(layers)), tokenizer.words("llava"), processor)


def _llava_onevision(layers: int) -> Family:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from elvi.families.llava_onevision import LlavaOnevision

    words = tokenizer.words("qwen")
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=42,
        patch_size=6,
        vision_use_head=False,
    )
    text = Qwen2Config(**{**models.TEXT, "num_hidden_layers": layers})
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.VOCABULARY["<|image_pad|>"],
        video_token_index=tokenizer.VOCABULARY["<|video_pad|>"],
        image_grid_pinpoints=[[42, 84], [84, 42], [84, 84]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 42, "width": 42}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    return LlavaOnevision("random-onevision", _spread(model), words, processor)


def _llama(layers: int) -> Family:
    from transformers import LlamaConfig, LlamaForCausalLM

    from elvi.families.llama import Llama

    config = LlamaConfig(**{**models.TEXT, "num_hidden_layers": layers})
    return Llama("random-llama", _spread(LlamaForCausalLM(config)), tokenizer.words("text"))


def noise_clip(seconds: int = 3, *, still: bool = False, seed: int = 0, size: tuple[int, int] = (96, 96)) -> Clip:
    """Random pixels at 2 frames a second (or `seconds` still images)."""
    count = seconds if still else 2 * seconds
    frames = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return Clip(frames, np.arange(count) / (1.0 if still else 2.0), "what color is the star ?", still=still)


def clip_for(kind: str, **options) -> Clip | None:
    return None if kind == "llama" else noise_clip(**options)


@dataclass(frozen=True)
class LastSlots:
    """Keeps the last `count` slots of each head."""

    count: int
    window: int = 0
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False

    def keep(self, views):
        return [torch.arange(view.row.shape[1])[-self.count :].expand(len(view.row), -1) for view in views]


@dataclass(frozen=True)
class Copies:
    """Drafts chains of a given answer, every token `shift` further on in the vocabulary (never a special one)."""

    answer: tuple[int, ...]
    shift: int = 0
    depth: int = 4
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = True

    def token(self, place: int) -> int:
        first = len(tokenizer.SPECIAL)
        known = self.answer[place] if place < len(self.answer) else first
        return first + (known - first + self.shift) % (len(tokenizer.VOCABULARY) - first)

    def start(self, run, clip, sampler):
        return self

    def propose(self, ids, limit):
        return Draft.chain([self.token(len(ids) + step) for step in range(min(self.depth, limit))])

    def heard(self, path):
        """It knows all it needs."""


@torch.inference_mode()
def hiding(run, clip: Clip | None = None):
    """The unmodified model's own forward pass in which every layer reads only the rows that `run` cached there.

    Rows are never dropped; what nobody reads any more makes no difference. The question is the clip's.
    """
    family, clip = run.family, clip or noise_clip()
    layers = zip(family.text.layers, run.store.layers, strict=True)

    def masked(rows: torch.Tensor):
        keys = torch.zeros(len(run.layout), dtype=torch.bool).index_fill(0, rows, True)
        mask = (keys[None] | torch.eye(len(keys), dtype=torch.bool)).tril()[None, None]
        return lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask})

    hooks = [part.register_forward_pre_hook(masked(store.row[0]), with_kwargs=True) for part, store in layers]
    try:
        return family.model(**family.inputs(clip, clip.question), use_cache=True).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
