"""Lessons for the decoders: clips with many questions each, packed so that the visual tokens are computed once.

A row is the prompt's visual prefix followed by turns. A turn sees the prefix and itself, never another turn, and its
positions start right behind the prefix, so each turn is trained exactly as it is later asked: alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from elvi.tiny import models, sight
from elvi.tiny.data import HELD_OUT, draw, film
from elvi.tiny.tokenizer import ANSWER, BOS, EOS, VISION_END, VISION_START, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.tiny.data import Scene

TOKENS = 4200  # in a batch, at most
ATTENTION = "tiny-training"  # name under which `_attend` is registered with transformers
WEIGHT = {"motion": 4.0, "needle": 4.0}  # these can be asked once a clip only; others weigh 1


@dataclass(frozen=True)
class Lesson:
    """B clips of T seconds, and R tokens of turns each: frames float32 0 … 255 [B, T, 2, 96, 96, 3], the others [B, R].

    `turn` numbers the turns (-1 is padding), `offset` is the place within the turn, `goal` the token to come, or -100.
    """

    frames: np.ndarray
    ids: Tensor
    turn: Tensor
    offset: Tensor
    goal: Tensor
    weight: Tensor


def seconds_at(rng: Random, progress: float) -> int:
    """Curriculum: up to two seconds first, then four, then eight with one long clip in ten."""
    if progress > 0.45 and rng.random() < 0.1:
        return rng.randint(9, 32)
    return rng.randint(1, 2 if progress < 0.15 else 4 if progress < 0.45 else 8)


def room(seconds: int) -> int:
    """Tokens for the turns of a clip: enough for its caption and some questions; long clips are not captioned."""
    return 100 + 23 * seconds if seconds <= 8 else 120


def clips(seconds: int) -> int:
    """Clips in a batch."""
    return TOKENS // (models.PER_SECOND * seconds + room(seconds))


def draw_lesson(key: str, seconds: int) -> Lesson:
    """The batch of this key: scenes of so many seconds, each with as many turns as there is room for."""
    rng = Random(f"lesson/{key}")
    shown = [_clip(rng, f"{key}/{i}", seconds) for i in range(clips(seconds))]
    frames = np.concatenate([film(scene, noise).reshape(seconds, 2, *_FRAME) for scene, noise in shown])
    rows = [_row(rng, scene, room(seconds)) for scene, _ in shown]
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    return Lesson(sight.augment(frames, rng).reshape(len(shown), seconds, 2, *_FRAME), *columns)


_FRAME = (96, 96, 3)


def _clip(rng: Random, stream: str, seconds: int) -> tuple[Scene, Random]:
    kinds, chances = ("shape", "motion", "needle", "caption"), (5, 2, 1, 3)
    if seconds > 8:
        kinds, chances = ("needle",), (1,)
    elif seconds == 1:
        kinds, chances = ("shape", "needle", "caption"), (5, 1, 2)
    return draw(rng.randrange(HELD_OUT), stream, rng.choices(kinds, chances)[0], seconds)


def _row(rng: Random, scene: Scene, space: int) -> tuple[list[int], list[int], list[int], list[int], list[float]]:
    """Turns of one clip until the space is used up, rare kinds and the caption first."""
    ids, turn, offset, goal, weight = [], [], [], [], []
    for number, (kind, question, answer) in enumerate(_turns(rng, scene, space)):
        asked = [VOCABULARY[word] for word in (*question.split(), ANSWER)]
        said = [VOCABULARY[word] for word in (*answer.split(), EOS)]
        if len(ids) + len(asked) + len(said) > space:
            break
        ids += asked + said
        turn += [number] * (len(asked) + len(said))
        offset += range(len(asked) + len(said))
        goal += [-100] * (len(asked) - 1) + said + [-100]
        weight += [WEIGHT.get(kind, 1.0)] * (len(asked) + len(said))
    short = space - len(ids)
    pad = VOCABULARY["<pad>"]
    return ids + [pad] * short, turn + [-1] * short, offset + [0] * short, goal + [-100] * short, weight + [0.0] * short


def _turns(rng: Random, scene: Scene, space: int) -> list[tuple[str, str, str]]:
    rare = [(kind, *turn) for kind in ("motion", "needle") for turn in scene.turns(kind)]
    few = max(map(len, scene.seconds)) <= 3 and len(scene.seconds) <= 8 and not scene.mover
    caption = [("caption", *turn) for turn in scene.turns("caption")] if few and rng.random() < 0.6 else []
    plain = {kind: scene.turns(kind) for kind in ("shape", "color", "count")}
    kinds = rng.choices(list(plain), (2, 2, 1), k=space // 12)
    return rare + caption + [(kind, *rng.choice(plain[kind])) for kind in kinds]


def glimpse(key: str, lesson: Lesson) -> Tensor:
    """bool [B, T * 36]: visual tokens left when a part of each picture is gone; 5 to 100 % stay, at random."""
    generator = torch.Generator().manual_seed(Random(f"glimpse/{key}").getrandbits(63))
    count, seconds = lesson.frames.shape[:2]
    share = 0.05 + 0.95 * torch.rand(count, 1, generator=generator)
    return torch.rand(count, seconds * models.PER_SECOND, generator=generator) < share


def lesson_loss(
    model: nn.Module, features: Callable[[np.ndarray], Tensor], lesson: Lesson, seen: Tensor | None = None
) -> Tensor:
    """Weighted cross-entropy of the answers; `features`: frames [N, 2, 96, 96, 3] -> visual tokens [N, 36, width].

    seen: bool [B, T * 36], the visual tokens that are there (None: all); the others are read by nobody.
    """
    count, seconds = lesson.frames.shape[:2]
    visual = features(lesson.frames.reshape(-1, 2, *_FRAME)).reshape(count, seconds * models.PER_SECOND, -1)
    embed = model.get_input_embeddings()
    grid = model.config.model_type == "qwen2_5_vl"
    opening, closing = ((BOS, VISION_START), (VISION_END,)) if grid else ((BOS,), ())
    before, after = (torch.tensor([VOCABULARY[t] for t in part], dtype=torch.long) for part in (opening, closing))
    spread = [embed(before).expand(count, -1, -1), visual.float(), embed(after).expand(count, -1, -1)]
    prefix = sum(part.shape[1] for part in spread)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([*spread, embed(lesson.ids)], 1),
        position_ids=_positions(grid, seconds, lesson.offset),
        attention_mask=_mask(prefix, lesson.turn, model.config.text_config.num_attention_heads, len(before), seen),
        use_cache=False,
    ).last_hidden_state[:, prefix:]
    asked = lesson.goal != -100
    loss = F.cross_entropy(model.lm_head(hidden[asked]).float(), lesson.goal[asked], reduction="none")
    return (loss * lesson.weight[asked]).sum() / lesson.weight[asked].sum()


def _positions(grid: bool, seconds: int, offset: Tensor) -> Tensor:
    """Positions of prefix and turns as transformers computes them: [3, B, L] on Qwen's grid, else [B, L]."""
    board, count = models.BOARD, seconds * models.PER_SECOND
    if not grid:
        prefix = torch.arange(1 + count)
        return torch.cat([prefix.expand(len(offset), -1), offset + 1 + count], 1)
    t, y, x = torch.meshgrid(torch.arange(seconds) * 2, torch.arange(board), torch.arange(board), indexing="ij")
    seen = torch.stack([t, y, x]).reshape(3, count) + 2
    edge = torch.arange(2).expand(3, -1)
    prefix = torch.cat([edge, seen, torch.full((3, 1), 2 + board)], 1)
    turns = (offset + 3 + board).expand(3, -1, -1)
    return torch.cat([prefix[:, None].expand(-1, len(offset), -1), turns], 2)


def _mask(prefix: int, turn: Tensor, heads: int, before: int, seen: Tensor | None) -> Tensor:
    """Added to the scores, bfloat16 [B, heads, L, L]: 0 where a query may read a key. Padding reads itself."""
    number = F.pad(turn, (prefix, 0), value=-2)  # -2 prefix, -1 padding, else the turn
    length = number.shape[1]
    same = (number[:, :, None] == number[:, None, :]) | (number[:, None, :] == -2)
    allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
    if seen is not None:
        there = F.pad(seen, (before, length - before - seen.shape[1]), value=True)
        allowed &= there[:, None, :] | torch.eye(length, dtype=torch.bool)
    return ((~allowed).to(torch.bfloat16) * -10_000)[:, None].repeat(1, heads, 1, 1)


def _attend(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **__: object
) -> tuple[Tensor, None]:
    """Plain bfloat16 attention, heads of a group in one product: on CPUs about 3x faster here than SDPA's backward."""
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    with torch.autocast("cpu", enabled=False):
        q = (query * scaling).to(torch.bfloat16).reshape(groups, -1, width)
        k, v = (part.to(torch.bfloat16).reshape(groups, length, width) for part in (key, value))
        scores = torch.baddbmm(mask.reshape(groups, -1, length), q, k.mT)
        read = torch.bmm(scores.softmax(-1), v).reshape(batch, heads, length, width)
    return read.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)
