"""The lookup table of tri-gram rows: a memory-mapped store, and its numba kernels for look-up and aggregation.

`python -m elvi.related.skipbert.table FOLDER [--entries N] [--data FILE] [--weights DIR]` builds one: the most frequent
single words, pairs and tri-grams of the training text. A table knows the weights and the vocabulary it was made from.
"""

from __future__ import annotations

import argparse
import json
import mmap
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from elvi.errors import ElviError
from elvi.related.skipbert.model import Local, shallow

BITS = 21  # of each token in a key


class Table:
    """Rows of tri-grams by key. Row 0 is all zeros: what is not there. Rows that no longer fit are left out."""

    def __init__(
        self, stamp: str, width: int, capacity: int, folder: Path | None = None, dtype: Any = np.float16
    ) -> None:
        """An empty table for `capacity` tri-grams, in memory, or mapped to files in `folder`."""
        size = 1 << max(4, (2 * capacity).bit_length())
        self.stamp, self.capacity, self.count, self.folder = stamp, capacity, 0, folder
        self.keys, self.slots = np.zeros(size, np.int64), np.zeros(size, np.int32)
        shape = (capacity + 1, 3, width)
        if folder is None:
            self.rows = np.zeros(shape, dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", dtype, shape)

    @classmethod
    def open(cls, folder: Path, stamp: str) -> Table:
        """A built table. Raises ElviError when it is none, or was made from other weights or another vocabulary."""
        try:
            about = json.loads((folder / "about.json").read_text())
            table = cls.__new__(cls)
            table.stamp, table.capacity, table.count, table.folder = (
                about["stamp"],
                about["count"],
                about["count"],
                folder,
            )
            table.keys, table.slots = np.load(folder / "keys.npy"), np.load(folder / "slots.npy")
            table.rows = np.load(folder / "rows.npy", mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ElviError(
                f"{folder} cannot be opened as a table of tri-grams: build one as the README says."
            ) from error
        if table.stamp != stamp:
            raise ElviError(
                f"The table in {folder} was built from other weights or another vocabulary: build it again for these."
            )
        table.rows._mmap.madvise(mmap.MADV_RANDOM)  # rows are read one here, one there
        return table

    def save(self) -> None:
        """Write the index beside the mapped rows; until then the folder is no table."""
        assert self.folder is not None
        self.rows.flush()
        np.save(self.folder / "keys.npy", self.keys)
        np.save(self.folder / "slots.npy", self.slots)
        (self.folder / "about.json").write_text(json.dumps({"stamp": self.stamp, "count": self.count}) + "\n")

    @property
    def nbytes(self) -> int:
        """Of the rows and of their index."""
        return (self.count + 1) * self.rows[0].nbytes + self.keys.nbytes + self.slots.nbytes

    def insert(self, grams: np.ndarray, values: np.ndarray) -> None:
        """Store rows (n, 3, W) of new tri-grams (n, 3), as many as fit."""
        fit = min(len(grams), self.capacity - self.count)
        self.rows[self.count + 1 : self.count + 1 + fit] = values[:fit]
        _insert(self.keys, self.slots, grams[:fit].astype(np.int64), self.count + 1)
        self.count += fit

    def find(self, ids: np.ndarray, back_off: bool = False) -> np.ndarray:
        """Row numbers (B, T) of the tri-grams of sentences (B, T); 0: not there (see `_find`)."""
        found = np.zeros(ids.shape, np.int64)
        _find(self.keys, self.slots, ids, back_off, found)
        return found

    def aggregate(self, found: np.ndarray) -> np.ndarray:
        """Step 5 from rows: (B, T) -> (B, T, W) in float32."""
        out = np.empty((*found.shape, self.rows.shape[2]), np.float32)
        half = self.rows.dtype == np.float16
        _aggregate(self.rows.view(np.uint16) if half else self.rows, _half if half else _same, found, out)
        return out


def only(table: Table, ids: Tensor, back_off: bool = True) -> tuple[Tensor, float]:
    """Steps 1-5 from the table alone, and the share of tri-grams found exactly; nothing is computed."""
    words = ids.numpy()
    u = table.aggregate(table.find(words, back_off))
    return torch.from_numpy(u), float((table.find(words) > 0).sum() / (words > 0).sum())


def passive(table: Table, local: Local, ids: Tensor) -> tuple[Tensor, float]:
    """Steps 1-5 from the table, computing and storing only the tri-grams it lacks; also the share that it had."""
    words = ids.numpy()
    found = table.find(words)
    missing = (words > 0) & (found == 0)
    hits = 1 - float(missing.sum() / (words > 0).sum())
    if missing.any():
        grams = np.unique(_grams(words)[missing], axis=0)
        if len(grams) > table.capacity - table.count:  # no room: the table stays as it is
            return shallow(local, ids), hits
        table.insert(grams, local(torch.from_numpy(grams)).numpy())
        found = table.find(words)
    return torch.from_numpy(table.aggregate(found)), hits


def frequent(sentences: Iterable[np.ndarray], entries: int) -> np.ndarray:
    """The most frequent (0, b, 0), (0, b, c) and (a, b, c) of token rows, ties by number: (n, 3), n <= entries."""
    counts: Counter[tuple[int, int, int]] = Counter()
    for row in sentences:
        for a, b, c in _grams(row[None])[0][row > 0].tolist():
            counts.update({(a, b, c), (0, b, c), (0, b, 0)})
    ranked = sorted(counts, key=lambda gram: (-counts[gram], gram))[:entries]
    return np.array(ranked, np.int64).reshape(-1, 3)


def fill(table: Table, local: Local, grams: np.ndarray, batch: int = 4096) -> Table:
    """Compute and store the rows of tri-grams."""
    for start in range(0, len(grams), batch):
        part = grams[start : start + batch]
        with torch.inference_mode():
            table.insert(part, local(torch.from_numpy(part)).numpy())
    return table


def _grams(words: np.ndarray) -> np.ndarray:
    """(B, T) -> (B, T, 3)."""
    around = np.pad(words, ((0, 0), (1, 1)))
    return np.stack([around[:, :-2], around[:, 1:-1], around[:, 2:]], -1)


@njit(cache=True)
def _place(keys, key):
    """Where a key is, or where it would go: linear probing from a multiplicative hash."""
    mask = len(keys) - 1
    at = ((key * 0x1E3779B97F4A7C15) >> 20) & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & mask
    return at


@njit(cache=True)
def _insert(keys, slots, grams, first):
    for i in range(len(grams)):
        key = (((grams[i, 0] << BITS) | grams[i, 1]) << BITS) | grams[i, 2]
        at = _place(keys, key)
        keys[at], slots[at] = key, first + i


@njit(cache=True)
def _find(keys, slots, ids, back_off, found):
    """Rows of (a, b, c); with back-off else of (0, b, c), else of (0, b, 0)."""
    for s in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            b = ids[s, i]
            if b == 0:
                break
            a = ids[s, i - 1] if i > 0 else 0
            c = ids[s, i + 1] if i + 1 < ids.shape[1] else 0
            row = slots[_place(keys, (((a << BITS) | b) << BITS) | c)]
            if row == 0 and back_off:
                row = slots[_place(keys, (b << BITS) | c)]
                if row == 0:
                    row = slots[_place(keys, b << BITS)]
            found[s, i] = row


@njit
def _half(bits):
    """float16 to float32, exactly: the exponent is rebased by a multiplication, which also serves subnormals."""
    size = np.uint32((np.uint32(bits) & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    return -size if bits & 0x8000 else size


@njit
def _same(value):
    return value


@njit
def _aggregate(rows, read, found, out):
    """Sums in the order of `model.aggregate`; past the ends of a sentence stands row 0."""
    for s in range(found.shape[0]):
        for i in range(found.shape[1]):
            centre = found[s, i]
            left = found[s, i - 1] if i > 0 else 0
            right = found[s, i + 1] if i + 1 < found.shape[1] else 0
            for w in range(out.shape[2]):
                out[s, i, w] = read(rows[centre, 1, w]) + read(rows[right, 0, w]) + read(rows[left, 2, w])


def main(argv: list[str] | None = None) -> int:
    from elvi.related.skipbert.data import read, split
    from elvi.related.skipbert.train import load

    parser = argparse.ArgumentParser(prog="python -m elvi.related.skipbert.table", description="Build a table.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args(argv)
    try:
        trained = load(options.weights)
        texts = [text for text, _ in split(read(options.data))["train"]]
        grams = frequent(trained.encode(texts).numpy(), options.entries)
        table = Table(trained.stamp, trained.recipe.width, len(grams), options.folder)
        fill(table, trained.local, grams).save()
    except ElviError as error:
        print(f"elvi: {error}", file=sys.stderr)
        return 2
    print(f"{table.count:,} rows, {table.nbytes:,} bytes in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
