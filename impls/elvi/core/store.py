"""The key-value cache: per layer and head the rows that are really kept, and nothing else.

Attention modules call `update`, as on any transformers cache. New rows stay an uncommitted tail until `commit` says
which of them were accepted, so rolling back a draft is exact. Dropping rows frees their storage.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from elvi.core.rows import Dense, PackedRows, Ragged, held, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elvi.core.rows import Parts, Rows


class Packed(Protocol):
    """Rows held by a codec in fewer bits."""

    @property
    def nbytes(self) -> int: ...

    def unpack(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, m, d] as the codec can restore them."""
        ...


@dataclass(frozen=True)
class Kept:
    """What stays of one layer.

    slots: of every head, ascending: one tensor [H, b], or H tensors of any length; far: slots that move to the second
    tier, or the rows for it, in main memory; keys, values: for every head [b_h, d] in place of those that the slots
    hold (merging changes them).
    """

    slots: Tensor | Sequence[Tensor]
    far: Tensor | Sequence[Tensor] | PackedRows | None = None
    keys: Sequence[Tensor] | Tensor | None = None
    values: Sequence[Tensor] | Tensor | None = None


class LayerStore:
    """One layer's cache. Slots are ordered: packed rows first, then rows in full precision.

    `row` [H, K] tells for every slot the row number of its token in the sequence (see `Tokens.row`; PAD in front of
    heads that hold fewer than others). `far`: a second tier in main memory, whose rows are read only where a technique
    fetches them.
    """

    def __init__(self) -> None:
        self.rows: Dense | Ragged | None = None
        self.far: Rows | None = None
        self.packed: list[Packed] = []  # in the order in which they were packed
        self._packed_row: Tensor | None = None
        self.tail = 0  # rows at the end that are not committed

    @property
    def length(self) -> int:
        """Slots held by the fullest head, the uncommitted tail included."""
        return (0 if self.rows is None else self.rows.longest) + self._packed_length

    @property
    def _packed_length(self) -> int:
        return 0 if self._packed_row is None else self._packed_row.shape[1]

    @property
    def by_head(self) -> bool:
        """Whether heads have to be read one by one: they hold different numbers of rows, or some in the second tier."""
        return self.far is not None or isinstance(self.rows, Ragged)

    @property
    def nbytes(self) -> int:
        """Bytes of allocated key and value storage (row numbers are bookkeeping and not counted), second tier apart."""
        return (0 if self.rows is None else self.rows.nbytes) + sum(packed.nbytes for packed in self.packed)

    @property
    def far_bytes(self) -> int:
        """Bytes of allocated storage in the second tier."""
        return 0 if self.far is None else self.far.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the slots themselves, without room to grow: what attention over all of them reads."""
        used = 0 if self.rows is None else sum(self.rows.lengths) * self.rows.row_bytes
        return used + sum(packed.nbytes for packed in self.packed)

    @property
    def row(self) -> Tensor:
        """[H, K] row number of each slot, packed ones first; PAD where shorter heads have none."""
        row = torch.empty(0) if self.rows is None else self.rows.row
        return row if self._packed_row is None else torch.cat([self._packed_row, row], dim=1)

    def write(self, keys: Tensor, values: Tensor, row: Tensor) -> None:
        """Append rows as a tail: keys, values [H, n, d], row [n]."""
        if self.rows is None:
            self.rows = Dense(keys, values, row.expand(keys.shape[:2]).clone())
        else:
            self.rows.append(keys, values, row)
        self.tail += len(row)

    def read(self) -> tuple[Tensor, Tensor]:
        """keys, values [H, K, d] of all slots but those of the second tier."""
        assert self.rows is not None, "rows are written before they are read"
        if not self.packed:
            return self.rows.read()
        keys, values = zip(*(packed.unpack() for packed in self.packed), self.rows.read())
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def heads(self) -> list[tuple[Tensor, Tensor]]:
        """keys, values [K_h, d] of every head, without the second tier; not copied unless some of them are packed."""
        assert self.rows is not None, "rows are written before they are read"
        if self.packed:
            return [*zip(*self.read())]
        return [self.rows.head(head) for head in range(len(self.rows.lengths))]

    def gather(self, kept: Kept | Tensor | Sequence[Tensor]) -> None:
        """Keep only these slots of each head and free the rest. Packed rows cannot be gathered."""
        if self.packed:
            raise RuntimeError("rows were packed before they were selected")
        kept = kept if isinstance(kept, Kept) else Kept(kept)
        near = self._taken(kept.slots)
        if kept.far is not None:
            moved = kept.far if isinstance(kept.far, PackedRows) else self._in_main_memory(kept.far)
            self.far = moved if self.far is None else joined(self.far, moved)
        keys, values = kept.keys, kept.values
        self.rows = held(near[0] if keys is None else [*keys], near[1] if values is None else [*values], near[2])
        self.tail = 0

    def _in_main_memory(self, slots: Tensor | Sequence[Tensor]) -> Rows:
        return held(*([part.cpu() for part in parts] for parts in self._taken(slots)))

    def _taken(self, slots: Tensor | Sequence[Tensor]) -> Parts:
        """The rows at these slots of every head, which count as in `row`: from the first one of the longest head."""
        assert self.rows is not None
        index = [chosen - self.rows.longest + length for chosen, length in zip(slots, self.rows.lengths)]
        keys, values, row = ([part[at] for part, at in zip(parts, index)] for parts in self.rows.parts())
        return keys, values, row

    def pack(self, packed: Packed, slot: Tensor) -> None:
        """Replace slots [H, m], counted along `rows`, by their packed form, after what was packed before.

        The other rows stay, in order. What is packed is never touched again.
        """
        assert isinstance(self.rows, Dense)
        rest = torch.ones(self.rows.row.shape, dtype=torch.bool, device=slot.device).scatter_(1, slot, False)
        remaining = rest.nonzero()[:, 1].view(slot.shape[0], self.rows.longest - slot.shape[1])
        row = self.rows.row.gather(1, slot)
        self.rows = held(*self._taken(remaining))
        self.packed.append(packed)
        self._packed_row = row if self._packed_row is None else torch.cat([self._packed_row, row], dim=1)

    def commit(self, accepted: list[int] | None = None) -> None:
        """Accept tail rows, given by their place in the tail (None: all of them), and drop the others."""
        if self.rows is not None and accepted is not None and accepted != list(range(self.tail)):
            self.rows.keep_last(self.tail, accepted)
        self.tail = 0

    def crop(self, length: int) -> None:
        """Forget all slots from `length` on, committed ones too. Packed rows cannot be cropped."""
        if self.packed:
            raise RuntimeError("rows were packed before they were cropped")
        if self.rows is not None and length < self.rows.longest:
            self.rows.keep_last(self.rows.longest - length, [])
        self.tail = 0

    def fork(self) -> LayerStore:
        """A copy that may go its own way. It shares the second tier as it is now, to which it must not add."""
        copied = copy.copy(self)
        copied.rows, copied.far, copied.packed = copy.deepcopy(self.rows), copy.copy(self.far), [*self.packed]
        return copied


class Store:
    """All layers' caches; `rows` [n] are the row numbers of the tokens now in flight (set by the walk)."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerStore() for _ in range(num_layers)]
        self.rows = torch.empty(0, dtype=torch.long)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """What transformers' attention modules call: key, value [1, H, n, d] in, all slots [1, H, K, d] out.

        A layer whose heads are read one by one hands its new rows back: attention reads the others from the store.
        """
        store = self.layers[layer]
        store.write(key[0], value[0], self.rows)
        if store.by_head:
            return key, value
        keys, values = store.read()
        return keys[None], values[None]

    def commit(self, accepted: list[int] | None = None) -> None:
        """Accepted rows of the tail stay in every layer: see LayerStore.commit."""
        for layer in self.layers:
            layer.commit(accepted)

    def fork(self) -> Store:
        """A copy whose layers grow on their own."""
        copied = Store(0)
        copied.layers, copied.rows = [layer.fork() for layer in self.layers], self.rows
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes of allocated storage in all layers, first tier."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def far_bytes(self) -> int:
        """Bytes of allocated storage in all layers, second tier."""
        return sum(layer.far_bytes for layer in self.layers)

    @property
    def lengths(self) -> list[int]:
        """Slots of the longest head of each layer."""
        return [layer.length for layer in self.layers]
