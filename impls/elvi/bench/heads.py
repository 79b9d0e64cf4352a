"""Count how often each attention head looks at what is being named: `elvi search sparsemm`.

Clips of the tiny models' world are captioned, and it is known which thing every colour and shape in a caption stands
for. Where a model says the right word next, each head whose highest weight over all rows, text included, falls on one
of the n visual tokens that show the thing scores 1 / n (arXiv:2506.05344, where pictures of text are read out). Scores
are scaled to sum to 1 over all heads.

The caption is given word by word, and a word counts if the model would have said it: up to its first mistake this is
greedy decoding, and one mistake does not spoil the rest. Clips are those that training draws its seeds from, so that
what is measured elsewhere stays held out.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.scores import chunks
from elvi.decode.sparsemm import FOUND
from elvi.errors import ElviError
from elvi.tiny.data import HELD_OUT, RADIUS, SIDE, Scene, Thing, sample, sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from elvi.core.facts import Fact
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView
    from elvi.families.family import Family


def count(family: Family, *, clips: int, seed: int, tick: Callable[[], None] = lambda: None) -> Tensor:
    """Scores [L, Hq] of a model, from so many clips. Raises ElviError if no head ever looks at what is named."""
    if clips > HELD_OUT:
        raise ElviError(f"Head scores were to be counted on {clips} clips, but there are {HELD_OUT}: ask for fewer.")
    if family.image_processor is None:
        raise ElviError(f"{family.name} reads text only, so no head of it looks at a picture: use another model.")
    scores = torch.zeros(family.num_layers, family.config.num_attention_heads, dtype=torch.float64)
    for number in Random(seed).sample(range(HELD_OUT), clips):
        scores += looks(family, number)
        tick()
    if not scores.any():
        raise ElviError(
            f"No head of {family.name} looked at what it named in {clips} captions, so there are no scores: use more "
            "clips, or a model that knows this world."
        )
    return scores / scores.sum()


@torch.inference_mode()
def looks(family: Family, number: int) -> Tensor:
    """What every head [L, Hq] scores on one clip."""
    clip, scene = sample(number, "caption"), sample_scene(number, "caption")
    coded = family.tokenizer(clip.expected, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = coded["input_ids"], [end for _, end in coded["offset_mapping"]]
    watch = Highest()
    run = Run(family, Plan(watch))
    prefill(run, clip, clip.question or "")
    said = verify(run, ids[0], Draft.chain(ids[1:])).argmax(-1).tolist()  # after each token of the caption
    highest = torch.stack([watch.row[layer] for layer in range(family.num_layers)])  # [L, Hq, n]
    scores = torch.zeros(highest.shape[:2], dtype=torch.float64)
    for start, second, thing in named(scene):
        before = bisect_right(ends, start) - 1  # the token that covers the word's first letter comes next
        if said[before] == ids[before + 1]:
            shown = region(run.layout, thing, second, len(scene.seconds))
            scores += torch.isin(highest[..., before], shown).cpu().double() / len(shown)
    return scores


@dataclass(frozen=True)
class Highest:
    """Notes of every layer which row each query head pays most, [Hq, Q]: the first one of equals."""

    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = True
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    row: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, view: LayerView) -> None:
        self.row[view.layer] = view.row[0][torch.cat([weights.argmax(-1) for weights in chunks(view)], dim=1)]


def named(scene: Scene) -> Iterator[tuple[int, int, Thing]]:
    """Of every colour and shape in a caption where it starts, and the second and thing that it speaks of."""
    start, second, things = 0, -1, iter(())
    thing = None
    for word in scene.caption().split():
        if word == "frame":
            second += 1
            things = iter(scene.seconds[second])
        elif word == "a":
            thing = next(things)
        elif thing is not None and word in (thing.color, thing.shape):
            yield start, second, thing
        start += len(word) + 1


def region(layout: Tokens, thing: Thing, second: int, seconds: int) -> Tensor:
    """Row numbers of the visual tokens that the box around a thing touches while it is shown."""
    steps, height, width = (layout.cell.amax(0) + 1).tolist()
    t, y, x = layout.cell.unbind(1)
    inside = t * seconds // steps == second
    for place, size, centres in ((x, width, [at[0] for at in thing.at]), (y, height, [at[1] for at in thing.at])):
        first, last = min(centres) - RADIUS, max(centres) + RADIUS
        inside &= ((place + 1) * SIDE > first * size) & (place * SIDE < (last + 1) * size)
    return layout.row[inside & layout.visual]


def save(scores: Tensor, name: str, path: Path = FOUND, what: str = "Head scores") -> Path:
    """Write rows of numbers of a model into a table, beside other models. Raises ElviError where it cannot be."""
    try:
        tables = json.loads(path.read_text()) if path.is_file() else {}
        tables[name] = [[round(score, 6) for score in row] for row in scores.tolist()]
        blocks = (
            f" {json.dumps(model)}: [\n  " + ",\n  ".join(map(str, tables[model])) + "\n ]" for model in sorted(tables)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    except (OSError, ValueError, TypeError) as error:
        raise ElviError(f"{what} were to be written to {path}, which failed ({error}): name another file.") from None
    return path


def summary(scores: Tensor) -> str:
    """How unevenly heads score, in one line."""
    ranked = scores.flatten().sort(descending=True).values
    top = max(1, round(0.05 * len(ranked)))
    return f"the best {top} of {len(ranked)} heads hold {float(ranked[:top].sum()):.0%} of the score"
