"""CalibQuant: one bit per key channel for visual tokens, and logits corrected for it.

Han et al., 2025, arXiv:2502.14882. Visual keys and values repeat themselves, so they stand b bits per channel. With
lo, hi = c min, c max of a channel over all visual tokens (the shrink c < 1 spares one bit from outliers),

    step = (hi - lo) / (2^b - 1),    code = round((clip(x, lo, hi) - lo) / step),    x^ = lo + step code.

Extreme keys exaggerate the peaks of the visual logits, so with few bits these are mapped from [g_min, g_max] onto
[g_min, g_max - 3] before the softmax that they share with the exact text ("calibration").

Where we differ:
- Keys and values are restored to full precision when they are read. The released kernel folds step and lo into the
  query and never restores them; the logits are the same, its speed is not shown here, the memory is.
- The map would turn the order of logits round when they span less than 3. Here it lowers the peak to g_min at most.
- Visual tokens of all pictures are quantised and calibrated together, wherever they stand in the prompt; the released
  code knows one picture at a fixed offset.
- When heads hold different numbers of visual tokens, the surplus over the smallest number stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.bits import Levels, Pair, levels
from elvi.core.facts import Fact
from elvi.core.tokens import top
from elvi.errors import BudgetError, FitError, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView
    from elvi.families.family import Family

SHRINK_KEYS, SHRINK_VALUES = 0.5, 0.3  # c, used at one bit only
FEW_BITS = 2  # up to so many, logits are calibrated


@dataclass(frozen=True)
class CalibQuant:
    """Hold visual keys and values in `bits` (b) per channel; calibration moves the highest logit down by `lowering`.

    Bytes are those of the codes plus lo and step per channel. Raises BudgetError for values out of range, FitError for
    heads whose width does not fill whole bytes.
    """

    bits: int = 1
    lowering: float = 3.0

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SETTLED, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.EXACT_VALUES})
    lossless: ClassVar[bool] = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    full: ClassVar[dict[str, Any] | None] = None
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("bits", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise BudgetError(f"CalibQuant was asked for bits={self.bits}, which do not fill a byte: use 1, 2, 4 or 8.")
        check_range(self, "lowering", 0.0, float("inf"))

    def fit(self, family: Family) -> None:
        width = family.head_dim
        if width * self.bits % 8:
            raise FitError(
                f"CalibQuant was asked to put {self.bits} bits into heads {width} wide of {family.name}, which do not "
                f"fill whole bytes: use a number of bits that makes {width} times bits a multiple of 8."
            )

    def pack(self, views: list[LayerView]) -> None:
        for view in views:
            count = num_packed(view)
            if count:
                slots = top(view.visual.float(), count)
                wide = slots[..., None].expand(-1, -1, view.keys.shape[-1])
                shrink = (SHRINK_KEYS, SHRINK_VALUES) if self.bits == 1 else (1.0, 1.0)
                halves = (quantise(x.gather(1, wide), self.bits, c) for x, c in zip((view.keys, view.values), shrink))
                view.store.pack(Pair(*halves), slots)

    def attend(self, view: LayerView) -> Tensor | None:
        count = num_packed(view)
        if self.bits > FEW_BITS or not count:
            return None
        keys = view.keys[:, :count].repeat_interleave(len(view.query) // len(view.keys), dim=0)
        logits = view.query @ keys.mT * view.scaling
        bias = view.query.new_zeros(*view.query.shape[:2], view.keys.shape[1])
        bias[..., :count] = calibrated(logits, self.lowering) - logits
        return bias


def num_packed(view: LayerView) -> int:
    """How many slots of each head are packed (they stand first): what the head with the fewest visual tokens has."""
    return int(view.visual.sum(1).min())


def quantise(x: Tensor, bits: int, shrink: float) -> Levels:
    """x [H, m, d] in 2^bits levels per head and channel, their range shrunken towards zero (step 0 where constant)."""
    return levels(x, bits, x.amin(1, keepdim=True) * shrink, x.amax(1, keepdim=True) * shrink)


def calibrated(logits: Tensor, lowering: float) -> Tensor:
    """logits [..., m], their range [g_min, g_max] mapped onto [g_min, g_max - lowering], but no further than g_min."""
    low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
    span = high - low
    return logits - (logits - low) * span.clamp(max=lowering) / span.where(span > 0, 1)
