"""Texts for tiny-clip: what a second shows, in part or in full, or a question that the second answers.

Every text carries what it requires of a second, so that in a batch all pairs that truly match count as positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvi.tiny.tokenizer import BOS, EOS, VOCABULARY

if TYPE_CHECKING:
    from random import Random

    from elvi.tiny.data import Scene


@dataclass(frozen=True)
class Text:
    """A text that fits second `second` (counted from 0; None fits any) when each of `needs` is on the board.

    A need is (color, shape, place), None where it does not matter.
    """

    words: str
    second: int | None
    needs: tuple[tuple[str | None, str | None, str | None], ...]

    def fits(self, scene: Scene, second: int) -> bool:
        shown = [(thing.color, thing.shape, thing.place) for thing in scene.seconds[second]]
        return self.second in (None, second) and all(
            any(all(n in (None, s) for n, s in zip(need, thing, strict=True)) for thing in shown) for need in self.needs
        )


def texts(rng: Random, scene: Scene, second: int) -> list[Text]:
    """One description and one question that this second fits."""
    things = scene.seconds[second]
    thing = rng.choice([t for t in things if t.shape == "star"] or things)
    color, shape, place, k = thing.color, thing.shape, thing.place, second + 1
    descriptions = [
        Text(" , ".join(map(str, things)), None, tuple((t.color, t.shape, t.place) for t in things)),
        Text(str(thing), None, ((color, shape, place),)),
        Text(f"a {color} {shape}", None, ((color, shape, None),)),
        Text(f"a {shape}", None, ((None, shape, None),)),
        Text(f"frame {k}", second, ()),
    ]
    questions = [
        Text(f"in frame {k} what shape is at {place} ?", second, ((None, None, place),)),
        Text(f"in frame {k} what color is at {place} ?", second, ((None, None, place),)),
        Text(f"in frame {k} how many objects are there ?", second, ()),
        Text(f"which way does the {color} {shape} move ?", None, ((color, shape, None),)),
    ]
    if shape == "star":
        questions = [Text("what color is the star ?", None, ((None, "star", None),))]
    return [rng.choice(descriptions), rng.choice(questions)]


def encode(batch: list[Text]) -> Tensor:
    """Token ids [T, longest] in <s> … </s>, padded on the right."""
    rows = [[VOCABULARY[word] for word in (BOS, *text.words.split(), EOS)] for text in batch]
    longest = max(map(len, rows))
    return torch.tensor([row + [VOCABULARY["<pad>"]] * (longest - len(row)) for row in rows])


def contrast(model: nn.Module, cls: Tensor, batch: list[Text], origin: list[tuple[Scene, int]]) -> Tensor:
    """InfoNCE both ways with every true pair as a positive. cls [N, width] is the tower's pooled output."""
    fits = torch.tensor([[text.fits(*where) for where in origin] for text in batch]).float()  # [T, N]
    spoken = F.normalize(model.text_projection(model.text_model(encode(batch)).pooler_output), dim=-1)
    seen = F.normalize(model.visual_projection(cls), dim=-1)
    logits = model.logit_scale.exp() * spoken @ seen.T
    loss = logits.new_zeros(())
    for score, truth in ((logits, fits), (logits.T, fits.T)):
        loss = loss - ((score.log_softmax(-1) * truth).sum(-1) / truth.sum(-1)).mean() / 2
    return loss
