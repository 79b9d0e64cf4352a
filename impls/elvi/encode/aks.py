"""AKS: adaptive keyframe sampling for long video understanding.

Tang et al., CVPR 2025, arXiv:2502.21271. Choose M frames that fit the question and cover the video: score every frame
against the question; when the best frames of a stretch stand out from its mean, take them, else halve the stretch and
its quota and look at each half.

Where we differ:
- The scorer is a CLIP model (default: the shipped tiny-clip); the released code defaults to BLIP's matching head.
- A stretch is judged by as many of its best frames as its own quota; the released code takes the quota of the whole
  video throughout, so that short stretches never stand out.
- Exactly min(M, T) frames come back: an odd quota gives its extra frame to the half with the better best frame, and
  what a short half cannot hold goes to the other. The released code rounds quotas down and may return none.
- Equal scores count as zeros (the released code divides by zero). The frames are those the model would have been
  shown without a selection; the released code scores one a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from elvi.core.facts import Fact
from elvi.core.frames import spanned
from elvi.errors import check_asked, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from elvi.media import Clip


@dataclass(frozen=True)
class AKS:
    """Choose the time steps that fit the question best while covering the clip.

    num_frames: M, time steps chosen; gap: t1, how far the mean of the best must lie above the mean of a stretch
    (scores span 0 to 1); deviation: t2, standard deviation that the stretch must exceed (negative: not asked for);
    depth: D, how often a stretch is halved at most (0: plain best M); scorer: CLIP folder, hub id or tiny-clip.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    num_frames: int = 64
    gap: float = 0.8
    deviation: float = -100.0
    depth: int = 5
    scorer: str = "tiny-clip"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"num_frames": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("num_frames", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        check_range(self, "num_frames", 1, float("inf"))
        check_range(self, "depth", 0, float("inf"))

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        if len(clip) <= self.num_frames:
            return np.arange(len(clip))
        check_asked(self, question)
        score = spanned(frame_scorer(self.scorer).scores(clip, question).numpy())
        return np.sort(self.keyframes(score, 0, len(score), self.num_frames, 0))

    def keyframes(self, score: np.ndarray, start: int, stop: int, quota: int, depth: int) -> np.ndarray:
        """Judge and split: `quota` indices from start ... stop - 1 (unsorted) of score [T]."""
        part = score[start:stop]
        best = start + np.argsort(-part, kind="stable")[:quota]
        stands_out = quota > 0 and score[best].mean() - part.mean() > self.gap and part.std() > self.deviation
        if quota in (0, len(part)) or stands_out or depth == self.depth:
            return best
        middle = start + len(part) // 2
        left = share(score[start:middle], score[middle:stop], quota)
        return np.concatenate(
            [
                self.keyframes(score, start, middle, left, depth + 1),
                self.keyframes(score, middle, stop, quota - left, depth + 1),
            ]
        )


def share(left: np.ndarray, right: np.ndarray, quota: int) -> int:
    """How much of a quota the left half gets: half of it, an odd one to the better half, and no more than fits."""
    odd = quota % 2 if left.max() >= right.max() else 0
    return min(len(left), max(quota // 2 + odd, quota - len(right)))
