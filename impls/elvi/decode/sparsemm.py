"""SparseMM: the few heads that look at what is being named get most of the cache.

Wang et al., ICCV 2025, arXiv:2506.05344. Fewer than one head in twenty looks at the very part of the picture that the
word being generated refers to ("visual heads"). How often each of them does so is counted once per model, on pictures
in which it is known where everything is (`elvi search sparsemm`). With S the scores, summed over the query heads of
each of the L Hkv key-value heads and then to 1, C the mean budget of a head and w its window,

    b0 = r (C - w),    budget of head g in layer l = w + b0 + S_lg (C - w - b0) L Hkv.

Inside a head rows are chosen as SnapKV does: the window stays, and of the rows before it those that receive most
attention from the window, smoothed by average pooling.

Where we differ:
- The budget is a share of the prompt, the window included; in the paper it is a number of tokens (64 to 2048). Budgets
  below the window keep the latest rows.
- The window holds at most the text after the last picture, but 8 rows at least, as questions can be short.
- Budgets add up exactly. What exceeds the rows of a head goes to the others; redistribute=False loses it, as the
  released code does.
- Pictures of the calibration are those of the tiny models' world, captions stand for OCR results, and the words for
  colour and shape are the words that refer; `elvi.bench.heads` says how they are counted.
- A model without a table is refused; table="uniform" makes all heads equal, which is SnapKV.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.budgets import split
from elvi.core.facts import Fact
from elvi.core.scores import observers, pooled, window_score
from elvi.core.tokens import budget, top
from elvi.errors import BudgetError, FitError, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView
    from elvi.families.family import Family

FOUND = Path(__file__).with_name("head_scores.json")  # by model: scores [L, Hq] that the calibration counted


@dataclass(frozen=True)
class SparseMM:
    """Split the cache over all heads of the model by how much they look at what is named.

    keep_ratio: mean share of the prompt's rows that a head keeps; window: w, at most so many last rows observe (and
    stay themselves); kernel: odd width of the pooling; floor: r, share that is split evenly; table: "auto" (the shipped
    scores of the model), "uniform", or a file that `elvi search sparsemm` wrote; redistribute: whether heads take what
    others cannot. Raises BudgetError for values out of range, FitError for a model that the table does not describe.
    """

    keep_ratio: float = 0.25
    window: int = 32
    kernel: int = 5
    floor: float = 0.1
    table: str = "auto"
    redistribute: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "kernel", 1, float("inf"))
        check_range(self, "floor", 0.0, 1.0)
        if self.kernel % 2 == 0:
            raise BudgetError(f"SparseMM was asked for kernel={self.kernel}, which has no middle: use an odd number.")

    def fit(self, family: Family) -> None:
        self.scores(family)

    def scores(self, family: Family) -> Tensor:
        """S [L, Hkv] of a model, not normalised."""
        shape = family.num_layers, family.config.num_attention_heads
        if self.table == "uniform":
            return torch.ones(shape[0], family.config.num_key_value_heads)
        source = FOUND if self.table == "auto" else Path(self.table)
        found = _read(source)
        if family.name not in found:
            raise FitError(
                f"SparseMM was asked of {family.name}, but {source.name} holds head scores of {', '.join(found)} only: "
                f"run `elvi search sparsemm --model {family.name}`, or use table=uniform."
            )
        scores = found[family.name]
        if scores.shape != shape:
            raise FitError(
                f"SparseMM was asked of {family.name}, which has {shape[0]} x {shape[1]} heads, but {source.name} "
                f"holds {' x '.join(map(str, scores.shape))} scores for it: run `elvi search sparsemm` on it again."
            )
        return scores.view(shape[0], family.config.num_key_value_heads, -1).sum(-1)

    def keep(self, views: list[LayerView]) -> list[list[Tensor] | None]:
        lengths = [view.keys.shape[1] for view in views]
        counts = [budget(self.keep_ratio, length) for length in lengths]
        if counts == lengths:
            return [None] * len(views)
        assert views[0].family is not None
        rows = [observers(view.query_row, view.layout, self.window) for view in views]
        chosen = self.budgets(self.scores(views[0].family), counts, lengths, max(rows))
        return [self._keep(view, own, heads) for view, own, heads in zip(views, rows, chosen.tolist())]

    def budgets(self, scores: Tensor, counts: list[int], lengths: list[int], window: int) -> Tensor:
        """Rows of every head [L, Hkv]: `counts` [L] are what the heads of each layer would get if all were equal."""
        layers, heads = scores.shape
        least = min(window, *counts)
        free = heads * (sum(counts) - layers * least)
        room = torch.tensor(lengths).repeat_interleave(heads) - least
        floor = (torch.tensor(free / (layers * heads)) * self.floor).int()
        most = room if self.redistribute else free
        return (least + split(scores.flatten(), free, most, floor).minimum(room)).view(layers, heads)

    def _keep(self, view: LayerView, rows: int, counts: list[int]) -> list[Tensor]:
        inside = view.row >= view.query_row[len(view.query_row) - rows]
        score = pooled(window_score(view, rows).masked_fill(inside, 0.0), self.kernel)
        # Scores are at most 1, so the window outranks them, and its latest rows come first.
        ranked = torch.where(inside, 2.0 + view.row, score)
        return [top(head, count) for head, count in zip(ranked, counts)]


def _read(source: Path) -> dict[str, Tensor]:
    try:
        tables = {
            name: torch.tensor(rows, dtype=torch.float64) for name, rows in json.loads(source.read_text()).items()
        }
        if not all(bool(((scores >= 0) & scores.isfinite()).all()) for scores in tables.values()):
            raise ValueError(source)
        return tables
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):
        raise FitError(
            f"SparseMM was asked to read head scores from {source}, which holds no such table: name a file that "
            "`elvi search sparsemm` wrote."
        ) from None
