"""Rows of keys and values: as many in every head, ragged (a number of its own in each), or packed in fewer bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from elvi.core.store import Packed

GROWTH = 64  # rows by which a full buffer grows
PAD = -1  # row number of the slots that fill up shorter heads

Parts = tuple[list[Tensor], list[Tensor], list[Tensor]]  # keys, values [len_h, d] and row [len_h] of every head


class _Buffers:
    """What rows in buffers keys, values [..., d] have in common."""

    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of allocated key and value storage; row numbers are bookkeeping and not counted."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's key and value in one head."""
        return 2 * self.keys.shape[-1] * self.keys.element_size()

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def take(self, slots: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """keys, values [..., d] at slots [...], counted from the first row, of one head after the other."""
        for head, at in enumerate(slots):
            keys, values = self.head(head)
            yield keys[at.to(keys.device)], values[at.to(keys.device)]


class Dense(_Buffers):
    """The same number of rows in every head: buffers keys, values [H, capacity, d] and row [H, capacity]."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor) -> None:
        self.keys, self.values, self.row_buffer = keys, values, row
        self.longest = keys.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Rows of each head."""
        return [self.longest] * self.keys.shape[0]

    @property
    def row(self) -> Tensor:
        """[H, K]"""
        return self.row_buffer[:, : self.longest]

    def read(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, K, d]"""
        return self.keys[:, : self.longest], self.values[:, : self.longest]

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """keys, values [K, d] of one head, not copied."""
        return self.keys[head, : self.longest], self.values[head, : self.longest]

    def parts(self) -> Parts:
        """keys, values and row of every head, not copied."""
        return [*self.read()[0]], [*self.read()[1]], [*self.row]

    def append(self, keys: Tensor, values: Tensor, row: Tensor, room: int = GROWTH) -> None:
        """keys, values [H, n, d], row [n] or [H, n]; a full buffer grows by `room` rows more than are needed."""
        start, self.longest = self.longest, self.longest + keys.shape[1]
        if self.longest > self.keys.shape[1]:
            self.keys, self.values, self.row_buffer = (
                _wider(old[:, :start], self.longest + room) for old in (self.keys, self.values, self.row_buffer)
            )
        span = slice(start, self.longest)
        self.keys[:, span], self.values[:, span], self.row_buffer[:, span] = keys, values, row

    def keep_last(self, count: int, places: list[int]) -> None:
        """Of the last `count` rows of every head those at `places` stay, moved up; the others are forgotten."""
        start = self.longest - count
        if places != list(range(len(places))):
            source = torch.tensor(places, device=self.keys.device) + start
            target = slice(start, start + len(places))
            for buffer in (self.keys, self.values, self.row_buffer):
                buffer[:, target] = buffer[:, source]
        self.longest = start + len(places)


class Ragged(_Buffers):
    """A number of rows of its own in every head, packed in buffers keys, values [sum of capacities, d] and row.

    Head h owns the span that starts at starts[h]; `lengths[h]` of its `capacities[h]` rows are in use.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], row: Sequence[Tensor]) -> None:
        self.lengths = [len(part) for part in row]
        self.capacities = list(self.lengths)
        self.keys, self.values, self.row_buffer = torch.cat([*keys]), torch.cat([*values]), torch.cat([*row])

    @property
    def starts(self) -> list[int]:
        """Where the span of each head begins in the buffers."""
        return [sum(self.capacities[:head]) for head in range(len(self.capacities))]

    @property
    def longest(self) -> int:
        """Rows of the longest head."""
        return max(self.lengths)

    @property
    def row(self) -> Tensor:
        """[H, K], K the longest head; shorter ones stand at the end, after slots of row PAD."""
        return torch.stack([self._right(part, PAD) for part in self._split(self.row_buffer)])

    def read(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, K, d], copied and padded with zeros as `row` is."""
        keys, values = (
            torch.stack([self._right(part, 0) for part in self._split(buffer)]) for buffer in (self.keys, self.values)
        )
        return keys, values

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """keys, values [len_h, d] of one head, not copied."""
        span = slice(self.starts[head], self.starts[head] + self.lengths[head])
        return self.keys[span], self.values[span]

    def parts(self) -> Parts:
        """keys, values and row of every head, not copied."""
        return self._split(self.keys), self._split(self.values), self._split(self.row_buffer)

    def append(self, keys: Tensor, values: Tensor, row: Tensor) -> None:
        """keys, values [H, n, d], row [n]: the same rows to every head."""
        count = keys.shape[1]
        if any(length + count > room for length, room in zip(self.lengths, self.capacities)):
            self._grow(count)
        for head, start in enumerate(self.starts):
            span = slice(start + self.lengths[head], start + self.lengths[head] + count)
            self.keys[span], self.values[span], self.row_buffer[span] = keys[head], values[head], row
        self.lengths = [length + count for length in self.lengths]

    def keep_last(self, count: int, places: list[int]) -> None:
        """Of the last `count` rows of every head those at `places` stay, moved up; the others are forgotten."""
        moved = torch.tensor(places, dtype=torch.long, device=self.keys.device)
        for start, length in zip(self.starts, self.lengths):
            first = start + length - count
            for buffer in (self.keys, self.values, self.row_buffer):
                buffer[first : first + len(places)] = buffer[first + moved]
        self.lengths = [length - count + len(places) for length in self.lengths]

    def _split(self, buffer: Tensor) -> list[Tensor]:
        return [buffer[start : start + length] for start, length in zip(self.starts, self.lengths)]

    def _right(self, part: Tensor, fill: int) -> Tensor:
        padded = part.new_full((self.longest, *part.shape[1:]), fill)
        padded[self.longest - len(part) :] = part
        return padded

    def _grow(self, count: int) -> None:
        rooms = [length + count + GROWTH for length in self.lengths]
        self.keys, self.values, self.row_buffer = (
            torch.cat([_wider(part[None], room)[0] for part, room in zip(self._split(buffer), rooms)])
            for buffer in (self.keys, self.values, self.row_buffer)
        )
        self.capacities = rooms


class PackedRows:
    """The same number of rows in every head, held in blocks of fewer bits, each with its row numbers [H, m].

    Only the blocks that rows are taken from are unpacked, anew each time.
    """

    def __init__(self, blocks: Sequence[tuple[Packed, Tensor]]) -> None:
        self.blocks = [*blocks]

    @property
    def row(self) -> Tensor:
        """[H, K]"""
        return torch.cat([row for _, row in self.blocks], dim=1)

    @property
    def lengths(self) -> list[int]:
        """Rows of every head."""
        heads, longest = self.row.shape
        return [longest] * heads

    @property
    def longest(self) -> int:
        """Rows of any head."""
        return self.row.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes with what restores them."""
        return sum(packed.nbytes for packed, _ in self.blocks)

    @property
    def row_bytes(self) -> float:
        """Bytes of one row's key and value in one head, on average."""
        return self.nbytes / max(1, self.row.numel())

    def take(self, slots: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """keys, values [..., d] at slots [...], as the codec can restore them, of one head after the other."""
        sizes = torch.tensor([row.shape[1] for _, row in self.blocks])
        ends = sizes.cumsum(0)
        wanted = torch.bucketize(torch.cat([at.flatten().cpu() for at in slots]), ends, right=True).unique()
        keys, values = (torch.cat(parts, 1) for parts in zip(*(self.blocks[at][0].unpack() for at in wanted.tolist())))
        moved = torch.zeros_like(sizes)  # how much further down the rows of a block stand than among what is unpacked
        moved[wanted] = ends[wanted] - sizes[wanted].cumsum(0)
        for head, at in enumerate(slots):
            place = (at.cpu() - moved[torch.bucketize(at.cpu(), ends, right=True)]).to(keys.device)
            yield keys[head][place], values[head][place]


Rows = Dense | Ragged | PackedRows  # of the second tier


def held(keys: Sequence[Tensor], values: Sequence[Tensor], row: Sequence[Tensor]) -> Dense | Ragged:
    """Rows in buffers of their own, from those of every head (see Parts); dense if all heads have equally many."""
    if len({len(part) for part in row}) == 1:
        return Dense(torch.stack([*keys]), torch.stack([*values]), torch.stack([*row]))
    return Ragged(keys, values, row)


def joined(first: Rows, more: Rows) -> Rows:
    """Both, one after the other in every head. Dense rows are added in place, with room for half as many again."""
    if isinstance(first, PackedRows) and isinstance(more, PackedRows):
        return PackedRows([*first.blocks, *more.blocks])
    if isinstance(first, PackedRows) or isinstance(more, PackedRows):
        raise RuntimeError("some rows are packed and others not")
    if isinstance(first, Dense) and isinstance(more, Dense):
        first.append(*more.read(), more.row, room=first.longest // 2)
        return first
    return held(*([torch.cat(both) for both in zip(*sides)] for sides in zip(first.parts(), more.parts())))


def _wider(old: Tensor, length: int) -> Tensor:
    new = old.new_empty(old.shape[0], length, *old.shape[2:])
    new[:, : old.shape[1]] = old
    return new
