"""TokenTiming: a drafter with any tokenizer, its tokens aligned to the target's by dynamic time warping.

"TokenTiming: A Dynamic Alignment Method for Universal Speculative Decoding Model Pairs", ACL 2026, arXiv:2510.15545.

Idea. The draft s_1 ... s_k is turned into text and spelt with the target's tokenizer: proxy tokens t_1 ... t_m, which
the target verifies. Both sequences are warped onto each other over the edit distance of their strings,

    C(i, j) = levenshtein(s_i, t_j) + min(C(i-1, j-1), C(i-1, j), C(i, j-1)),   |i - j| <= max(band, |k - m|),

and on the way each proxy token inherits a draft probability, with which speculative sampling accepts or rejects it.

Whether it is lossless. With q_mode="point", the default, a proxy token is a proposal without probability: it stands
with chance p(t_j), else p without t_j is drawn from. That keeps the target's law for any proposal, and needs no
alignment; the official code amounts to it. q_mode="transferred" is the paper's: min(1, p(t_j) / q) with q inherited
from the drafter. Since q is not the chance with which t_j came to be proposed, sampling is approximate; a test measures
its bias. Greedily both are exact, and t_j stands if it is the target's best.

Where we differ. The draft is spelt together with the last few emitted tokens, so that it joins them as text does
(`elvi.core.bridge`), and the drafter's context is spelt anew from what was accepted, where the official code cuts it by
a count of target tokens. Ends of text can be drafted. Of several drafter tokens aligned to one proxy token the first
gives its probability, as officially. Ties on the way back prefer the diagonal, then s, then t.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from elvi.core.accept import Draft, Path
from elvi.core.bridge import TextDrafting, check_text_drafter, surfaces, text_drafter
from elvi.core.facts import Fact
from elvi.core.warp import warp
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.core.run import Run
    from elvi.core.seams import Drafting
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class TokenTiming:
    """Draft with a text model that has its own tokenizer; lossless with q_mode="point".

    draft: "auto" (the text drafter that ships for the target), or a model as `elvi.load` takes it; num_draft: tokens of
    the drafter per round; q_mode: "point" or "transferred" (approximate when sampling); band: half width of the warping
    band; threshold: drafting stops where the drafter gives no token as much.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.ROW_PURE})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    sweep: ClassVar[tuple[str, tuple[int, ...]]] = ("num_draft", (4, 8, 16))
    full: ClassVar[dict[str, Any] | None] = {}

    draft: str = "auto"
    num_draft: int = 8
    q_mode: str = "point"
    band: int = 8
    threshold: float = 0.4

    def __post_init__(self) -> None:
        check_range(self, "num_draft", 0, 64)
        check_range(self, "band", 0, 1_000)
        check_range(self, "threshold", 0, 1)
        check_choice(self, "q_mode", "point", "transferred")

    @property
    def lossless(self) -> bool:
        return self.q_mode == "point"

    def fit(self, family: Family) -> None:
        check_text_drafter(self, family, text_drafter(self, self.draft, family))

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting:
        return _Timed(self, text_drafter(self, self.draft, run.family), run, sampler)


class _Timed:
    """Drafting on one sequence."""

    def __init__(self, technique: TokenTiming, drafter: Family, target: Run, sampler: Sampler) -> None:
        self.technique, self.target, self.sampler = technique, target, sampler
        self.drafter = TextDrafting(drafter, target, sampler)
        self.transfer = technique.q_mode == "transferred" and not sampler.greedy

    def propose(self, ids: list[int], limit: int) -> Draft:
        time = self.target.meter.time
        with time("bridge"):
            context = self.drafter.spell(ids)
        if not context or not self.technique.num_draft:
            return Draft()
        technique = self.technique
        drafted = self.drafter.draft(context, technique.num_draft, drawn=self.transfer, threshold=technique.threshold)
        with time("bridge"):
            proxy = self.drafter.respell(ids, context, drafted.tokens)[:limit]
            if not self.transfer or not proxy:
                return Draft.chain(proxy)
            chance = [float(law[token]) for token, law in zip(drafted.tokens, drafted.laws)]
            pairs = align(self.drafter.run.family, drafted.tokens, self.target.family, proxy, self.technique.band)
            law = torch.zeros(len(proxy), self.drafter.head_width)
            for s, t in reversed(pairs):  # the first that is aligned is written last
                law[t, proxy[t]] = chance[s]
            return Draft.chain(proxy, law)

    def heard(self, path: Path) -> None:
        """The drafter reads what was accepted when it is asked again."""


def align(left: Family, s: list[int], right: Family, t: list[int], band: int) -> list[tuple[int, int]]:
    """The warping path between tokens of two families: pairs of places (i, j), from the first to the last."""
    return list(zip(*(side.tolist() for side in warp(*strings(left), np.array(s), *strings(right), np.array(t), band))))


@lru_cache(maxsize=8)
def strings(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """All tokens' strings in a row as int32 code points, and where each begins, int32 [V + 1]."""
    texts = [text or "" for text in surfaces(family)]
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return np.array([ord(letter) for letter in "".join(texts)], np.int32), ends
