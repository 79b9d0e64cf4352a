"""SparseVILA: mild pruning before the language model, then a view of the cache for every question; nothing is deleted.

Khaki et al., ICCV 2025, arXiv:2510.17777. Pruning by the question loses what the next question asks for. So visual
tokens are pruned mildly before the language model, without the question, and the cache keeps all that is left; when a
question has been read, each layer picks the visual rows that matter to it, and the answer is decoded from these and
the text. Decoding saves what is read per step, not what is held.

Encoding half: of each frame the tokens stay that are most salient in the vision tower, by what the class token pays
them, or where there is none by what they receive from the whole frame, mean over queries and heads. Columns of
attention are summed over a few query rows at a time, and no map is held.

The body of the paper was not available and no official code was found: the choice below is known from a third party's
design document that cites the paper's algorithm 3. With Q the queries of the question and K the keys of visual rows,

    s_j = mean over heads of sum_i softmax_j(Q K^T / sqrt d)_ij,    the softmax over visual rows alone,

and a layer reads the best of them by s, the same ones in all heads.

Where we differ (R):
- Salience is read in the block of the tower whose output the language model reads, and the share is per frame. Tokens
  that the tower merges from patches have the mean of their patches. Several summary tokens are not covered.
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
from elvi.core.seams import Encoded
from elvi.core.store import Kept
from elvi.core.tokens import budget, top
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
ROWS = 32  # query rows looked at together


@dataclass(frozen=True)
class SparseVILA:
    """Keep what the tower finds salient; decode from the text and those visual rows that the question attends to.

    keep_ratio: share of each layer's visual rows that is read while decoding, above 0; window: at most so many last
    rows of the question choose; encode_ratio: share of each frame's tokens that the language model gets, above 0.
    Raises BudgetError for values out of range, FitError if no text follows the picture.
    """

    keep_ratio: float = 0.25
    window: int = 256
    encode_ratio: float = 0.5

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.ONE_TIER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "encode_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "encode_ratio", 0.0, 1.0, open_low=True)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        if self.encode_ratio == 1.0:
            return tokens
        assert seen.tower is not None, "the tower is seen at Encoded"
        tower, stays = seen.tower, torch.zeros_like(tokens.visual)
        score = tower.cls_attention(WITH_CLS) if tower.has_cls else tower.received(WITHOUT_CLS)
        for step in tokens.cell[:, 0].unique():
            frame = (tokens.cell[:, 0] == step).nonzero()[:, 0]
            stays[frame[top(score[tokens.row[frame]], max(1, budget(self.encode_ratio, len(frame))))]] = True
        return tokens.keep(stays)

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
