"""VidCom2: frames unlike the rest of the video get more tokens, and tokens unlike their surroundings stay.

Liu et al., EMNLP 2025, arXiv:2505.14454. Before the language model and without the question, in time linear in the
number of tokens:

1. The half of the channels that varies least over all tokens, in which every token is given length one: u_t,i.
2. Likeness to the video and to the frame, with c the mean of all u and c_t that of frame t:
   v_t,i = sum_{k = -3 ... 1} exp(-|u_t,i - c|^2 / (2 2^k)),    f_t,i the same with c_t.
3. Frame t may keep s_t n of its n tokens, s_t = min(1, r (1 + p_t - 1/T)), where p is the softmax over frames of
   -mean_i v_t,i / 0.01, one token at least.
4. Those with the lowest v + f stay as they were, at their positions.

Where we differ:
- r = 1 keeps everything. By the formula, and in the released code, frames that are like the mean lose tokens even then.
- s_t n is rounded half up, not half to even, and of equal scores the earlier stays.
- One channel at least is looked at; the released code finds none in features of width 1.

The channels are chosen by their raw values: scaling single tokens may change the choice, although lengths are gone
afterwards. What one frame gains over r others lose, but where s_t is cut off at 1 or a frame keeps its one token, the
total is not r T n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # of the Gaussians


@dataclass(frozen=True)
class VidCom2:
    """Give frames tokens by how unlike the video they are, and keep those unlike the means of frame and video.

    keep_ratio: r; channel_ratio: share of the channels that is looked at, those that vary least; temperature: of the
    softmax over frames, above 0; positions: "original" (as in the released code for Qwen) or "compact" (as in the one
    for LLaVA). Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    channel_ratio: float = 0.5
    temperature: float = 0.01
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.EQUAL_FRAMES, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "channel_ratio", 0.0, 1.0)
        check_range(self, "temperature", 0.0, float("inf"), open_low=True)
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        if self.keep_ratio == 1.0 or not frames.numel():
            return tokens
        unit = normalize(steady(tokens.hidden[frames].float(), self.channel_ratio), dim=-1)
        video = likeness(unit, unit.mean((0, 1)))
        score = video + likeness(unit, unit.mean(1, keepdim=True))
        quota = counts(video.mean(1), self.keep_ratio, self.temperature, frames.shape[1])
        kept = [frame[top(-each, count)] for frame, each, count in zip(frames, score, quota)]
        return tokens.keep_visual(torch.cat(kept))


def steady(features: Tensor, share: float) -> Tensor:
    """The share of the channels of features [T, n, D] that varies least over all tokens, one at least."""
    variance = features.flatten(0, 1).var(0, unbiased=False)
    return features[..., top(-variance, max(1, int(share * len(variance))))]


def likeness(unit: Tensor, centre: Tensor) -> Tensor:
    """Gaussians of several widths, summed, of the distance [T, n] of tokens [T, n, d] to their centre."""
    squared = (unit - centre).square().sum(-1)
    return torch.stack([(-squared / (2 * width)).exp() for width in WIDTHS]).sum(0)


def counts(alike: Tensor, keep_ratio: float, temperature: float, length: int) -> list[int]:
    """How many of its `length` tokens each frame keeps, by how much it is like the video, alike [T]."""
    share = (-alike.double() / temperature).softmax(0)
    scale = (keep_ratio * (1 + share - 1 / len(share))).clamp(max=1.0)
    return [max(1, budget(each, length)) for each in scale.tolist()]
