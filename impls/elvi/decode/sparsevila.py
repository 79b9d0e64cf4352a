"""SparseVILA, decoding half: every question reads the cache through a view of its own, and nothing is deleted.

Khaki et al., ICCV 2025, arXiv:2510.17777. Pruning by the question loses what the next question asks for. So visual
tokens are pruned mildly before the language model, without the question, and the cache keeps all that is left; when a
question has been read, each layer picks the visual rows that matter to it, and the answer is decoded from these and
the text. This saves what is read per step, not what is held. The encoding half, which prunes by the salience inside the
vision tower, is not part of this implementation yet.

The body of the paper was not available and no official code was found: the choice below is known from a third party's
design document that cites the paper's algorithm 3. With Q the queries of the question and K the keys of visual rows,

    s_j = mean over heads of sum_i softmax_j(Q K^T / sqrt d)_ij,    the softmax over visual rows alone,

and a layer reads the best of them by s, the same ones in all heads.

Where we differ (R):
- Exactly the share asked for stays, one row at least, ties going to the earlier; a quantile with ">" loses all rows
  that tie with the threshold. `keep_ratio` is the share that is read, one minus the paper's sparsity.
- The question is all text after the last picture, of which the last `window` rows are asked.
- Rows that are not in the view wait in the second tier of the cache, in main memory, and are not fetched; keys keep
  their positions. In a stream each question is asked of a copy of the cache as it was before, so the next view is
  chosen among all rows again; the answer itself is not remembered.
- Salience is summed over a few query rows at a time, by plain matrix products instead of a fused kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.store import Kept
from elvi.core.tokens import budget, top
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView

ROWS = 32  # query rows looked at together


@dataclass(frozen=True)
class SparseVILA:
    """Decode from the text and from those visual rows that the question attends to.

    keep_ratio: share of each layer's visual rows that is read while decoding, above 0; window: at most so many last
    rows of the question choose. Raises BudgetError for values out of range, FitError if no text follows the picture.
    """

    keep_ratio: float = 0.25
    window: int = 256

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.ONE_TIER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))

    def keep(self, views: list[LayerView]) -> list[Kept | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Kept | None:
        visual = view.visual[0]
        places = visual.nonzero()[:, 0]
        count = min(max(1, budget(self.keep_ratio, len(places))), len(places))
        if count == len(places):
            return None
        asking = view.query_row > int(view.layout.visual.nonzero()[-1])
        if not asking.any():
            raise FitError(
                "SparseVILA was asked to read what the question is about, but no text follows the last picture: ask "
                "after showing it."
            )
        score = salience(view.query[:, asking], view.keys[:, places], view.scaling)
        near = ~visual
        near[places[top(score, count)]] = True
        return Kept(*(slots.nonzero()[:, 0].expand(len(view.row), -1) for slots in (near, ~near)))


def salience(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """What queries [Hq, Q, d] pay keys [H, m, d] in a softmax over these: sum over rows, mean over heads, [m]."""
    keys = keys.float().repeat_interleave(len(query) // len(keys), dim=0)
    total = torch.zeros(keys.shape[1], device=keys.device)
    for rows in query.float().split(ROWS, dim=1):
        total += (rows @ keys.mT * scaling).softmax(-1).sum(1).mean(0)
    return total
