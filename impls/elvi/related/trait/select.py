"""The selection loop: propose chunks, train on each for a moment, keep what helps the target, go back, prune.

A chunk's evaluation is a pure function of the model, the chunks accepted so far and the chunk, so a run that stopped
goes on from its list of gains, and a model that was left behind is made again by training on the same chunks.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from elvi.related.trait.model import Pairs, ndcg, train
from elvi.related.trait.surrogate import expected_improvement, features, posterior

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from elvi.related.trait import Trait
    from elvi.related.trait.data import Chunks, Target

MEMORY = 64  # observations the process sees: gains shrink as the model learns, so old ones mislead


@dataclass(frozen=True)
class Trial:
    """One evaluation: the chunk, the gain that was expected and the one observed, and nDCG@10 on V after deciding."""

    chunk: int
    expected: float | None
    gain: float
    accepted: bool
    quality: float


@dataclass
class Selection:
    """Trials in order; the chunks kept, with the model [V, D] and its nDCG@10 on V before and after each of them."""

    trials: list[Trial] = field(default_factory=list)
    selected: list[int] = field(default_factory=list)
    models: list[Tensor] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)

    @property
    def theta(self) -> Tensor:
        return self.models[-1]


def budget_of(trait: Trait, chunks: Chunks) -> int:
    """How many chunks may be evaluated: `share` of all, rounded half up."""
    return int(trait.share * len(chunks) + 0.5)


def step(trait: Trait, chunks: Chunks, theta: Tensor, accepted: list[int], chunk: int) -> Tensor:
    """theta after a few steps on the chunk and as many pairs again, drawn from the accepted chunks."""
    seed = zlib.crc32(repr((trait.seed, accepted, chunk)).encode())
    pairs = chunks.pairs[chunk]
    if accepted:
        old = Pairs.join([chunks.pairs[index] for index in accepted])
        drawn = torch.randperm(len(old), generator=torch.Generator().manual_seed(seed))[: len(pairs)]
        pairs = Pairs.join([pairs, old[drawn]])
    return train(theta, pairs, trait.steps, seed)


def select(
    trait: Trait,
    chunks: Chunks,
    target: Target,
    theta0: Tensor,
    *,
    known: list[float] | None = None,
    disturb: Callable[[int], float] = lambda trial: 0.0,
    note: Callable[[Selection], None] = lambda selection: None,
    mapper: Callable[[Callable, list], list] = lambda function, items: list(map(function, items)),
) -> Selection:
    """Spend the budget; returns what was tried and kept.

    known: gains of a run that stopped, not measured again; disturb: error added to the gain of trial t;
    note: called after every trial; mapper: evaluates a batch of proposals, maybe elsewhere.
    """
    made = Selection(models=[theta0], quality=[ndcg(theta0, target.dev)])
    ground = _Ground(trait, chunks, features(theta0, chunks.pairs, chunks.source, target.adapt))
    budget, known = budget_of(trait, chunks), list(known or [])
    while len(made.trials) < budget:
        proposals = ground.propose(min(trait.batch, budget - len(made.trials)), budget)
        if not proposals:
            break
        base, seen = made.theta, len(made.selected)

        def evaluate(chunk: int, base: Tensor = base, before: tuple[int, ...] = tuple(made.selected)) -> tuple:
            theta = step(trait, chunks, base, list(before), chunk)
            return theta, ndcg(theta, target.dev)

        fresh = [chunk for chunk, _ in proposals][max(len(known) - len(made.trials), 0) :]
        results = dict(zip(fresh, mapper(evaluate, fresh), strict=True))
        start = made.quality[-1]
        for chunk, expected in proposals:
            number = len(made.trials)
            gain = known[number] if number < len(known) else results[chunk][1] - start + disturb(number)
            accepted = gain > trait.threshold
            if accepted:
                same = chunk in results and len(made.selected) == seen
                theta = results[chunk][0] if same else step(trait, chunks, made.theta, made.selected, chunk)
                made.selected.append(chunk)
                made.models.append(theta)
                made.quality.append(ndcg(theta, target.dev))
            ground.observe(chunk, gain, accepted)
            if accepted and trait.backtrack and len(made.selected) % trait.check_every == 0:
                _go_back(trait, made, ground)
            made.trials.append(Trial(chunk, expected, gain, accepted, made.quality[-1]))
            note(made)
    return made


def _go_back(trait: Trait, made: Selection, ground: _Ground) -> None:
    """To the best model so far when the present one is worse by more than `tolerance`; what came after is dropped."""
    best = int(np.argmax(made.quality))
    if made.quality[best] - made.quality[-1] <= trait.tolerance:
        return
    worth = (made.quality[-1] - made.quality[best]) / (len(made.quality) - 1 - best)
    for chunk in made.selected[best:]:  # the process learns that their neighbourhood is worth little
        ground.gains[chunk] = worth
    del made.selected[best:], made.models[best + 1 :], made.quality[best + 1 :]


class _Ground:
    """What may still be proposed, and what is known about it."""

    def __init__(self, trait: Trait, chunks: Chunks, rows: np.ndarray) -> None:
        self.trait, self.rows, self.source = trait, rows, np.array(chunks.source)
        self.chance = np.random.default_rng(trait.seed)
        self.gains: dict[int, float] = {}  # in the order of observing
        self.active = np.ones(len(rows), dtype=bool)  # neither evaluated nor pruned
        self.refused = np.zeros(self.source.max() + 1, dtype=int)  # rejections of a source in a row

    def propose(self, count: int, budget: int) -> list[tuple[int, float | None]]:
        """Up to `count` chunks, best first, each with its expected gain (None where it was drawn).

        Chunks that are surely of no use are pruned first; if none is left, all that were pruned are open again.
        """
        if not self.active.any():
            self._reopen()
        open_ = self.active.nonzero()[0]
        if not len(open_):
            return []
        if self.trait.acquisition == "random":
            return [(int(chunk), None) for chunk in self.chance.permutation(open_)[:count]]
        if not self.gains:
            return self._first(budget)
        mean, spread = self._posterior(open_)
        useless = mean + 2 * spread < self.trait.threshold
        if self.trait.prune and useless.all():
            self._reopen()
            open_ = self.active.nonzero()[0]
            mean, spread = self._posterior(open_)
        elif self.trait.prune:
            self.active[open_[useless]] = False
            open_, mean, spread = open_[~useless], mean[~useless], spread[~useless]
        value = expected_improvement(mean, spread) if self.trait.acquisition == "ei" else mean + spread
        order = np.argsort(-value, kind="stable")[:count]
        return [(int(open_[place]), float(mean[place])) for place in order]

    def _reopen(self) -> None:
        self.active[:] = True
        self.active[list(self.gains)] = False
        self.refused[:] = 0

    def _first(self, budget: int) -> list[tuple[int, float | None]]:
        """One chunk of each source, or of as many sources as a third of the budget pays for."""
        sources = self.chance.permutation(np.unique(self.source))[: max(budget // 3, 1)]
        return [(int(self.chance.choice((self.source == source).nonzero()[0])), None) for source in sources]

    def observe(self, chunk: int, gain: float, accepted: bool) -> None:
        """Note the gain; a source refused `patience` times in a row is closed."""
        self.gains[chunk] = gain
        self.active[chunk] = False
        source = self.source[chunk]
        self.refused[source] = 0 if accepted else self.refused[source] + 1
        if self.trait.prune and self.refused[source] >= self.trait.patience:
            self.active[self.source == source] = False

    def _posterior(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = list(self.gains)[-MEMORY:]
        return posterior(self.rows[seen], np.array([self.gains[chunk] for chunk in seen]), self.rows[asked])


def final(trait: Trait, chunks: Chunks, selected: list[int], target: Target, theta0: Tensor) -> Tensor:
    """theta0 trained on all selected pairs, then for a moment on the target's own (A)."""
    theta = theta0
    if selected:
        pairs = Pairs.join([chunks.pairs[chunk] for chunk in selected])
        theta = train(theta, pairs, trait.final_steps, trait.seed)
    return train(theta, target.adapt, trait.adapt_steps, trait.seed)


def at_random(trait: Trait) -> Trait:
    """The same budget and acceptance test, chunks drawn blindly."""
    return replace(trait, acquisition="random", prune=False)
