"""KeyVideoLLM: keyframes by the similarity of text and frames, coarse to fine.

Liang et al., 2024, arXiv:2407.03104. A frame v is worth its cosine with the text w in CLIP's joint space,

    score(v, w) = v w / (|v| |w|).

A coarse pass scores n frames spread evenly over the clip, and the k best of them are kept: no threshold, nothing to
tune. At inference the text is the question (CLIP-Q); question and answer together (CLIP-QA) are for training data, for
the answer would give itself away.

Nothing keeps the best frames apart, so that all k may come from one shot.

Where we differ:
- (R) Known to us from the abstract and from summaries. How the second pass is fine is our reconstruction: each frame of
  the coarse pass is the middle of one of n equal parts of the clip, and gives way to the best frame of its part. With
  `fine=False` the coarse frames stay. Frames come back in temporal order, ties go to the earlier one.
- (R) n and k are not stated; where k is larger than n, there are k parts.
- The frames are those the model would have been shown without a selection. Texts longer than CLIP reads are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from elvi.core.facts import Fact
from elvi.errors import check_asked, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.media import Clip


@dataclass(frozen=True)
class KeyVideoLLM:
    """Choose the time steps most like the question, among a few spread over the clip and then among their neighbours.

    num_frames: k, time steps chosen; candidates: n, time steps scored in the coarse pass; fine: whether the best of a
    part replaces its middle; scorer: CLIP folder, hub id or tiny-clip.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    num_frames: int = 8
    candidates: int = 64
    fine: bool = True
    scorer: str = "tiny-clip"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"num_frames": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("num_frames", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        check_range(self, "num_frames", 1, float("inf"))
        check_range(self, "candidates", 1, float("inf"))

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        if len(clip) <= self.num_frames:
            return np.arange(len(clip))
        check_asked(self, question)
        judge = frame_scorer(self.scorer)
        return self.keyframes(len(clip), lambda frames: judge.scores(clip.take(frames), question).numpy())

    def keyframes(self, total: int, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Ascending index [k] of `total` frames; `score` looks at the frames [n] it is given."""
        count = min(total, max(self.candidates, self.num_frames))
        start = np.arange(count + 1) * total // count
        middle = (start[:-1] + start[1:] - 1) // 2
        scores = np.full(total, -np.inf)
        scores[middle] = score(middle)
        best = np.sort(np.argsort(-scores[middle], kind="stable")[: self.num_frames])
        if not self.fine:
            return middle[best]
        parts = [np.arange(start[part], start[part + 1]) for part in best]
        others = np.setdiff1d(np.concatenate(parts), middle)
        if len(others):
            scores[others] = score(others)
        return np.array([part[scores[part].argmax()] for part in parts])
