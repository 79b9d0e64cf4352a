"""VidKV: keys in one or two bits by the range of their channels, values in three levels.

Tao et al., "Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models", 2025, arXiv:2503.16257. Two
bits per number hardly hurt video models, so go lower. Keys and values are both quantised per channel, over groups of
g consecutive tokens in each head:

- keys, b_K bits on average: the share b_K - 1 of the channels with the widest range in the layer takes two bits, evenly
  from the least to the greatest of the group. The others go through a Fourier transform over these channels, which
  spreads what outliers are left; of every number in the spectrum only the sign stays, x^ = alpha sign(x), alpha = mean
  |x| of its group.
- values, 1.58 bits: x^ = alpha sign(x) where |x| > mean |x| / 2, else 0, with the same alpha.

After the prompt all complete groups are packed; what is left over and what is decoded stay exact until the two are
`residual_length` rows, whose complete groups then are packed too.

Where we differ:
- What is packed is never packed again, and its channels are ranked by their range in what is packed together. The
  released code restores the whole cache at each flush and quantises it anew, so that errors add up.
- The dequantisers follow the formulas: the released ones leave alpha out of the values, and give {0, alpha} for signs.
- The spectrum of n real numbers is symmetric: n numbers, one bit each, where the released code stores two per channel.
- Drafts end where a flush is due, so that speculation reads what plain decoding reads.
- The variant in which salient visual tokens take two bits is left out: its list of tokens comes from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.bits import Coded, Levels, levels, signs, ternary
from elvi.core.facts import Fact
from elvi.core.tokens import top
from elvi.errors import BudgetError, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView

TERNARY = 1.58


@dataclass(frozen=True)
class VidKV:
    """Hold keys in `key_bits` (b_K) bits, values in 1.58 (ternary) or 2, over groups of `group_size` (g) tokens.

    residual_length: as many exact rows are packed. Bytes are those of the codes (five trits in each) and, per group and
    channel, of least and step, or alpha; and two per two-bit channel for its number. Raises BudgetError.
    """

    key_bits: float = 1.5
    value_bits: float = TERNARY
    group_size: int = 32
    residual_length: int = 128

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SETTLED, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.EXACT_VALUES, Fact.SETTLED})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"group_size": 1 << 20, "residual_length": 1 << 20}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("key_bits", (1.0, 1.25, 1.5, 2.0))

    def __post_init__(self) -> None:
        check_range(self, "key_bits", 1.0, 2.0)
        if self.value_bits not in (TERNARY, 2):
            raise BudgetError(f"VidKV was asked for value_bits={self.value_bits}, which has no code: use 1.58 or 2.")
        if self.group_size < 8 or self.group_size % 8:
            what = f"group_size={self.group_size}, whose bits do not fill whole bytes"
            raise BudgetError(f"VidKV was asked for {what}: use a multiple of 8.")
        check_range(self, "residual_length", self.group_size, float("inf"))

    def pack(self, views: list[LayerView]) -> int:
        for view in views:
            rows = view.store.rows
            count = rows.longest // self.group_size * self.group_size
            if count and (view.phase == "prompt" or rows.longest >= self.residual_length):
                keys, values = (x[:, :count] for x in rows.read())
                packed = quantise(keys, values, self.group_size, self.key_bits, self.value_bits)
                view.store.pack(packed, torch.arange(count, device=keys.device).expand(len(keys), -1))
        return min(self.residual_length - view.store.rows.longest for view in views)


@dataclass(frozen=True)
class Groups:
    """Complete groups of one layer: key channels `hard` int16 [k] as levels, the others' spectrum as signs, values."""

    hard: Tensor
    strong: Coded
    weak: Coded
    values: Coded

    @property
    def nbytes(self) -> int:
        return self.hard.nbytes + self.strong.nbytes + self.weak.nbytes + self.values.nbytes

    def unpack(self) -> tuple[Tensor, Tensor]:
        values = _rows(self.values.restore())
        keys = torch.empty_like(values)
        easy = _others(self.hard, keys.shape[-1])
        keys[..., self.hard.long()] = _rows(self.strong.restore())
        keys[..., easy] = inverse_spectrum(_rows(self.weak.restore())).to(keys.dtype)
        return keys, values


def quantise(keys: Tensor, values: Tensor, size: int, key_bits: float, value_bits: float) -> Groups:
    """keys, values [H, m, d] in groups of `size`, which divides m."""
    width = keys.shape[-1]
    hard = top(keys.amax((0, 1)) - keys.amin((0, 1)), int(width * (key_bits - 1) + 1e-9))
    strong, weak = _groups(keys[..., hard], size), _groups(spectrum(keys[..., _others(hard, width)]), size)
    code_values = ternary if value_bits == TERNARY else two_bits
    return Groups(hard.short(), two_bits(strong), signs(weak), code_values(_groups(values, size)))


def two_bits(x: Tensor) -> Levels:
    """x [..., g] at four levels, evenly from the least to the greatest of each group."""
    return levels(x, 2, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True))


def spectrum(x: Tensor) -> Tensor:
    """Real [..., n] -> real [..., n]: real parts of the lower half of the transform, then its imaginary parts."""
    count = x.shape[-1]
    if not count:
        return x
    half = torch.fft.rfft(x.float(), norm="ortho")  # imaginary parts are zero at both ends
    return torch.cat([half.real, half.imag[..., 1 : (count + 1) // 2]], dim=-1).to(x.dtype)


def inverse_spectrum(x: Tensor) -> Tensor:
    """The inverse of `spectrum`, in float32."""
    count = x.shape[-1]
    if not count:
        return x
    real, imag = x.float().split([count // 2 + 1, (count - 1) // 2], dim=-1)
    imag = torch.nn.functional.pad(imag, (1, real.shape[-1] - imag.shape[-1] - 1))
    return torch.fft.irfft(torch.complex(real, imag), n=count, norm="ortho")


def _groups(x: Tensor, size: int) -> Tensor:
    """[H, m, n] -> [H, m / g, n, g]"""
    return x.unflatten(1, (-1, size)).mT


def _rows(groups: Tensor) -> Tensor:
    """[H, G, n, g] -> [H, G * g, n]"""
    return groups.mT.flatten(1, 2)


def _others(chosen: Tensor, width: int) -> Tensor:
    """Ascending index of the channels that were not chosen."""
    return torch.ones(width, dtype=torch.bool, device=chosen.device).index_fill(0, chosen.long(), False).nonzero()[:, 0]
