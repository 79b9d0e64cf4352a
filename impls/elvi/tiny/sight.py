"""What the vision towers are taught before any language: to say of every visual token what lies there, where and when.

Every token of 16x16 pixels gets seven labels: colour, shape and reading-order rank of the thing it shows, the direction
in which that thing moves, and its own row, column and second. The classifier uses the language model's word embeddings
as class vectors wherever a class is a word, so the tower learns to speak in the embedding space that the decoder reads,
and "red" seen already points to "red" said when the decoder's training starts.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvi.tiny import models
from elvi.tiny.data import CELL, COLORS, COLUMNS, DIRECTIONS, HELD_OUT, KINDS, PACE, ROWS, SHAPES, SIDE, draw, render
from elvi.tiny.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from elvi.tiny.data import Scene, Thing

GROUPS = {  # name: (classes that are words, number of other classes, weight of the loss)
    "color": (tuple(COLORS), 1, 1.0),
    "shape": (SHAPES, 1, 1.0),
    "rank": ((), 6, 1.0),
    "direction": ((), 5, 0.5),
    "row": (ROWS, 0, 0.5),
    "column": (COLUMNS, 0, 0.5),
    "second": (tuple(map(str, range(1, 33))), 0, 1.0),
}
SIZES = [len(words) + others for words, others, _ in GROUPS.values()]
TOKEN = SIDE // models.BOARD  # pixels
REACH = 12  # pixels from the middle of a token to the middle of the thing it shows, at most


def labels(things: tuple[Thing, ...], second: int) -> np.ndarray:
    """Class of each token of one second in each group: int64 [36, 7], tokens in raster order."""
    y, x = np.mgrid[: models.BOARD, : models.BOARD] * TOKEN + TOKEN // 2
    table = np.zeros((len(GROUPS), models.BOARD, models.BOARD), np.int64)
    table[0], table[1] = len(COLORS), len(SHAPES)
    for rank, thing in enumerate(things, start=1):
        (x0, y0), (x1, y1) = thing.at
        here = (abs(x - x0) <= REACH) & (abs(y - y0) <= REACH)
        step = (np.sign(x1 - x0) * (abs(x1 - x0) > 2), np.sign(y1 - y0) * (abs(y1 - y0) > 2))
        way = list(DIRECTIONS.values()).index(step) + 1 if step in DIRECTIONS.values() else 0
        classes = (list(COLORS).index(thing.color), SHAPES.index(thing.shape), rank, way)
        for group, label in enumerate(classes):
            table[group][here] = label
    table[4:] = y // CELL, x // CELL, np.full_like(x, second)
    return table.reshape(len(GROUPS), -1).T


class WordHead(nn.Module):
    """Classifier whose class vectors are word embeddings, or vectors of its own where the class is no word."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        count = sum(others for _, others, _ in GROUPS.values())
        self.own = nn.Parameter(torch.randn(count, embedding.embedding_dim) / 10)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        vectors, used = [], 0
        for words, others, _ in GROUPS.values():
            vectors += [self.embedding.weight[[VOCABULARY[word] for word in words]], self.own[used : used + others]]
            used += others
        return features.float() @ torch.cat(vectors).T * self.scale


def sight_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Weighted sum of the groups' cross-entropies; empty tokens count a quarter. logits [N, 62], target [N, 7]."""
    shows = 0.25 + 0.75 * (target[:, 0] != len(COLORS)).float()
    total = logits.new_zeros(())
    for part, goal, (_, _, weight) in zip(logits.split(SIZES, -1), target.T, GROUPS.values(), strict=True):
        total = total + weight * (F.cross_entropy(part, goal, reduction="none") * shows).sum() / shows.sum()
    return total


def seconds_batch(key: str, count: int) -> tuple[np.ndarray, Tensor, list[tuple[Scene, int]]]:
    """Seconds of training scenes: frames [count, 2, 96, 96, 3], labels [count, 36, 7], scenes."""
    frames, marks, origin = [], [], []
    for i in range(count):
        choose = Random(f"choose/{key}/{i}")
        shown, rng = draw(choose.randrange(HELD_OUT), f"{key}/{i}", choose.choice(KINDS))
        starry = [k for k, things in enumerate(shown.seconds) if "star" in [thing.shape for thing in things]]
        second = rng.choice(starry) if starry and rng.random() < 0.5 else rng.randrange(len(shown.seconds))
        frames.append(render(rng, shown.seconds[second], second))
        marks.append(labels(shown.seconds[second], second))
        origin.append((shown, second))
    return augment(np.stack(frames), Random(f"augment/{key}")), torch.from_numpy(np.stack(marks)), origin


def augment(frames: np.ndarray, rng: Random) -> np.ndarray:
    """What cameras and codecs do: brightness, contrast, chroma averaged over 2x2, a light blur, more noise.

    frames uint8 [N, 2, 96, 96, 3]; each second gets its own treatment; float32 0 … 255 comes back.
    """
    out = frames.astype(np.float32)
    for clip in out:
        clip *= 0.9 + 0.2 * rng.random()
        clip += 20 * rng.random() - 10
        if rng.random() < 0.5:
            luma = clip.mean(-1, keepdims=True)
            chroma = (clip - luma).reshape(PACE, SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4))
            clip[:] = luma + chroma.repeat(2, 1).repeat(2, 2)
        if rng.random() < 0.3:
            clip[:, 1:-1] = (clip[:, :-2] + 2 * clip[:, 1:-1] + clip[:, 2:]) / 4
            clip[:, :, 1:-1] = (clip[:, :, :-2] + 2 * clip[:, :, 1:-1] + clip[:, :, 2:]) / 4
        if rng.random() < 0.3:
            clip += np.random.default_rng(rng.getrandbits(32)).normal(0, 4, clip.shape).astype(np.float32)
    return out.clip(0, 255)


def patches(frames: np.ndarray) -> Tensor:
    """Qwen2-VL's packing: [N, 2, 96, 96, 3] in 0 … 255 -> float32 [N, 144, 384], as its processor does."""
    x = (torch.from_numpy(np.asarray(frames, np.float32)) / 255 - models.MEAN) / models.STD
    board, merge, patch = models.BOARD, models.MERGE, models.QWEN_PATCH
    x = x.reshape(-1, PACE, board, merge, patch, board, merge, patch, 3)
    return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(len(x), board * board * merge * merge, -1)


def images(frames: np.ndarray) -> Tensor:
    """CLIP's input, the first raw frame of each second: [N, 2, 96, 96, 3] in 0 … 255 -> float32 [N, 3, 96, 96]."""
    x = torch.from_numpy(np.ascontiguousarray(frames[:, 0], np.float32)).permute(0, 3, 1, 2)
    return (x / 255 - models.MEAN) / models.STD


def tower(visual: nn.Module, packed: Tensor) -> Tensor:
    """The blocks of Qwen2.5-VL's tower over many equal grids at once, before the merger: [N, 144, 384] -> [N, 144, 96].

    The unmodified model loops over windows one by one; all windows are equal here, so one call per block does.
    Tokens come back in the order of the input (the four patches of a merged token together, tokens in raster order).
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
    from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

    grid = torch.tensor([[1, 2 * models.BOARD, 2 * models.BOARD]])
    window, bounds = get_vision_window_index(grid, models.MERGE, visual.window_size, models.QWEN_PATCH)
    order = (window[:, None] * 4 + torch.arange(4)).flatten()  # patches, window by window
    width = int(bounds[1])
    x = visual.patch_embed(packed).reshape(len(packed), order.numel(), -1)[:, order]
    cos, sin = (a[order] for a in visual.rotary_pos_emb(x, get_vision_position_ids(grid, models.MERGE)))
    for number, block in enumerate(visual.blocks):
        attention, y = block.attn, block.norm1(x)
        q, k, v = attention.qkv(y).reshape(*y.shape[:2], 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        span = order.numel() if number in visual.fullatt_block_indexes else width
        q, k, v = (a.reshape(-1, span, *a.shape[2:]).transpose(1, 2) for a in (q, k, v.to(q.dtype)))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + attention.proj(y)
        x = x + block.mlp(block.norm2(x))
    return x[:, torch.argsort(order)]
