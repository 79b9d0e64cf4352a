"""TimeChat-Online: what is almost the same as in the frame before is dropped (differential token drop, DTD).

Yao et al., ACM MM 2025, arXiv:2504.17343. Only the rule is here: it has no parameters and works on models as they are,
the released checkpoint is tuned for it. Before the language model and without the question, a token of any frame but
the first is dropped if it is too much like the one at the same place in the frame before,

    features: cos(x_t,i, x_t-1,i) > tau        pixels: 1 - mean |RGB_t - RGB_t-1| over the patch > tau, RGB from 0 to 1

or, where a share is fixed, if it is among the most alike of its frame. The frame before counts whole, with what was
dropped of it. Survivors keep their positions, so the model still knows when and where they are. What stays of a frame
depends on frames up to it alone, so that a stream is read as a clip would be, step by step.

Where we differ:
- tau of pixels is one minus the paper's. `keep_ratio` is the share of a frame that stays, one minus the paper's,
  rounded half up; of equals the earlier token stays. Cosines are cut off at 1, so that tau = 1 drops nothing.
- By the paper a scene that changes slowly disappears altogether, for every step of it is small. reference="kept"
  compares with the last token that stayed at the place instead (ours).
- Pixels are those of the frame as it came, in as many parts as it has tokens (R), and are not at hand in a stream.
- Frames are told apart by their time steps; the released code goes by positions, which two videos may share. Answers
  that are triggered when little is dropped are left out.
- The last row of a piece of a stream stays whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import FitError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.media import Clip


@dataclass(frozen=True)
class TimeChatOnline:
    """Drop tokens that are like the one at the same place in the frame before.

    threshold: tau (paper: 0.5, its demonstration 0.25); keep_ratio: share of every later frame that stays, in place of
    the threshold; method: "features" or "pixels"; reference: "frame", the one before, or "kept", the last token that
    stayed at the place. Raises BudgetError for values out of range, FitError for pixels in a stream.
    """

    threshold: float = 0.5
    keep_ratio: float | None = None
    method: str = "features"
    reference: str = "frame"

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"threshold": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("threshold", (0.0, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "threshold", -1.0, 1.0)
        if self.keep_ratio is not None:
            check_range(self, "keep_ratio", 0.0, 1.0)
        check_choice(self, "method", "features", "pixels")
        check_choice(self, "reference", "frame", "kept")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        if not frames.numel():
            return tokens
        shown = tokens.hidden[frames].float() if self.method == "features" else self._patches(tokens, seen)
        before, stays = seen.memory.get("before"), []  # of a stream: from the piece before
        for frame, now in zip(frames, shown):
            kept = torch.ones_like(frame, dtype=torch.bool) if before is None else self._differ(now, before)
            stays.append(frame[kept])
            before = now if before is None or self.reference == "frame" else torch.where(kept[:, None], now, before)
        seen.memory["before"] = before
        return tokens.keep_visual(torch.cat(stays))

    def _differ(self, now: Tensor, before: Tensor) -> Tensor:
        """bool [n]: which tokens of a frame, shown by [n, C], are not too much like those before them."""
        if self.method == "features":
            alike = cosine_similarity(now, before, dim=-1).clamp(max=1.0)
        else:
            alike = 1 - (now - before).abs().mean(-1)
        if self.keep_ratio is None:
            return alike <= self.threshold
        return torch.zeros_like(alike, dtype=torch.bool).index_fill(
            0, top(-alike, budget(self.keep_ratio, len(alike))), True
        )

    def _patches(self, tokens: Tokens, seen: Seen) -> Tensor:
        if seen.clip is None:
            raise FitError(
                "TimeChatOnline was asked to compare pixels in a stream, which does not keep them: use method=features."
            )
        steps, height, width = (tokens.cell.amax(0) + 1).tolist()
        return patches(seen.clip, steps, height, width).to(tokens.hidden.device)


def patches(clip: Clip, steps: int, height: int, width: int) -> Tensor:
    """What each token of the grid shows, [steps, height * width, C]: RGB from 0 to 1 of all frames of its time step."""
    pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255  # [F, 3, H, W]
    sides = [max(1, total // parts) for total, parts in zip(pixels.shape[2:], (height, width))]
    pixels = interpolate(pixels, (height * sides[0], width * sides[1]), mode="nearest")
    parts = pixels.view(steps, -1, 3, height, sides[0], width, sides[1])  # [steps, frames, 3, ...]
    return parts.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)
