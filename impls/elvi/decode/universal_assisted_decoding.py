"""Universal assisted decoding: a drafter with another tokenizer, compared as text (SLEM) or token by token (TLI).

Timor et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies",
ICML 2025, arXiv:2502.05202.

Idea. Two of the paper's ways to verify drafts of a model that spells text differently:

- SLEM (string-level exact match): the draft is turned into text and spelt with the target's tokenizer; what comes out
  is a proposal without probability. Greedily it stands while it is the target's own choice, and when sampling token t
  stands with chance p(t), else p without t is drawn from: the target's law, whatever is proposed.
- TLI (token-level intersection): the drafter is kept to tokens that both vocabularies have, so that each of its tokens
  is one of the target's, and its law, narrowed to shared tokens and normalised, is the true law q of the proposal.
  Ordinary speculative sampling follows.

A large intersection (one family of models) calls for TLI, a small one for SLEM.

Where we differ. Both follow the emitted text through one bridge (`elvi.core.bridge`), which spells the whole context
anew where transformers aligns two windows. Two tokens are the same if they add the same string to a running
text. When sampling, SLEM tests its proposal with chance p(t) instead of comparing it with a token drawn from p: one
law. The paper's third way, rejection at the level of strings, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.accept import Draft, Path
from elvi.core.bridge import TextDrafting, check_text_drafter, surfaces, text_drafter
from elvi.core.facts import Fact
from elvi.errors import FitError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.core.run import Run
    from elvi.core.seams import Drafting
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class UniversalAssistedDecoding:
    """Draft with a text model that has its own tokenizer; lossless.

    method: "slem" or "tli"; draft: "auto" (the text drafter that ships for the target), or a model as `elvi.load` takes
    it; num_draft: tokens of the drafter per round; threshold: drafting stops where the drafter gives no token as much
    (transformers' assistant_confidence_threshold, which it uses within one vocabulary only).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.ROW_PURE})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = True
    sweep: ClassVar[tuple[str, tuple[int, ...]]] = ("num_draft", (4, 8, 16))
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"method": "tli"},)
    full: ClassVar[dict[str, Any] | None] = {}

    method: str = "slem"
    draft: str = "auto"
    num_draft: int = 8
    threshold: float = 0.4

    def __post_init__(self) -> None:
        check_range(self, "num_draft", 0, 64)
        check_range(self, "threshold", 0, 1)
        check_choice(self, "method", "slem", "tli")

    def fit(self, family: Family) -> None:
        drafter = text_drafter(self, self.draft, family)
        check_text_drafter(self, family, drafter)
        if self.method == "tli" and not shared(drafter, family):
            raise FitError(
                f"UniversalAssistedDecoding was asked for method=tli, but no token of {drafter.name} is one of "
                f"{family.name}: use method=slem."
            )

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting:
        drafter = text_drafter(self, self.draft, run.family)
        return (_Strings if self.method == "slem" else _Tokens)(self, drafter, run, sampler)


class _Strings:
    """SLEM on one sequence."""

    def __init__(self, technique: UniversalAssistedDecoding, drafter: Family, target: Run, sampler: Sampler) -> None:
        self.technique, self.target, self.sampler = technique, target, sampler
        self.drafter = TextDrafting(drafter, target, sampler)

    def propose(self, ids: list[int], limit: int) -> Draft:
        with self.target.meter.time("bridge"):
            context = self.drafter.spell(ids)
        if not context or not self.technique.num_draft:
            return Draft()
        return self._draft(ids, context, limit)

    def _draft(self, ids: list[int], context: list[int], limit: int) -> Draft:
        technique = self.technique
        drafted = self.drafter.draft(context, technique.num_draft, drawn=False, threshold=technique.threshold).tokens
        with self.target.meter.time("bridge"):
            return Draft.chain(self.drafter.respell(ids, context, drafted)[:limit])

    def heard(self, path: Path) -> None:
        """The drafter reads what was accepted when it is asked again."""


class _Tokens(_Strings):
    """TLI on one sequence."""

    def __init__(self, technique: UniversalAssistedDecoding, drafter: Family, target: Run, sampler: Sampler) -> None:
        super().__init__(technique, drafter, target, sampler)
        self.shared = shared(drafter, target.family)
        self.allowed = torch.zeros(drafter.vocabulary, dtype=torch.bool, device=drafter.device)
        self.allowed[list(self.shared)] = True

    def _draft(self, ids: list[int], context: list[int], limit: int) -> Draft:
        count, drawn = min(self.technique.num_draft, limit), not self.sampler.greedy
        options = {"threshold": self.technique.threshold, "allowed": self.allowed}
        drafted = self.drafter.draft(context, count, drawn=drawn, **options)
        with self.target.meter.time("bridge"):
            tokens = [self.shared[token] for token in drafted.tokens]
            laws = [self._law(law) for law in drafted.laws] if drawn else []
            return Draft.chain(tokens, torch.stack(laws) if laws else None)

    def _law(self, law: Tensor) -> Tensor:
        """The drafter's law [V of the drafter] over the target's tokens [V of its head]."""
        own = torch.tensor(list(self.shared))
        moved = torch.zeros(self.drafter.head_width)
        return moved.index_add_(0, torch.tensor(list(self.shared.values())), law[own])


def shared(drafter: Family, target: Family) -> dict[int, int]:
    """The target's token for every drafter's token that adds the same string to a text; one to one, ends included."""
    where: dict[str, int] = {}
    for token, text in enumerate(surfaces(target)):
        if text is not None:
            where.setdefault(text, token)
    found: dict[int, int] = {}
    for token, text in enumerate(surfaces(drafter)):
        if text in where:
            found[token] = where.pop(text)
    if drafter.eos and target.eos and found:
        found[min(drafter.eos)] = min(target.eos)
    return found
