"""Codes of less than a byte, really packed, and the numbers that they stand for: levels, signs, three values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TRITS = 5  # that fit into a byte, as 3^5 = 243: 1.6 bits each


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] below 2^bits -> uint8 [..., n * bits / 8], the first code in the lowest bits; bits 1, 2, 4 or 8.

    n times bits has to be a multiple of 8.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // bits)) << shifts).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_bits`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def pack_trits(codes: Tensor) -> Tensor:
    """uint8 [..., n] of 0, 1 and 2 -> uint8 [..., ceil(n / 5)], the first code as the lowest digit."""
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % TRITS))
    return (codes.unflatten(-1, (-1, TRITS)) * _powers(codes)).sum(-1, dtype=torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes [..., count], as `pack_trits` was given them."""
    return (packed[..., None] // _powers(packed) % 3).flatten(-2)[..., :count]


def _powers(like: Tensor) -> Tensor:
    return torch.tensor([3**place for place in range(TRITS)], dtype=torch.uint8, device=like.device)


class Coded(Protocol):
    """Numbers held in fewer bits."""

    @property
    def nbytes(self) -> int: ...

    def restore(self) -> Tensor: ...


@dataclass(frozen=True)
class Levels:
    """Numbers as low + step * code: codes uint8, packed along the last axis; low and step broadcast over them."""

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of what they stand for."""
        return self.codes.nbytes + self.low.nbytes + self.step.nbytes

    def restore(self) -> Tensor:
        """[..., n] in the type of `step`."""
        return self.low + self.step * unpack_bits(self.codes, self.bits).to(self.step.dtype)


def levels(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Levels:
    """x [..., n], clipped, at the nearest of 2^bits levels from low to high (step 0 where these are equal)."""
    step = (high - low) / (2**bits - 1)
    codes = ((x.clamp(low, high) - low) / step.where(step > 0, 1)).round()
    return Levels(pack_bits(codes.to(torch.uint8), bits), low, step, bits)


@dataclass(frozen=True)
class Signs:
    """alpha times the sign: codes uint8 [..., n / 8], 1 where not negative; alpha [..., 1]."""

    codes: Tensor
    alpha: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and magnitudes."""
        return self.codes.nbytes + self.alpha.nbytes

    def restore(self) -> Tensor:
        """[..., n] in the type of `alpha`."""
        return self.alpha * (2 * unpack_bits(self.codes, 1).to(self.alpha.dtype) - 1)


def signs(x: Tensor) -> Signs:
    """x [..., n] as its signs, n a multiple of 8; alpha is the mean magnitude in the last axis."""
    return Signs(pack_bits((x >= 0).to(torch.uint8), 1), x.abs().mean(-1, keepdim=True))


@dataclass(frozen=True)
class Ternary:
    """alpha times -1, 0 or 1: codes uint8, all trits in one row; alpha [..., 1], for `size` numbers each."""

    codes: Tensor
    alpha: Tensor
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and magnitudes."""
        return self.codes.nbytes + self.alpha.nbytes

    def restore(self) -> Tensor:
        """[..., size] in the type of `alpha`."""
        trits = unpack_trits(self.codes, self.alpha.numel() * self.size).view(*self.alpha.shape[:-1], self.size)
        return self.alpha * (trits.to(self.alpha.dtype) - 1)


def ternary(x: Tensor) -> Ternary:
    """x [..., n] as its signs where it exceeds half its mean magnitude in the last axis, alpha; else zero."""
    alpha = x.abs().mean(-1, keepdim=True)
    trits = 1 + (x > alpha / 2).to(torch.uint8) - (x < -alpha / 2).to(torch.uint8)
    return Ternary(pack_trits(trits.flatten()), alpha, x.shape[-1])


@dataclass(frozen=True)
class Pair:
    """Keys and values [H, m, d] of the same slots."""

    keys: Coded
    values: Coded

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys.nbytes + self.values.nbytes

    def unpack(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, m, d] as far as they can be restored."""
        return self.keys.restore(), self.values.restore()
