"""Draft & Verify: the target drafts for itself with some attention and MLP sub-layers skipped.

Zhang et al., ACL 2024, arXiv:2309.08168.

Idea. Skipped sub-layers add nothing to the residual stream. The drafting pass reads the target's own cache of the
verified prefix, adds rows of its own in the layers whose attention is not skipped, and forgets them; verification reads
every drafted token with all layers. Drafting stops after K tokens, or after a token whose probability under the raw
drafting logits is below a threshold gamma, which follows the acceptance rate AR: after a round that accepted a of m,

    AR <- beta1 AR + (1 - beta1) a / m
    gamma <- beta2 gamma + (1 - beta2) (gamma + epsilon if AR < alpha, gamma if m = K, else gamma - epsilon).

Which sub-layers to skip is searched for once per model (`elvi search draft-and-verify`).
Where we differ. gamma starts anew for each sequence, where the official code carries it from prompt to prompt. The
cache is cut back per layer, since skipped layers hold fewer rows while drafting. When sampling, the draft is drawn from
the drafting law that its test is told ("drawn"), or is a point ("point"); the official default, argmax tokens tested
against that law, does not keep the target's distribution: draft_law="official". Greedily the three are one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from elvi.core.accept import Draft
from elvi.core.accept import Path as Accepted
from elvi.core.facts import Fact
from elvi.core.generate import forward
from elvi.core.run import Run
from elvi.core.views import Skip
from elvi.errors import BudgetError, FitError, check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.accept import Sampler
    from elvi.core.seams import Drafting
    from elvi.families.family import Family
    from elvi.media import Clip

FOUND = Path(__file__).with_name("skip_sets.json")  # by model: what the search found


@dataclass(frozen=True)
class DraftAndVerify:
    """Draft with the target's own layers, some of them skipped, verify with all; lossless unless asked otherwise.

    num_draft: K, the longest draft; skip_attention, skip_mlp: decoder layers as "1+4+7", "none", or "auto" (what the
    search found for this model, else the attention of its upper half); threshold: gamma at the start, 0 never stops
    early; adaptive: whether gamma follows the acceptance rate, with alpha, beta1, beta2, epsilon; draft_law: "drawn",
    "point" or "official" (not lossless when sampling).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.ROW_PURE})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    sweep: ClassVar[tuple[str, tuple[int, ...]]] = ("num_draft", (4, 8, 12))
    full: ClassVar[dict[str, Any] | None] = {}

    num_draft: int = 8
    skip_attention: str = "auto"
    skip_mlp: str = "auto"
    threshold: float = 0.8
    adaptive: bool = True
    alpha: float = 0.9
    beta1: float = 0.5
    beta2: float = 0.9
    epsilon: float = 0.01
    draft_law: str = "drawn"

    def __post_init__(self) -> None:
        check_range(self, "num_draft", 0, 64)
        for field in ("threshold", "alpha", "beta1", "beta2", "epsilon"):
            check_range(self, field, 0, 1)
        check_choice(self, "draft_law", "drawn", "point", "official")
        self._layers("attention"), self._layers("mlp")  # refused, if they name no layers

    @property
    def lossless(self) -> bool:
        return self.draft_law != "official"

    def fit(self, family: Family) -> None:
        skip = self.skip(family)
        last = max(skip.attention | skip.mlp, default=0)
        if last >= family.num_layers:
            raise FitError(
                f"DraftAndVerify was asked to skip layer {last}, but {family.name} has {family.num_layers} layers: "
                f"choose 0 to {family.num_layers - 1}."
            )

    def skip(self, family: Family) -> Skip:
        """The sub-layers that are skipped on this model."""
        upper = [*range(family.num_layers // 2, family.num_layers)]
        found = _found().get(family.name, {"attention": upper, "mlp": []})
        asked = {kind: self._layers(kind) for kind in found}
        return Skip(**{kind: frozenset(found[kind] if asked[kind] is None else asked[kind]) for kind in found})

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting:
        return SelfDrafting(self, run, sampler)

    def _layers(self, kind: str) -> list[int] | None:
        text = getattr(self, f"skip_{kind}")
        layers = [] if text in ("auto", "none") else text.split("+")
        if not all(layer.isdigit() for layer in layers):
            why = 'which names no layers: write "auto", "none" or "1+4+7".'
            raise BudgetError(f"DraftAndVerify was asked for skip_{kind}={text}, {why}")
        return None if text == "auto" else [int(layer) for layer in layers]


class SelfDrafting:
    """The target drafting for itself on one sequence; `threshold` and `rate` are gamma and AR."""

    def __init__(self, technique: DraftAndVerify, run: Run, sampler: Sampler) -> None:
        self.technique, self.run, self.sampler = technique, run, sampler
        self.skip = technique.skip(run.family)
        self.threshold, self.rate, self.drafted = technique.threshold, 0.0, 0

    def propose(self, ids: list[int], limit: int) -> Draft:
        tokens: list[int] = []
        laws: list[Tensor] = []
        for depth in range(min(self.technique.num_draft, limit)):
            logits = forward(self.run, [tokens[-1] if tokens else ids[-1]], [depth], skip=self.skip)[0]
            tokens.append(int(logits.argmax()))
            if not self.sampler.greedy:
                laws.append(self.sampler.probs(logits))
                if self.technique.draft_law == "drawn":
                    tokens[-1] = int(torch.multinomial(laws[-1], 1, generator=self.sampler.draft_generator))
            if float(logits.float().softmax(-1)[tokens[-1]]) < self.threshold:
                break
        self.run.rollback()
        self.drafted = len(tokens)
        return Draft.chain(tokens, torch.stack(laws) if laws and self.technique.draft_law != "point" else None)

    def heard(self, path: Accepted) -> None:
        technique, drafted = self.technique, self.drafted
        if not technique.adaptive or not drafted:
            return
        self.rate = technique.beta1 * self.rate + (1 - technique.beta1) * len(path.nodes) / drafted
        step = 0.0 if drafted == technique.num_draft else -technique.epsilon
        wanted = self.threshold + (technique.epsilon if self.rate < technique.alpha else step)
        self.threshold = technique.beta2 * self.threshold + (1 - technique.beta2) * wanted


@cache
def _found() -> dict[str, dict[str, list[int]]]:
    return json.loads(FOUND.read_text()) if FOUND.is_file() else {}
