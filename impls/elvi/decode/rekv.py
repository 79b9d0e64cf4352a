"""ReKV: the stream is read once with a sliding window; a question loads the frames that it is about.

Di et al., ICLR 2025, arXiv:2503.00540. The key-value rows of a time step that leave the window go to main memory as one
block, represented by its mean key without rotation. When a question comes, every layer compares its mean query, also
without rotation, with the representatives,

    sim_b = cos(mean over the question's tokens of q, mean over the block of k)    (heads concatenated),

and loads the `num_blocks` most similar ones, which are then read like any other rows, for the whole answer.

Where we differ:
- Loaded rows keep the positions at which they were encoded, and so do question and answer; the released code numbers
  what is loaded anew without gaps, which serves models beyond their trained length and tears three-dimensional
  positions apart.
- Queries that share a key-value head are averaged before they are compared; the released code repeats the keys.
- The window holds whole time steps, 4 of them, and 4 blocks are loaded, where the released code has 15,000 tokens and
  64 frames: clips here are short. The text before the first picture always stays.
- There is no cache of recently loaded blocks on the accelerator, and no averaging over neighbouring blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from elvi.core.facts import Fact
from elvi.core.scores import grouped
from elvi.core.store import Kept
from elvi.core.tokens import top
from elvi.core.views import Fetched
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class ReKV:
    """Read a stream through a window of `local` time steps, and load `num_blocks` earlier ones for a question.

    Raises BudgetError for values out of range.
    """

    num_blocks: int = 4
    local: int = 4

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN, Fact.ONE_TIER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    window: ClassVar[int] = 0
    full: ClassVar[dict[str, Any] | None] = {"local": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("num_blocks", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        check_range(self, "num_blocks", 0, float("inf"))
        check_range(self, "local", 1, float("inf"))

    def keep(self, views: list[LayerView]) -> list[Kept | None]:
        return [self._keep(view) if view.phase == "piece" else None for view in views]

    def _keep(self, view: LayerView) -> Kept | None:
        step = view.layout.step[view.row[0]]
        leaving = (step >= 0) & (step <= int(step.max()) - self.local)
        if not leaving.any():
            return None
        slots = leaving.nonzero()[:, 0]
        keys = unrotated(view, view.keys[:, slots], view.row[:, slots])
        steps = step[slots]
        means = [keys[:, steps == each].mean(1).flatten() for each in steps.unique().tolist()]  # [H * d] each
        blocks = view.memory.get("blocks", [])
        # Reassigned, never changed in place: a forked run shares what was remembered.
        view.memory["blocks"] = [*blocks, *means]
        view.memory["step"] = torch.cat([view.memory.get("step", steps[:0]), steps])  # [rows of the second tier]
        heads = len(view.row)
        return Kept((~leaving).nonzero()[:, 0].expand(heads, -1), far=slots.expand(heads, -1))

    def fetch(self, view: LayerView) -> Fetched:
        if view.phase == "prompt":
            view.memory["loaded"] = self._chosen(view)
        slots = view.memory["loaded"] if view.phase != "piece" else torch.empty(0, dtype=torch.long)
        blocks = view.memory["blocks"]
        looked = sum(block.nbytes for block in blocks) if view.phase == "prompt" else 0
        return Fetched([slots.expand(view.query.shape[1], -1)] * len(view.row), looked)

    def _chosen(self, view: LayerView) -> Tensor:
        """Ascending slots of the second tier that belong to the blocks most like the question."""
        assert view.family is not None
        query = view.family.rotate(view.query, view.positions(view.query_row), back=True)
        asked = grouped(query, len(view.row)).mean(1).flatten()  # [H * d]
        similar = cosine_similarity(torch.stack(view.memory["blocks"]), asked[None])
        best = top(similar, min(self.num_blocks, len(similar)))
        steps = view.memory["step"]
        return torch.isin(steps, steps.unique()[best]).nonzero()[:, 0]


def unrotated(view: LayerView, keys: Tensor, row: Tensor) -> Tensor:
    """Keys [H, m, d] of these rows [H, m] as they were before they were turned to their positions."""
    assert view.family is not None
    return view.family.rotate(keys, view.positions(row), back=True)
