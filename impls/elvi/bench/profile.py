"""What BTP and FitPrune have to know about a model, found out on clips: `elvi search btp`, `elvi search fitprune`.

Clips are those that training draws its seeds from, so that what is measured elsewhere stays held out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Layer
from elvi.errors import ElviError
from elvi.prefill.fitprune import BUDGETS, received
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.core.facts import Fact
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family

WITHIN = 0.01  # how exactly the tolerance is looked for


@dataclass(frozen=True)
class Notes:
    """Notes what enters every layer from the second on, and what visual tokens receive in the one before."""

    at: ClassVar[Layer] = Layer(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = True

    entering: list[Tensor] = field(default_factory=list)
    itself: list[Tensor] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        self.entering.append(tokens.hidden[tokens.visual].float())
        if seen.layer:
            for notes, part in zip((self.itself, self.cross), received(tokens, seen)):
                notes.append(part.double())
        return tokens


@torch.inference_mode()
def noted(family: Family, clips: int, seed: int, tick: Callable[[], None]) -> Iterator[Notes]:
    """What was noted on each of so many clips."""
    if clips > HELD_OUT:
        raise ElviError(f"{clips} clips were asked for, but there are {HELD_OUT}: ask for fewer.")
    if family.image_processor is None:
        raise ElviError(f"{family.name} reads text only, so it has no visual tokens to lose: use another model.")
    for number in Random(seed).sample(range(HELD_OUT), clips):
        notes, clip = Notes(), sample(number)
        prefill(Run(family, Plan(notes)), clip, clip.question or "")
        yield notes
        tick()


def likeness(family: Family, *, clips: int, seed: int, tick: Callable[[], None] = lambda: None) -> Tensor:
    """[1, L - 1]: mean cosine between the visual tokens that enter and that leave every layer but the last."""
    total = torch.zeros(family.num_layers - 1, dtype=torch.float64)
    for notes in noted(family, clips, seed, tick):
        pairs = zip(notes.entering, notes.entering[1:], strict=False)
        total += torch.stack([torch.cosine_similarity(*pair, dim=-1).mean() for pair in pairs]).double().cpu()
    return (total / clips)[None]


def recipes(family: Family, *, clips: int, seed: int, tick: Callable[[], None] = lambda: None) -> Tensor:
    """[9, L - 1]: for every budget the share of visual tokens that is left after every layer but the last."""
    samples = [
        (torch.stack(notes.itself).cpu(), torch.stack(notes.cross).cpu()) for notes in noted(family, clips, seed, tick)
    ]
    return torch.stack([recipe(family, samples, keep_ratio) for keep_ratio in BUDGETS])


def recipe(family: Family, samples: list[tuple[Tensor, Tensor]], keep_ratio: float) -> Tensor:
    """Shares [L - 1] for the smallest tolerance that brings the FLOPs on visual tokens down to `keep_ratio`."""
    low, high = 0.0, 1.0
    while high - low > WITHIN:
        alpha = (low + high) / 2
        shares = mean_shares(samples, alpha)
        low, high = (low, alpha) if flops(family, samples, shares) <= keep_ratio else (alpha, high)
    return stopped(family, samples, mean_shares(samples, high), keep_ratio)


def mean_shares(samples: list[tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    """Shares [L - 1] that are left with a tolerance, mean over samples."""
    return torch.stack([left(itself, cross, alpha) / itself.shape[1] for itself, cross in samples]).mean(0)


def left(itself: Tensor, cross: Tensor, alpha: float) -> Tensor:
    """How many of n tokens are left after each layer: self and cross [L, n] -> float64 [L].

    A layer gives up what belongs both to the longest run of the least tokens by self without which 1 - alpha of its sum
    is left, and to that by cross; what earlier layers gave up is gone from both.
    """
    stays, counts = torch.ones(itself.shape[1], dtype=torch.bool), []
    for layer in range(len(itself)):
        go = stays.clone()
        for part in (itself[layer], cross[layer]):
            order = part.masked_fill(~stays, -1.0).sort(stable=True).indices  # those gone before come first
            lost = part[order].cumsum(0)
            go &= torch.zeros_like(go).index_fill(0, order[lost <= alpha * part.sum()], True)
        stays &= ~go
        counts.append(int(stays.sum()))
    return torch.tensor(counts, dtype=torch.float64)


def flops(family: Family, samples: list[tuple[Tensor, Tensor]], shares: Tensor) -> float:
    """FLOPs of all layers on that many visual tokens alone, as a share of those on all of them."""
    count = sum(itself.shape[1] for itself, _ in samples) / len(samples)
    spent = [family.layer_flops(int(count * share)) for share in (1.0, *shares.tolist())]
    return sum(spent) / (len(spent) * family.layer_flops(int(count)))


def stopped(family: Family, samples: list[tuple[Tensor, Tensor]], shares: Tensor, keep_ratio: float) -> Tensor:
    """The shares up to the layer at which the budget is met, if no later one gives up any more."""
    for layer in range(len(shares)):
        frozen = torch.cat([shares[: layer + 1], shares[layer].expand(len(shares) - layer - 1)])
        if flops(family, samples, frozen) <= keep_ratio:
            return frozen
    return shares
