"""STTM: multi-granular spatio-temporal token merging for training-free acceleration of video LLMs.

Hyun et al., ICCV 2025, arXiv:2507.07990. Entering one early layer, without the question or any attention map:

1. Space. Averaging 2 x 2 cells, up to a side of two, makes a pyramid of every frame; of an odd side the first row or
   column is left over and goes up alone. A quadtree starts at the level `root_level` below the top and splits a cell p
   unless cos(p, c) >= tau_s for all its children c. What is not split is one token, p.
2. Time. Cells of neighbouring frames, one of which lies inside the other, are the same thing if their cosine is at
   least tau_t. Everything connected like this becomes the mean of its cells, at the place of the earliest one.

How many tokens are left is an outcome of the two thresholds. As the video comes before the question, which it cannot
see, what is merged and cached serves every question.

Where we differ:
- Connected components are complete. The released code stops after a fixed number of updates, whose order it does not
  fix, and leaves more tokens.
- Children that an odd side lacks are not compared; the released code compares the first token of the frame in their
  stead. A cell with one child tells nothing about it and gives way to it, else the first corner would merge unseen.
- The released code has options that are left out: cosines by head, and means weighted by the size of cells.
- A merged token has the position of its first one, as in the released code for Qwen2-VL; that for LLaVA numbers anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from elvi.core.connected import connected
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class STTM:
    """Merge cells of a frame that look alike, and what stays the same over time, entering decoder layer `layer`.

    spatial_threshold: tau_s; temporal_threshold: tau_t (above 1: nothing is merged). The paper's are 0.85 and 0.55 or
    0.65 for half of the tokens, 0.8 and 0.5 to 0.6 for 30 %. Raises BudgetError for values out of range, FitError for
    an image in tiles.
    """

    layer: int = 2
    spatial_threshold: float = 0.85
    temporal_threshold: float = 0.55
    root_level: int = 1

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"spatial_threshold": 2.0, "temporal_threshold": 2.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("spatial_threshold", (0.85, 0.95, 0.98, 0.99))

    def __post_init__(self) -> None:
        check_range(self, "layer", 0, float("inf"))
        check_range(self, "spatial_threshold", -1.0, 2.0)
        check_range(self, "temporal_threshold", -1.0, 2.0)
        check_range(self, "root_level", 0, float("inf"))

    @property
    def at(self) -> Layer:
        return Layer(self.layer)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        if not frames.numel():
            return tokens
        grid = tokens.hidden[frames].float().unflatten(1, shape(tokens.cell[frames[0]]))
        corner, share = cells(grid, self.spatial_threshold, self.root_level)
        owner, weight = torch.arange(len(tokens), device=frames.device), torch.ones(len(tokens), device=frames.device)
        owner[frames], weight[frames] = frames.gather(1, corner), share
        nodes = tokens.fold(owner, weight)
        place = torch.searchsorted(nodes.row, tokens.row[owner])[frames]  # [T, n]: the cell of each token in that row
        edges = meetings(place, corner == torch.arange(frames.shape[1], device=frames.device))
        alike = cosine_similarity(*(nodes.hidden[ends].float() for ends in edges), dim=-1) >= self.temporal_threshold
        root = connected(edges[:, alike], len(nodes))
        return nodes.fold(root, 1 / torch.bincount(root, minlength=len(nodes))[root])


def shape(cell: Tensor) -> tuple[int, int]:
    """Height and width of a frame whose tokens are at cell [n, 3]."""
    height, width = (int(side) + 1 for side in (cell[:, 1:].amax(0) - cell[:, 1:].amin(0)))
    if height * width != len(cell):
        raise FitError(
            f"STTM was asked to merge {len(cell)} tokens of an image in tiles, which form no grid of height x width: "
            "give a video, or use another technique."
        )
    return height, width


def cells(hidden: Tensor, threshold: float, root_level: int) -> tuple[Tensor, Tensor]:
    """Of every token in frames [T, h, w, D] the first one of its cell [T, n], and its share in the mean [T, n].

    What is not split is the largest cell whose children are all like it, so one way up the pyramid finds it.
    """
    height, width = hidden.shape[1:3]
    y, x = (torch.arange(side, device=hidden.device) for side in (height, width))  # the cell of each row and column
    corner, part = (
        torch.arange(height * width, device=hidden.device).view(height, width),
        torch.ones_like(hidden[0, ..., 0]),
    )
    corner, share = corner.repeat(len(hidden), 1, 1), part.repeat(len(hidden), 1, 1)
    for _ in range(max(0, levels(height, width) - root_level)):
        y, x = ((axis + side % 2) // 2 for axis, side in zip((y, x), hidden.shape[1:3]))
        there = by_fours(torch.ones_like(hidden[:1, ..., :1]))
        children, number = by_fours(hidden), there.sum((2, 4))  # [T, h, 2, w, 2, D], [1, h, w, 1]
        hidden = children.sum((2, 4)) / number
        alike = cosine_similarity(children, hidden[:, :, None, :, None], dim=-1) >= threshold
        merges = (alike | (there[..., 0] == 0)).all(4).all(2) & (number[..., 0] > 1)
        merged = merges[:, y][:, :, x]  # [T, height, width]
        part = part / number[0, y][:, x, 0]
        first = torch.searchsorted(y, y)[:, None] * width + torch.searchsorted(x, x)
        corner, share = torch.where(merged, first, corner), torch.where(merged, part, share)
    return corner.flatten(1), share.flatten(1)


def by_fours(frames: Tensor) -> Tensor:
    """[T, h, w, D] -> [T, h / 2, 2, w / 2, 2, D], odd sides with zeros before the first row or column."""
    odd_height, odd_width = (side % 2 for side in frames.shape[1:3])
    return pad(frames, (0, 0, odd_width, 0, odd_height, 0)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def levels(height: int, width: int) -> int:
    """How often a grid can be halved before a side is down to two."""
    return max(0, (min(height, width) - 1).bit_length() - 1)


def meetings(place: Tensor, first: Tensor) -> Tensor:
    """Cells of a frame and of the next, of which one lies inside the other: [2, m], from place [T, n] of all tokens.

    first bool [T, n]: whether a token is the first one of its cell. Where it is that of the smaller cell, they meet.
    """
    meet = first[:-1] | first[1:]
    return torch.stack([place[:-1][meet], place[1:][meet]])
