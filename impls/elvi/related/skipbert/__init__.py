"""The lower layers of a text encoder run on isolated tri-grams, so that a table can hold what they compute.

SkipBERT, Wang et al., ACL 2022, 2022.acl-long.503. A row depends on three token ids only; fetched rows are summed to
one vector per token, and only the upper layers read the whole sentence.

(R) marks our reconstruction. Early exit: the official code weighs several classifiers in its loss but never stops
early; here one stands after every upper layer, and inference stops when its largest probability passes
`exit_threshold`. The experiment: sign of the rated valence of review sentences, a teacher of 8 layers and width 64
trained from scratch, students of 4+4 and 4+2 layers.

Where we differ: single sentences, so no segment tables. Students start as their teacher, and both share one frozen
tri-gram encoder, so one table serves both. Distillation of answers sums over classes instead of averaging. The table
is asked row by row, where the official one computes the whole batch when one row is missing; a full table stays
as it is. Rows for back-off are computed as the tri-grams they stand for, with hidden neighbours out of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from elvi.errors import ElviError, check_range
from elvi.related import Table


@dataclass(frozen=True)
class SkipBERT:
    """A sentence classifier whose lower layers are looked up."""

    layers: int = 4  # upper layers of the student, 4 or 2
    exit_threshold: float = 0.9  # stop after a layer whose largest probability is above (1: never)
    table: str = ""  # folder of a built table; empty: rows are computed once and kept in memory
    weights: str = ""  # folder of trained weights; empty: those that ship
    seed: int = 0  # of training

    prompt: ClassVar[str | None] = "A dull film ."
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("exit_threshold", (0.6, 0.9, 1.0))

    def __post_init__(self) -> None:
        check_range(self, "exit_threshold", 0.0, 1.0)
        if self.layers not in (2, 4):
            raise ElviError(f"SkipBERT was asked for layers={self.layers}, and students have 4 or 2: use one of these.")

    def run(self, prompt: str | None) -> list[Table]:
        """The sign of one sentence by every way, with what it cost."""
        from elvi.related.skipbert import measure

        return measure.one(self, "A warm , funny film that never bores ." if prompt is None else prompt)

    def bench(self, tick: Callable[[int, int], None]) -> list[Table]:
        """Accuracy and latency with and without table and early exit, on held-out sentences."""
        from elvi.related.skipbert import measure

        return measure.experiment(self, tick)

    def train(self, out: Path, data: Path | None, *, resume: bool, tick: Callable[[int, int], None]) -> None:
        """Teacher, tri-gram encoder and students, from the seed."""
        from elvi.related.skipbert.data import read
        from elvi.related.skipbert.train import Recipe, train

        train(Recipe(seed=self.seed), read(data), out, resume=resume, tick=tick)
