"""Q-Frame: query-aware frame selection and multi-resolution adaptation for video LLMs.

Zhang et al., ICCV 2025, arXiv:2506.22139. Frames are ranked by how well they fit the question, by chance, and pixels
are spent by rank. With l_t the dot product of CLIP's embeddings (not normalised) of frame t and of the question,

    p = softmax(l / tau),    g_t = -log(-log u_t) with u_t uniform in (0, 1),    rank by log p_t + g_t, highest first,

which draws frames without replacement, each time in proportion to p (the Gumbel top-k trick). The first n_h are read at
1/2 of their sides, the next n_m at 1/4, the next n_l at 1/8, the others not at all; then all stand in their order in
time, as separate images. That costs as much as K = n_h + n_m / 4 + n_l / 16 frames at the high resolution. With
n_m = n_l = 0 it is the paper's setting of a fixed number of frames.

Where we differ:
- Defaults are a quarter of the scripts' counts (4, 8, 32), K = 2 instead of 8, since clips here are short.
- Sides are shares of the size at which the model reads a frame, not of the source: the same where the source is within
  the model's bounds, and above them the levels stay apart. One resampling does it (Lanczos), without a JPEG between.
- Sizes below the least that a model reads are that size; the code lets them be shrunk and enlarged again. Where the
  high level is low enough for that, all levels are one (tiny-qwen reads no frame below the size of its clips).
- Noise has a seed, so that runs repeat. As softmax only shifts l / tau, ranks are those of l / tau + g, which stays
  finite where the code takes the logarithm of a probability of zero.
- The scorer is any CLIP model (default: the shipped tiny-clip), the paper's is LongCLIP-L at 336 pixels. It reads the
  whole question; the code cuts options off by rules of its benchmarks.
- A high level of whole frames alone (scale 1, n_m = n_l = 0) remains a video, in which two frames share a time step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from elvi.core.facts import Fact
from elvi.errors import BudgetError, FitError, check_range
from elvi.families.clip import frame_scorer
from elvi.media import uniform

if TYPE_CHECKING:
    from elvi.media import Clip

LEVELS = (1.0, 0.5, 0.25)  # of the high level's sides


@dataclass(frozen=True)
class QFrame:
    """Draw the frames that fit the question, and show the first of them large and the last of them small.

    num_high, num_medium, num_low: n_h, n_m, n_l, time steps at each level, the last cut first in short clips;
    scale: share of the sides of a frame at the high level, of which the others are a half and a quarter; tau:
    temperature of the ranking; num_candidates: T, evenly spread steps that are looked at; noise: False ranks without
    chance; seed: of the noise; scorer: CLIP folder, hub id or tiny-clip.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    num_high: int = 1
    num_medium: int = 2
    num_low: int = 8
    scale: float = 0.5
    tau: float = 0.8
    num_candidates: int = 128
    noise: bool = True
    seed: int = 0
    scorer: str = "tiny-clip"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.NATIVE_RESOLUTION})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"num_high": 1_000_000, "num_candidates": 1_000_000, "scale": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("num_low", (0, 2, 4, 8))

    def __post_init__(self) -> None:
        for field in ("num_high", "num_medium", "num_low"):
            check_range(self, field, 0, float("inf"))
        check_range(self, "num_candidates", 1, float("inf"))
        check_range(self, "scale", 0, 1, open_low=True)
        check_range(self, "tau", 0, float("inf"), open_low=True)
        if self.num_high + self.num_medium + self.num_low == 0:
            raise BudgetError("QFrame was asked for no frame at any level, so nothing would be seen: use 1 or more.")

    def resize(self, clip: Clip, question: str | None) -> np.ndarray:
        if not question:
            raise FitError("QFrame ranks frames by the question, but none was asked: ask one, or drop QFrame.")
        candidates = uniform(len(clip), min(len(clip), self.num_candidates))
        logits = frame_scorer(self.scorer).products(clip.take(candidates), question).numpy()
        shares = np.repeat(LEVELS, (self.num_high, self.num_medium, self.num_low))[: len(candidates)] * self.scale
        chosen = candidates[self.ranked(logits)[: len(shares)]]
        sizes = np.zeros(len(clip))
        sizes[chosen] = shares
        return sizes

    def ranked(self, logits: np.ndarray) -> np.ndarray:
        """Index of logits [T] in the order in which they are drawn; equal ones without noise in their own order."""
        key = logits.astype(np.float64) / self.tau
        if self.noise:
            key += np.random.default_rng(self.seed).gumbel(size=len(key))
        return np.argsort(-key, kind="stable")
