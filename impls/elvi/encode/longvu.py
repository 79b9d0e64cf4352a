"""LongVU: spatiotemporal adaptive compression of long videos, each step only as far as the context demands.

Shen et al., ICML 2025, arXiv:2410.17434. With v_t the features of all patches of frame t as one vector of length one:

A. Frames. In windows of 16, a frame goes if its mean cosine with the others is 0.83 or more; the middle one stays.
B. (Features of two towers are fused by trained queries: not here.)
C. Resolution. Where T frames of n tokens do not fit into the room R, some keep them and others are pooled to m,

       N = floor((R - T m) / (n - m)) frames keep theirs: those whose pooled tokens have the highest mean product with
       the embeddings of the question.

D. Tokens. Where not even T m fit, all frames are pooled; in chunks of 8 the first one stays whole, and of the others
   each token goes whose cosine with that at the same place of the first one is theta or more.

Where we differ:
- (R) None of it is trained here. A looks at patch features of CLIP (default: the shipped tiny-clip) instead of DINOv2;
  C pools merged tokens, by the mean of 2 x 2 of them, instead of tower features to 8 x 8 of 12 x 12 before the adapter.
- (R) The room is a share of the visual tokens of the frames that A left, as nothing here is longer than a context. A
  acts if that share is below 1, for tokens are not counted yet when frames are chosen.
- The mean in A leaves a frame itself out, as in the paper; the released code counts it, which thins out short windows.
- Where D leaves too much, those most like their first frame go next, then first frames from the end, until it fits;
  the released code cuts as many from the end of every chunk. Its theta is 0.8, 0.6 or 0.7, the default of the training
  arguments is ours.
- The released code numbers what is left anew, as positions="compact" does. Pooled tokens stand at their first place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range
from elvi.families.clip import frame_scorer
from elvi.media import uniform

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.media import Clip


@dataclass(frozen=True)
class LongVU:
    """Drop frames like their neighbours, pool those that do not fit the question, drop tokens that repeat.

    keep_ratio: share of the visual tokens that there is room for; frame_threshold: of A, frame_window its frames,
    max_frames: most that it leaves; pool: side of the squares of tokens that become one; chunk: frames of a chunk;
    token_threshold: theta; scorer: CLIP folder, hub id or tiny-clip; positions: "original" or "compact".
    Raises BudgetError for values out of range, FitError without a CLIP model.
    """

    keep_ratio: float = 0.5
    frame_threshold: float = 0.83
    frame_window: int = 16
    max_frames: int = 400
    pool: int = 2
    chunk: int = 8
    token_threshold: float = 0.8
    scorer: str = "tiny-clip"
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        for field in ("frame_threshold", "token_threshold"):
            check_range(self, field, -1.0, float("inf"))
        for field in ("frame_window", "max_frames", "pool", "chunk"):
            check_range(self, field, 1, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        frames = np.arange(len(clip))
        if self.keep_ratio == 1 or len(clip) == 1:
            return frames
        judge, kept = frame_scorer(self.scorer), []
        for window in np.split(frames, range(self.frame_window, len(clip), self.frame_window)):
            kept += [*window[distinct(judge.patch_features(clip.take(window)).flatten(1), self.frame_threshold)]]
        return np.array(kept)[uniform(len(kept), min(len(kept), self.max_frames))]

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        room = budget(self.keep_ratio, frames.numel())
        if room == frames.numel():
            return tokens
        owner = squares(tokens, self.pool)
        pooled = tokens.fold(owner)
        places = pooled.frames  # [T, m]
        if places.numel() > room:
            return pooled.keep_visual(places.flatten()[self.news(pooled.hidden[places].float(), room)])
        count = (room - places.numel()) // (frames.shape[1] - places.shape[1])
        question = tokens.hidden[seen.question_index].float().mean(0)
        whole = frames[top(pooled.hidden[places].float().mean(1) @ question, count)].flatten()
        return tokens.fold(owner.index_copy(0, whole, whole))

    def news(self, hidden: Tensor, room: int) -> Tensor:
        """Index [k] among the T m tokens of frames [T, m, D] of those that tell most from the first of their chunk."""
        first = torch.arange(len(hidden), device=hidden.device) // self.chunk * self.chunk
        likeness = cosine_similarity(hidden, hidden[first], dim=-1)
        likeness[:: self.chunk] = float("-inf")
        fitting = min(room, int((likeness < self.token_threshold).sum()))
        return top(-likeness.flatten(), fitting)


def distinct(features: Tensor, threshold: float) -> np.ndarray:
    """bool [n]: which of a window's frames, by features [n, d], are unlike the others, or in the middle."""
    unit, others = normalize(features, dim=-1), max(1, len(features) - 1)
    stays = (unit @ unit.sum(0) - 1) / others < threshold
    stays[len(stays) // 2] = True
    return stays.numpy()


def squares(tokens: Tokens, side: int) -> Tensor:
    """owner [N]: the first token in the same square of its frame's grid; text owns itself."""
    visual = tokens.visual.nonzero()[:, 0]
    place = tokens.cell[visual] // torch.tensor([1, side, side], device=visual.device)
    _, group = place.unique(dim=0, return_inverse=True)
    first = torch.full_like(group, len(tokens)).scatter_reduce(0, group, visual, "amin")
    return torch.arange(len(tokens), device=visual.device).index_copy(0, visual, first[group])
