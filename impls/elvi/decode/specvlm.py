"""SpecVLM: the drafter sees a pruned visual prompt, chosen by what the target attended to.

Ji et al., EMNLP 2025, arXiv:2508.16201.

Idea. A drafter's guesses hardly suffer when most of its visual tokens are gone, while what it reads in every step
falls. The target, which sees everything, has read the question already: the attention a_v that its question rows paid
to each visual token, mean over layers, heads and those rows, says which matter. Of n, K = floor(n keep_ratio) stay:

- stage I: the k1 tokens of highest attention, k1 least with sum_{j <= k1} a_(j) >= attention_share sum a, at most K;
- stage II: K - k1 of the others, evenly spaced in raster and time order.

The draft is a static tree of 25 nodes or a chain; the target verifies it exactly, so that the output is its own.

Where we differ. Tokens keep their rotary positions; the official code renumbers what is left from 0 on and turns M-RoPE
off for Qwen2.5-VL, for baseline and method alike (`positions="renumbered"` renumbers). The budget and the even spacing
are computed in integers. Ties go to the lower index. The drafter keeps rows of its tree in the cache where the official
one computes accepted rows again. When sampling, the tree is drawn without replacement and verified by rejection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.draft import ModelDrafting, Shape, check_drafter, check_shape
from elvi.core.facts import Fact
from elvi.core.plan import Plan
from elvi.core.seams import Layer
from elvi.errors import FitError, check_choice, check_range
from elvi.families.load import load_drafter

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.core.run import Run
    from elvi.core.seams import Drafting
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family
    from elvi.media import Clip

STATIC = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"


@dataclass(frozen=True)
class SpecVLM:
    """Draft on a pruned visual prompt, verify on the whole one; lossless.

    keep_ratio: share of the visual tokens that the drafter sees; attention_share: share of the attention that stage I
    takes; select: "guided" (both stages), "uniform" (stage II only) or "random"; draft: "auto" (the shipped drafter, or
    the target itself where there is none), "self", or a model as `elvi.load` takes it, with the target's vocabulary;
    tree: "static" (25 nodes, 5 deep) or "chain" of num_draft tokens; positions: "original" or "renumbered".
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHARED_VOCAB, Fact.ROW_PURE})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = True
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5))
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"tree": "chain"}, {"tree": "chain", "select": "random"})
    full: ClassVar[dict[str, Any] | None] = {}

    keep_ratio: float = 0.1
    attention_share: float = 0.4
    select: str = "guided"
    draft: str = "auto"
    tree: str = "static"
    num_draft: int = 10
    positions: str = "original"

    def __post_init__(self) -> None:
        for field, most in (("keep_ratio", 1), ("attention_share", 1), ("num_draft", 64)):
            check_range(self, field, 0, most)
        check_choice(self, "select", "guided", "uniform", "random")
        check_choice(self, "tree", "static", "chain")
        check_choice(self, "positions", "original", "renumbered")

    @property
    def question_attention(self) -> bool:
        return self.select == "guided"

    @property
    def shape(self) -> Shape:
        return Shape.chain(self.num_draft) if self.tree == "chain" else Shape.of(STATIC)

    def fit(self, family: Family) -> None:
        check_shape(self, family, self.shape)
        check_drafter(self, family, self._drafter(family))

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting:
        drafter = self._drafter(run.family)
        kept = self.choose(run.question_attention[run.layout.visual])
        pruned = _Pruned(self, run.family.name, drafter.name, int(run.layout.visual.sum()), kept)
        plan = Plan(pruned) if clip is not None and drafter.image_processor is not None else Plan()
        drafting = ModelDrafting(drafter, run, clip, sampler, self.shape, plan)
        if self.positions == "renumbered":
            drafting.run.next_position = drafting.run.store.lengths[0]
        return drafting

    def choose(self, attention: Tensor) -> Tensor:
        """Ascending index [K] of the visual tokens that the drafter sees; attention [n] of the question."""
        total = len(attention)
        count = int(total * self.keep_ratio + 1e-9)
        if self.select == "random":
            drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))
            return drawn[:count].sort().values.to(attention.device)
        first = attention.new_empty(0, dtype=torch.long)
        if self.select == "guided" and count:
            order = attention.sort(descending=True, stable=True).indices
            mass = attention[order].cumsum(0)
            short = int((mass < self.attention_share * mass[-1]).sum())  # prefixes that hold too little
            first = order[: min(short + 1, count)]
        rest = torch.ones(total, dtype=torch.bool, device=attention.device).index_fill(0, first, False).nonzero()[:, 0]
        return torch.cat([first, rest[evenly(len(rest), count - len(first))]]).sort().values

    def _drafter(self, target: Family) -> Family:
        return load_drafter(self.draft, target) or target


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` places, evenly spaced from the first to the last."""
    return [place * (total - 1) // max(count - 1, 1) for place in range(count)]


@dataclass(frozen=True)
class _Pruned:
    """Leaves the drafter the visual tokens `kept`, counted along the prompt."""

    of: SpecVLM
    target: str
    drafter: str
    total: int
    kept: Tensor
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    at: ClassVar[Layer] = Layer(0)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        if len(visual) != self.total:
            raise FitError(
                f"SpecVLM was asked to draft with {self.drafter}, which sees {len(visual)} visual tokens where "
                f"{self.target} sees {self.total}, so the target cannot choose among them: use a drafter of its family."
            )
        tokens = tokens.keep_visual(visual[self.kept])
        if self.of.positions == "original":
            return tokens
        return replace(tokens, position=torch.arange(len(tokens), device=self.kept.device).expand_as(tokens.position))
