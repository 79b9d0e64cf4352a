"""Drafting with a model: a second family, with a cache of its own that follows what the target accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.core.accept import Draft, Path, Sampler
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError

if TYPE_CHECKING:
    from elvi.families.family import Family
    from elvi.media import Clip


def check_vocabulary(technique: object, target: Family, drafter: Family) -> None:
    """Raise FitError unless both models speak one vocabulary (their heads may be padded to different widths)."""
    words = [(family.vocabulary, family.tokenizer.get_vocab()) for family in (target, drafter)]
    if words[0] != words[1]:
        raise FitError(
            f"{type(technique).__name__} was asked to draft with {drafter.name} ({drafter.vocabulary} tokens) for "
            f"{target.name} ({target.vocabulary} tokens), but their vocabularies differ: use a drafter that shares the "
            "target's tokenizer."
        )


class ModelDrafting:
    """A model drafting for `target`: chains of `num_draft` tokens, or `branching` of them that start with other tokens.

    It reads the same question and, unless it reads text only, the same clip through its own tower, under its own plan.
    Greedy drafts are points: the best first tokens, each continued by argmax. Sampled drafts follow the drafter's law
    at the target's temperature, first tokens drawn without replacement; `Draft.probs` states the law of every token.
    """

    def __init__(
        self,
        family: Family,
        target: Run,
        clip: Clip | None,
        sampler: Sampler,
        num_draft: int,
        *,
        branching: int = 1,
        plan: Plan | None = None,
    ) -> None:
        self.run = Run(family, plan or Plan())
        self.sampler, self.num_draft, self.branching = sampler, num_draft, branching
        self.head_width = target.family.model.get_output_embeddings().weight.shape[0]
        self.known = 0  # emitted tokens that the cache holds
        self.waiting = 0  # nodes of the draft whose rows wait in the cache: all but the deepest level
        prefill(self.run, clip if family.image_processor is not None else None, target.question or "")

    def propose(self, ids: list[int], limit: int) -> Draft:
        depth = min(self.num_draft, limit)
        if depth == 0:
            return Draft()
        logits = forward(self.run, ids[self.known :], list(range(len(ids) - self.known)))
        self.run.commit()
        self.known = len(ids)
        tokens, law = self._first(logits[-1])
        laws, width, parents = [law], len(tokens), [-1] * len(tokens)
        for level in range(depth - 1):
            tree = Draft(tokens, parents).mask()[-width:, 1:] if width > 1 else None
            logits = forward(self.run, tokens[-width:], [level] * width, tree)
            parents += range(len(tokens) - width, len(tokens))
            grown, law = self._next(logits)
            tokens, laws = tokens + grown, [*laws, law]
        self.waiting = len(tokens) - width
        return Draft(tokens, parents, None if self.sampler.greedy else torch.cat(laws))

    def heard(self, path: Path) -> None:
        stand = [node for node in path.nodes if node < self.waiting]
        self.run.commit(stand)
        self.known += len(stand)
        self.waiting = 0

    def _first(self, logits: Tensor) -> tuple[list[int], Tensor]:
        """Distinct first tokens after logits [V], and the law [b, V] that each was drawn from."""
        law = self._law(logits)
        if self.sampler.greedy:
            return law.topk(min(self.branching, len(law))).indices.tolist(), law
        tokens: list[int] = []
        laws: list[Tensor] = []
        while len(tokens) < self.branching and law.sum() > 0:
            laws.append(law / law.sum())
            tokens.append(self._draw(laws[-1][None])[0])
            law = laws[-1].index_fill(0, torch.tensor(tokens[-1:]), 0.0)
        return tokens, torch.stack(laws)

    def _next(self, logits: Tensor) -> tuple[list[int], Tensor]:
        """One token after each row of logits [b, V], and the laws [b, V] they were drawn from."""
        law = self._law(logits)
        return law.argmax(-1).tolist() if self.sampler.greedy else self._draw(law), law

    def _law(self, logits: Tensor) -> Tensor:
        """The drafter's distribution, as wide as the target's head; greedily its logits, of which the best count."""
        logits = logits[..., : self.run.family.vocabulary]
        if self.sampler.greedy:
            return logits
        return torch.nn.functional.pad(self.sampler.probs(logits), (0, self.head_width - logits.shape[-1]))

    def _draw(self, law: Tensor) -> list[int]:
        return torch.multinomial(law, 1, generator=self.sampler.draft_generator)[:, 0].tolist()
