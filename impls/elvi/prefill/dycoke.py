"""DyCoke: frames give up what they repeat, and while decoding deep layers read what matters to the token being decoded.

Tao et al., CVPR 2025, arXiv:2411.15024. Two halves:

1. Temporal token merging, before the language model and without the question. Of every four frames the first stays
   whole. The second and the fourth are compared with the frame before them, the third with the first; each keeps the
   r = (1 - p) n of its n tokens that are least like the one at the same place, by cosine, as they are. Four frames
   leave n + 3 r tokens.
2. Dynamic pruning of the cache, while decoding. With w the attention that the current token pays the visual rows in
   layer l - 1, mean over heads, layers l and above read all text and the share 1 - P of the visual rows that has the
   highest w. If cos(w, w') >= `gate`, w' being that of the token before, the choice is the one before. Nothing is
   deleted: what one token passes by another may read.

Where we differ:
- `keep_ratio` is 1 - p and `read_ratio` 1 - P, both rounded half up. What stays is in raster order.
- The released code never reduces the third frame of the last four, drops the last of an odd number of frames and fails
  for four or fewer: its loops end too early. Here all frames are seen to.
- Above the gate the released code reads everything, because it forgets the choice at every step; the paper reuses it.
- A drafted row reads what it would have read decoded alone: choices go on along its own past. In a model that drafts
  for itself and passes layer l - 1 by, drafts read everything.
- Rows that are not read are masked, not gathered into a smaller cache: what this saves in reading is not measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from elvi.core.facts import Fact
from elvi.core.scores import paid
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import FitError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen
    from elvi.families.family import Family

BACK = (0, 1, 2, 1)  # how many frames before it each of four frames is compared with


@dataclass(frozen=True)
class DyCoke:
    """Drop what three of four frames repeat; in decoding let deeper layers read what the layer before attends to.

    keep_ratio: share of those three frames that stays; layer: l (1 or more); read_ratio: share of the visual rows that
    is read; gate: cosine from which on the choice before stands; positions: "original" or "compact" (as in the released
    code). Raises BudgetError for values out of range, FitError when the model has no layer l.
    """

    keep_ratio: float = 0.3
    layer: int = 3
    read_ratio: float = 0.3
    gate: float = 0.9
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    window: ClassVar[int] = 1
    rolling: ClassVar[bool] = True
    follows: ClassVar[bool] = True
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.EQUAL_FRAMES, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "read_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.3, 0.5, 0.7))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "layer", 1, float("inf"))
        check_range(self, "read_ratio", 0.0, 1.0)
        check_range(self, "gate", -1.0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def fit(self, family: Family) -> None:
        if self.layer >= family.num_layers:
            raise FitError(
                f"DyCoke was asked to choose what layer {self.layer} and those above it read, but {family.name} has "
                f"{family.num_layers} layers: choose 1 to {family.num_layers - 1}."
            )

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        count = budget(self.keep_ratio, frames.shape[1])
        kept = []
        for number, frame in enumerate(frames):
            if back := BACK[number % 4]:
                alike = cosine_similarity(tokens.hidden[frame].float(), tokens.hidden[frames[number - back]].float())
                frame = frame[top(-alike, count)]
            kept.append(frame)
        return tokens.keep_visual(torch.cat(kept)) if kept else tokens

    def attend(self, view: LayerView) -> Tensor | None:
        if self.read_ratio == 1.0 or view.layer < self.layer - 1 or not view.layout.visual.any():
            return None
        if view.layer == self.layer - 1:
            view.shared["flight"] = view.query_row, self._steps(view)
            return None
        rows, steps = view.shared.get("flight", (None, []))
        if rows is None or not torch.equal(rows, view.query_row):  # the layer that chooses was passed by
            return None
        total, heads = len(view.layout), len(view.row)
        reads = torch.stack([kept for _, kept in steps])[:, view.row.clamp(0, total - 1)] | (view.row >= total)
        return reads.transpose(0, 1).repeat_interleave(len(view.query) // heads, dim=0)  # [Hq, Q, K]

    def keep(self, views: list[LayerView]) -> list[None]:
        """All rows stay; what was chosen for the last accepted one is remembered."""
        view = views[self.layer - 1]
        if view.phase == "answer":
            view.shared["last"] = self._steps(view)[-1]
        return [None] * len(views)

    def _steps(self, view: LayerView) -> list[tuple[Tensor, Tensor]]:
        """For every row in flight w [N] and which rows of the prompt, bool [N], it reads in layers l and above."""
        held = view.row[view.visual].unique()
        count = budget(self.read_ratio, len(held))
        steps: list[tuple[Tensor, Tensor]] = []
        for place, parent in enumerate(view.parents):
            weight = attention(view, place)
            before = steps[parent] if parent >= 0 else view.shared.get("last")
            if before is not None and cosine_similarity(weight, before[0], dim=0) >= self.gate:
                kept = before[1]
            else:
                kept = (~view.layout.visual).index_fill(0, held[top(weight[held], count)], True)
            steps.append((weight, kept))
        return steps


def attention(view: LayerView, place: int) -> Tensor:
    """What query `place` of the view pays the visual rows of the prompt, mean over heads: [N], 0 for its text."""
    share = paid(view, place, view.readable[place] & (view.row >= 0)) / len(view.row)
    return share.new_zeros(len(view.layout)).index_add_(0, view.row[view.visual], share[view.visual])
