"""PruneVid: visual token pruning for efficient video language models.

Huang, Zhou and Han, Findings of ACL 2025, arXiv:2412.16117. Before the language model, without the question:

1. Scenes: density peaks (7 neighbours) among the gamma T of T frame means; every cluster keeps its longest runs of two
   frames or more, and frames between them join the longer neighbour, the left one of equals.
2. In a scene of W frames, a place is static if the mean cosine of its tokens over pairs of frames is above tau,
   (sum of cos - W) / (W (W - 1)) > tau. Its tokens become their mean over time. All others are dynamic.
3. Static tokens of a scene, and dynamic ones of a frame, if over 14, become beta as many means of density-peak groups.

After decoder layer M, once: a visual token is worth the most that any row of the text behind the picture pays it in any
head of layer M. Of the static tokens of each scene, and the dynamic ones of each frame, the share alpha that is worth
most stays, in the layers to come and in the caches of layers 0 ... M as well.

Where we differ:
- (R) Merged tokens stand at the place of their centre (static ones in the first frame of their scene), in raster order;
  the released code lines up static tokens before dynamic ones and numbers the row anew, as positions="compact" does.
- (R) Frames between two kept runs join one of them together; without any run of two frames the clip is one scene.
- M is a share of the layers, the paper's 11 of 32. Ties go to the earlier token; alpha is rounded half up, not down.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.cluster import density_peaks
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen

NEIGHBOURS, FEW = 7, 14


@dataclass(frozen=True)
class PruneVid:
    """Merge what stands still and what is alike; later keep what the question attends to, in all layers.

    keep_ratio: alpha; scene_ratio: gamma; threshold: tau; cluster_ratio: beta; depth: share of the layers that read
    all; positions: "original" or "compact". Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.4
    scene_ratio: float = 0.25
    threshold: float = 0.8
    cluster_ratio: float = 0.5
    depth: float = 0.344
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0, every=1)
    window: ClassVar[int] = 0
    rolling: ClassVar[bool] = False
    follows: ClassVar[bool] = True
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_KEYS_PER_HEAD}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "threshold": 1.0, "cluster_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.4, 0.75))

    def __post_init__(self) -> None:
        for field in ("keep_ratio", "scene_ratio", "cluster_ratio", "depth"):
            check_range(self, field, 0.0, 1.0)
        check_range(self, "threshold", -1.0, 1.0)
        check_choice(self, "positions", "original", "compact")

    def layer(self, layers: int) -> int:
        """M + 1, the first layer that reads less."""
        return max(1, budget(self.depth, layers))

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None, "layers are known from Layer(0) on"
        if seen.layer == 0:
            return self._merge(tokens, seen)
        if seen.layer == self.layer(seen.family.num_layers) and len(seen.question_index):
            return self._drop(tokens, seen)
        return tokens

    def _merge(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames, hidden = tokens.frames, tokens.hidden.float()
        owner = torch.arange(len(tokens), device=frames.device)
        parts = seen.memory["parts"] = []  # rows that later compete
        for start, stop in scenes(hidden[frames].mean(1), self.scene_ratio):
            scene = frames[start:stop]
            static = steadiness(hidden[scene]) > self.threshold
            for block in (scene[:, static], *scene[:, ~static].split(1)):  # [W, m], then [1, n - m] of each frame
                total = block.shape[1]
                count = max(1, int(self.cluster_ratio * total)) if total > FEW else total
                centre, group = density_peaks(hidden[block].mean(0), count, NEIGHBOURS)
                owner[block] = block[0, centre[group]]
                parts.append(tokens.row[block].flatten())
        return tokens.fold(owner)

    def _drop(self, tokens: Tokens, seen: Seen) -> Tokens:
        worth = seen.attention(seen.question_index).amax((0, 1))
        stays = ~tokens.visual
        for part in seen.memory["parts"]:
            place = torch.isin(tokens.row, part).nonzero()[:, 0]
            stays[place[top(worth[place], budget(self.keep_ratio, len(place)))]] = True
        return tokens.keep(stays)

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        """The layers before the cut keep the rows that the first one behind it has."""
        cut = self.layer(len(views))
        if cut == len(views):
            return [None] * cut
        left = [torch.isin(view.row[0], views[cut].row[0]).nonzero()[:, 0] for view in views[:cut]]
        return [*(slots.expand(len(view.row), -1) for slots, view in zip(left, views)), *[None] * (len(views) - cut)]


def scenes(feature: Tensor, ratio: float) -> list[tuple[int, int]]:
    """Scenes (start, stop) of frames with features [T, D]."""
    if not len(feature):
        return []
    labels = refined(density_peaks(feature, max(1, int(ratio * len(feature))), NEIGHBOURS)[1].tolist())
    starts = [frame for frame in range(len(labels)) if frame == 0 or labels[frame] != labels[frame - 1]]
    return list(zip(starts, [*starts[1:], len(labels)]))


def refined(labels: list[int]) -> list[int]:
    """Labels of frames without stray ones: every label keeps its longest runs, and what is between joins the longer."""
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(size for other, size in runs if other == label) for label in labels}
    held = [label if size == longest[label] > 1 else None for label, size in runs for _ in range(size)]
    blocks = [(label, len(list(run))) for label, run in groupby(held)]
    out = []
    for place, (label, size) in enumerate(blocks):
        near = blocks[max(0, place - 1) : place] + blocks[place + 1 : place + 2] if label is None else [(label, size)]
        out += [max(near, key=lambda block: block[1], default=(0, 0))[0]] * size  # of equals the first: the left one
    return [number for number, (_, run) in enumerate(groupby(out)) for _ in run]


def steadiness(hidden: Tensor) -> Tensor:
    """Mean cosine [n] over pairs of different frames of hidden [W, n, D]; below every threshold for a single frame."""
    count = len(hidden)
    if count == 1:
        return torch.full_like(hidden[0, :, 0], float("-inf"))
    together = normalize(hidden, dim=-1).sum(0).square().sum(-1)
    return ((together - count) / (count * (count - 1))).clamp(max=1)
