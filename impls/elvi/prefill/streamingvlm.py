"""StreamingVLM: sinks, the latest text and the latest seconds of vision, numbered without gaps.

Xu et al., ICLR 2026, arXiv:2510.09608. For a stream without end the cache keeps the first text, the latest text and a
short window of vision, which matters for a shorter time than what was said; the rest is evicted. What is left is
numbered anew as if it were a fresh prompt, so that positions never leave the range that a model was trained for. The
paper trains a model on short overlapping chunks to match; its cache policy, which is what this is, runs without.

Where we differ:
- Attention sees differences of positions only. So instead of moving the window back to the sinks, as the paper does
  with keys that are stored without rotation, the sinks' keys are turned forward by the gap; the logits are the same
  where positions have one axis. With three, every axis closes its own gap: that of time.
- Windows of vision are counted in time steps of the model, not in seconds of one chunk each.
- A question is asked of a copy of the stream, so that no earlier answers are part of it, which the paper moves in front
  of the remaining video.
- Windows are shorter here by default, since clips are: 4 steps of vision and 64 tokens of text, for 16 s and 512.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.store import Kept
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class StreamingVLM:
    """Keep the first `sinks` tokens of text, the last `recent` ones, and the visual tokens of the last `steps` steps.

    contiguous: close the gap that eviction leaves between sinks and the rest (the paper's "shrink"; otherwise its
    "append"). Raises BudgetError for values out of range.
    """

    steps: int = 4
    sinks: int = 64
    recent: int = 64
    contiguous: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.EXACT_VALUES, Fact.ONE_TIER}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    window: ClassVar[int] = 0
    full: ClassVar[dict[str, Any] | None] = {"steps": 1_000_000, "sinks": 1_000_000, "recent": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("steps", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        check_range(self, "steps", 1, float("inf"))
        check_range(self, "sinks", 0, float("inf"))
        check_range(self, "recent", 1, float("inf"))

    def keep(self, views: list[LayerView]) -> list[Kept | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Kept | None:
        row = view.row[0]
        first, stays = self.stays(view)
        if bool(stays.all()):
            return None
        slots = stays.nonzero()[:, 0].expand(len(view.row), -1)
        if not self.contiguous:
            return Kept(slots)
        shift = gap(view, row[first], row[stays & ~first])
        moved = shift - view.memory.get("shift", 0)
        view.memory["shift"] = shift
        keys, values = view.keys[:, stays], view.values[:, stays]
        leading = int(first.sum())
        turned = turn(view, keys[:, :leading], moved)
        return Kept(slots, keys=torch.cat([turned, keys[:, leading:]], dim=1), values=values)

    def stays(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """bool [K] twice: the slots of the sinks, and all that stay."""
        row, visual, shown = view.row[0], view.visual[0], view.layout.visual.nonzero()[:, 0]
        text = ~visual
        first = text & (text.cumsum(0) <= self.sinks) & (row < int(shown[0]) if len(shown) else text)
        latest = text & (text.flip(0).cumsum(0).flip(0) <= self.recent)
        step = view.layout.step[row.clamp(max=len(view.layout) - 1)]
        seen = visual & (step > int(view.layout.step.max()) - self.steps)
        return first, first | latest | seen


def gap(view: LayerView, sinks: Tensor, rest: Tensor) -> Tensor:
    """How many positions lie free on every axis [P] between the sinks and what stays after them."""
    if not len(sinks) or not len(rest):
        return torch.zeros(len(view.layout.position), dtype=torch.long, device=sinks.device)
    return view.positions(rest).amin(1) - view.positions(sinks).amax(1) - 1


def turn(view: LayerView, keys: Tensor, positions: Tensor) -> Tensor:
    """Keys [H, n, d] turned forward by so many positions [P]."""
    if not keys.shape[1] or not positions.any():
        return keys
    assert view.family is not None
    scale = view.family.text.rotary_emb.attention_scaling
    return view.family.rotate(keys.float(), positions[:, None].expand(-1, keys.shape[1])).to(keys.dtype) / scale
