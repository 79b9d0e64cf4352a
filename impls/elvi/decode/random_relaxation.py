"""Random relaxation: a drafted token that differs from the target's is let through with a fixed chance.

Pilot study in "Efficient Inference for Large Vision-Language Models", ACL 2026 Findings, arXiv:2604.05546, section D.2.

Idea. It is the null hypothesis of relaxed verification: what does quality cost when one relaxes blindly? Verification
gives the target's greedy tokens y_i after the draft so far. Token d_i stands if d_i = y_i, and otherwise with chance r,
in which case the drafted token stays in the text; at the first that falls, y_i is emitted.

The law. Where drafts mismatch independently with rate e, a chain of K accepts MAL(e) = sum_{i=1..K} (1 - e)^i tokens on
average, the target's own token not counted, and relaxing by r puts (1 - r) e in place of e: six published cells of the
pilot's table follow it within 3 %.

Where we differ. The paper gives the idea, the chain of ten and the results; the steps are our reconstruction. One
random number is drawn per mismatch, from the run's own generator, so that r = 0 is strict and a seed repeats; exact
matches draw none. Ends and other special tokens are never relaxed, in either role: answers would be cut, or run on. In
a tree, where no sibling matches, the first one may pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.accept import accept_relaxed
from elvi.core.facts import Fact
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.core.run import Run
    from elvi.core.seams import Judge


@dataclass(frozen=True)
class RandomRelaxation:
    """Let mismatching drafts through with a fixed chance; not lossless, greedy decoding only.

    relaxation: the chance r; 0 is strict verification, 1 accepts everything but special tokens.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    greedy_only: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("specvlm:tree=chain,select=uniform",)
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("relaxation", (0.0, 0.5, 0.75))
    full: ClassVar[dict[str, Any] | None] = {"relaxation": 0.0}

    relaxation: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, "relaxation", 0, 1)

    def judge(self, run: Run, sampler: Sampler) -> Judge:
        strict = run.family.special_tokens
        return partial(accept_relaxed, strict=strict, passes=lambda *_: sampler.uniform() < self.relaxation)
