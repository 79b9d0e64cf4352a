"""Speculative sampling: a cheap drafter proposes, the model verifies all proposals in one forward.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023, arXiv:2211.17192; Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling", 2023, arXiv:2302.01318.

Idea. The drafter proposes gamma tokens d_i ~ q_i; one forward of the target gives p_1 ... p_{gamma+1}. Token d_i stands
with probability min(1, p_i(d_i) / q_i(d_i)). At the first that falls, norm(max(p_i - q_i, 0)) is drawn from instead; if
none falls, p_{gamma+1} adds one more (`elvi.core.accept`). The emitted tokens follow the law of plain sampling, and
greedily they are the very same. Where drafts stand independently with rate alpha = sum_x min(p, q), a round emits
(1 - alpha^(gamma+1)) / (1 - alpha) tokens on average (Leviathan, eq. 1).

Where we differ. The drafter may be a vision-language model: it sees the frames that the target saw, through its own
tower (`elvi.core.draft`). `branching` > 1 turns the chain into a static tree: that many distinct first tokens, each
continued by a chain; when sampling they are drawn without replacement and verified in turn (SpecInfer,
arXiv:2305.09781). Without a drafter model the text so far is the drafter: what followed the earliest occurrence of its
last n tokens is proposed (prompt lookup, Saxena 2023). Heads padded to different widths are cut to the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from elvi.core.accept import Draft, Path, Sampler
from elvi.core.draft import ModelDrafting, Shape, check_drafter, check_shape
from elvi.core.facts import Fact
from elvi.errors import check_range
from elvi.families.load import load_drafter

if TYPE_CHECKING:
    from elvi.core.run import Run
    from elvi.core.seams import Drafting
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class SpeculativeSampling:
    """Draft with a smaller model (or by lookup in the text so far), verify with the target; lossless.

    draft: "auto" (the shipped drafter of the target if there is one, else "ngram"), "ngram", "self" (the target), or a
    model as `elvi.load` takes it, which must share the target's vocabulary; num_draft: gamma, how deep a draft is;
    branching: distinct first tokens of a draft; max_ngram, min_ngram: longest and shortest ending of the text that is
    looked up (one token that occurred before says little about what comes next).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHARED_VOCAB, Fact.ROW_PURE})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = True
    sweep: ClassVar[tuple[str, tuple[int, ...]]] = ("num_draft", (2, 5, 8))
    full: ClassVar[dict[str, Any] | None] = {}

    draft: str = "auto"
    num_draft: int = 5
    branching: int = 1
    max_ngram: int = 3
    min_ngram: int = 2

    def __post_init__(self) -> None:
        check_range(self, "num_draft", 0, 64)
        check_range(self, "branching", 1, 16)
        check_range(self, "max_ngram", 1, 16)
        check_range(self, "min_ngram", 1, self.max_ngram)

    @property
    def shape(self) -> Shape:
        return Shape.branches(self.branching, self.num_draft)

    def fit(self, family: Family) -> None:
        check_shape(self, family, self.shape)
        drafter = self._drafter(family)
        if drafter is not None:
            check_drafter(self, family, drafter)

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting:
        drafter = self._drafter(run.family)
        if drafter is None:
            return _Lookup(self, run.layout.token.cpu().numpy())
        return ModelDrafting(drafter, run, clip, sampler, self.shape)

    def _drafter(self, target: Family) -> Family | None:
        """The model that drafts, or None for lookup in the text."""
        return None if self.draft == "ngram" else load_drafter(self.draft, target)


class _Lookup:
    """The text so far as its own drafter; its proposals are points."""

    def __init__(self, technique: SpeculativeSampling, prompt: np.ndarray) -> None:
        self.technique, self.prompt = technique, prompt

    def propose(self, ids: list[int], limit: int) -> Draft:
        technique, text = self.technique, np.concatenate([self.prompt, ids])
        tokens: list[int] = []
        parents: list[int] = []
        for start in _continuations(text, technique.max_ngram, technique.min_ngram)[: technique.branching]:
            chain = text[start : start + min(technique.num_draft, limit)].tolist()
            parents += [-1, *range(len(tokens), len(tokens) + len(chain) - 1)][: len(chain)]
            tokens += chain
        return Draft(tokens, parents)

    def heard(self, path: Path) -> None:
        """Nothing is kept between rounds: the text is all there is."""


def _continuations(text: np.ndarray, max_ngram: int, min_ngram: int) -> list[int]:
    """Where the longest ending of the text that occurred before was continued: first places, distinct next tokens."""
    for size in range(min(max_ngram, len(text) - 1), min_ngram - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
        starts = np.flatnonzero((windows == text[-size:]).all(-1)) + size
        if len(starts):
            return starts[np.sort(np.unique(text[starts], return_index=True)[1])].tolist()
    return []
