"""The architectures of the tiny models (real transformers classes, small sizes) and how they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elvi.tiny.data import SIDE
from elvi.tiny.tokenizer import BYTE_PAIR_PIECES, MAX_LENGTH, VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import (
        CLIPModel,
        LlamaForCausalLM,
        LlavaForConditionalGeneration,
        PreTrainedModel,
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
    )

MEAN, STD = 0.25, 0.25  # of pixel values in 0 … 1, all channels
QWEN_PATCH, CLIP_PATCH, MERGE, TEMPORAL = 8, 16, 2, 2
BOARD = SIDE // (QWEN_PATCH * MERGE)  # visual tokens along each side of a frame, for both families
PER_SECOND = BOARD * BOARD
WIDTH = 192
TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "tie_word_embeddings": True,
    "pad_token_id": VOCABULARY["<pad>"],
    "bos_token_id": VOCABULARY["<s>"],
    "eos_token_id": VOCABULARY["</s>"],
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


def qwen(layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL: a 4-block tower on 8-pixel patches, 36 visual tokens a second, M-RoPE."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = TEXT | {"num_hidden_layers": layers, "rope_parameters": ROPE | {"mrope_section": [4, 6, 6]}}
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "patch_size": QWEN_PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "window_size": 32,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=VOCABULARY["<|image_pad|>"],
        video_token_id=VOCABULARY["<|video_pad|>"],
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def clip() -> CLIPModel:
    """CLIP: 36 patches of 16 pixels and a CLS token, 5 vision blocks of width 128, 2 text blocks."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "projection_dim": 64,
        "pad_token_id": VOCABULARY["<pad>"],
        "bos_token_id": VOCABULARY["<s>"],
        "eos_token_id": VOCABULARY["</s>"],
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=clip_vision(), projection_dim=64))


def clip_vision() -> dict[str, int]:
    """The vision half of `clip`, which `llava` takes over."""
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": CLIP_PATCH,
        "projection_dim": 64,
    }


def llava(layers: int) -> LlavaForConditionalGeneration:
    """LLaVA: the tower of `clip` read one block before its end, without CLS, and a Llama decoder."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT, num_hidden_layers=layers, rope_parameters=ROPE),
        vision_config=CLIPVisionConfig(**clip_vision()),
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=PER_SECOND,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def drafter(**changes: int) -> LlamaForCausalLM:
    """A text-only Llama with the byte-pair vocabulary; `changes` to its sizes, named as in LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TEXT | {"vocab_size": BYTE_PAIR_PIECES, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes | changes, num_hidden_layers=2, rope_parameters=ROPE))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, family: str) -> None:
    """Write float16 weights, configuration, tokenizer and the image processor's settings to a folder."""
    import copy

    import torch
    from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normal = {"image_mean": [MEAN] * 3, "image_std": [STD] * 3}
    if family == "qwen":
        size = {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
        patches = {"patch_size": QWEN_PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
        Qwen2VLImageProcessorPil(size=size, **patches, **normal).save_pretrained(folder)
    elif family in ("clip", "llava"):
        square = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, **normal).save_pretrained(folder)
