"""The key-value cache: per layer and head the rows that are really kept, and nothing else.

Attention modules call `update`, as on any transformers cache. New rows stay an uncommitted tail until `commit` says
which of them were accepted, so rolling back a draft is exact. Dropping rows frees their storage.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

GROWTH = 64  # rows by which a full buffer grows


class Packed(Protocol):
    """Rows held by a codec in fewer bits."""

    @property
    def nbytes(self) -> int: ...

    def unpack(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, m, d] as the codec can restore them."""
        ...


class LayerStore:
    """One layer's cache. Slots are ordered: packed rows first, then rows in full precision.

    `row` [H, K] tells for every slot the row number of its token in the sequence (see `Tokens.row`).
    """

    def __init__(self) -> None:
        self.packed: Packed | None = None
        self._packed_row: Tensor | None = None
        self._keys = self._values = self._row = torch.empty(0)
        self._length = 0
        self.committed = 0

    @property
    def length(self) -> int:
        """Slots held by each head, the uncommitted tail included."""
        return self._length + self._packed_length

    @property
    def _packed_length(self) -> int:
        return 0 if self._packed_row is None else self._packed_row.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of allocated key and value storage (the row index is bookkeeping and not counted)."""
        return self._keys.nbytes + self._values.nbytes + (0 if self.packed is None else self.packed.nbytes)

    @property
    def row(self) -> Tensor:
        row = self._row[:, : self._length]
        return row if self._packed_row is None else torch.cat([self._packed_row, row], dim=1)

    def write(self, keys: Tensor, values: Tensor, row: Tensor) -> None:
        """Append rows as a tail: keys, values [H, n, d], row [n]."""
        heads, count = keys.shape[:2]
        row = row.expand(heads, count)
        if self._length == 0:
            self._keys, self._values, self._row = keys, values, row.clone()
        else:
            self._reserve(self._length + count)
            span = slice(self._length, self._length + count)
            self._keys[:, span], self._values[:, span], self._row[:, span] = keys, values, row
        self._length += count

    def read(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, K, d] of all slots."""
        keys, values = self._keys[:, : self._length], self._values[:, : self._length]
        if self.packed is None:
            return keys, values
        packed_keys, packed_values = self.packed.unpack()
        return torch.cat([packed_keys, keys], dim=1), torch.cat([packed_values, values], dim=1)

    def gather(self, slot: Tensor) -> None:
        """Keep only these slots [H, b] of each head and free the rest. Packed rows cannot be gathered."""
        if self.packed is not None:
            raise RuntimeError("rows were packed before they were selected")
        wide = slot[..., None].expand(*slot.shape, self._keys.shape[-1])
        self._keys, self._values = self._keys.gather(1, wide), self._values.gather(1, wide)
        self._row = self._row.gather(1, slot)
        self._length = self.committed = slot.shape[1]

    def pack(self, packed: Packed, slot: Tensor) -> None:
        """Replace the full-precision slots [H, m] by their packed form; the others stay, in order."""
        rest = torch.ones(self._row[:, : self._length].shape, dtype=torch.bool, device=slot.device)
        rest.scatter_(1, slot, False)
        remaining = rest.nonzero()[:, 1].view(slot.shape[0], self._length - slot.shape[1])
        packed_row = self._row.gather(1, slot)
        self.gather(remaining)
        self.packed, self._packed_row = packed, packed_row
        self.committed = self.length

    def commit(self, accepted: list[int] | None = None) -> None:
        """Accept tail rows, given by their place in the tail (None: all of them), and drop the others."""
        start = self.committed - self._packed_length
        if accepted is not None and accepted != list(range(self._length - start)):
            if accepted != list(range(len(accepted))):
                source = torch.tensor(accepted, device=self._keys.device) + start
                target = slice(start, start + len(accepted))
                self._keys[:, target], self._values[:, target] = self._keys[:, source], self._values[:, source]
                self._row[:, target] = self._row[:, source]
            self._length = start + len(accepted)
        self.committed = self.length

    def crop(self, length: int) -> None:
        """Forget all slots from `length` on, committed ones too. Packed rows cannot be cropped."""
        if self.packed is not None:
            raise RuntimeError("rows were packed before they were cropped")
        self._length = self.committed = min(length, self._length)

    def _reserve(self, length: int) -> None:
        if length <= self._keys.shape[1]:
            return
        grown = []
        for old in (self._keys, self._values, self._row):
            new = old.new_empty(old.shape[0], length + GROWTH, *old.shape[2:])
            new[:, : self._length] = old[:, : self._length]
            grown.append(new)
        self._keys, self._values, self._row = grown


class Store:
    """All layers' caches; `rows` [n] are the row numbers of the tokens now in flight (set by the walk)."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerStore() for _ in range(num_layers)]
        self.rows = torch.empty(0, dtype=torch.long)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """What transformers' attention modules call: key, value [1, H, n, d] in, all slots [1, H, K, d] out."""
        self.layers[layer].write(key[0], value[0], self.rows)
        keys, values = self.layers[layer].read()
        return keys[None], values[None]

    def commit(self, accepted: list[int] | None = None) -> None:
        for layer in self.layers:
            layer.commit(accepted)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def lengths(self) -> list[int]:
        return [layer.length for layer in self.layers]
