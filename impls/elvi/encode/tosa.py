"""ToSA: token merging with spatial awareness.

Huang et al., IROS 2025, arXiv:2506.20066. As ToMe: in every block of the vision tower the tokens of a frame are split
alternately in two sets, and the strongest ties between them are merged into means weighted by size. Early keys are too
local to be merged by alone, so the likeness of two tokens is a mix of keys K and places e,

    S_ab = alpha_l cos(K_a, K_b) + (1 - alpha_l) cos(e_a, e_b),

where e is a sinusoidal code of row, column and depth, and alpha_l grows from 0 in the first block to 1 in the last,
from space to meaning. Codes of merged tokens are merged, too.

Where we differ:
- Without a depth map the code is of row and column alone (R). One is read from a NumPy file; estimating depth is not
  part of this.
- `alpha` None is the growing schedule; the released script is constant at 0, which looks at places alone.
- What goes is spread evenly over the blocks that the language model's input passes; the released code truncates and
  counts a block that is not run, so that more stays than was asked for.
- Attention in proportion to size is per key, as ToMe means it; the released code adds the logarithm per query, where
  the softmax cancels it, so its results are those of `proportional=False`.
- Tokens stay in raster order, which decides the next block's sets. Towers bound to a grid to the end are not touched:
  there the tokens that come out are merged, by features and places, with alpha 1/2 if it is None (R).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from elvi.core.facts import Fact
from elvi.core.match import folded, matched, means, owners, quota
from elvi.core.seams import Tower
from elvi.core.tokens import budget
from elvi.errors import FitError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

WIDTH = 72  # of the code of a place, shared out among its axes
LEVELS = 256.0  # values of a depth map


@dataclass(frozen=True)
class ToSA:
    """Merge tokens that are alike or close, in every block of the vision tower.

    keep_ratio: share of a frame's tokens that is left after the last block, as far as halving allows; alpha: weight of
    keys against places, None: from 0 in the first block to 1 in the last; depth: NumPy file [steps, height, width] of
    values from 0 to 256, a map per time step that is encoded; proportional: attend in proportion to size. positions:
    "original" keeps the gaps, "compact" numbers what is left anew. Raises BudgetError for values out of range, FitError
    for a depth file that does not fit.
    """

    keep_ratio: float = 0.1
    alpha: float | None = None
    depth: str | None = None
    proportional: bool = True
    positions: str = "original"

    at: ClassVar[Tower] = Tower(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        if self.alpha is not None:
            check_range(self, "alpha", 0.0, 1.0)
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        if not len(tokens):
            return tokens
        code, alpha = seen.memory.get("code") if seen.block else None, self.alpha  # of the blocks before
        if code is None:
            code = codes(tokens.cell, self._depth(tokens.cell))
        if alpha is None:
            alpha = 0.5 if seen.block is None else seen.block / max(1, seen.blocks - 1)
        content = tokens.hidden if seen.block is None or seen.key is None else seen.key.mean(0)
        # The cosine of rows joined from two unit rows of lengths sqrt(w) and sqrt(1 - w) is the mix of both cosines.
        parts = normalize(content.float(), dim=-1) * alpha**0.5, normalize(code, dim=-1) * (1 - alpha) ** 0.5
        metric = torch.cat(parts, dim=1)

        def choose(frame: Tensor) -> Tensor:
            patches = round(float(tokens.mass[frame].sum()))
            gone = patches - budget(self.keep_ratio, patches)
            if seen.block is None:
                return folded(metric[frame], tokens.mass[frame], gone)
            return matched(metric[frame], quota(gone, seen.block, seen.blocks))

        anchor, group = owners(tokens, choose).unique(return_inverse=True)
        seen.memory["code"] = means(code, tokens.mass, group)
        return tokens if len(anchor) == len(tokens) else tokens.merge(group, anchor)

    def _depth(self, cell: Tensor) -> Tensor | None:
        """Mean depth [N] of the patch at each cell of a full grid, as a level from 0 to one below the larger side."""
        if self.depth is None:
            return None
        steps, height, width = (cell.amax(0) + 1).tolist()
        if not Path(self.depth).is_file():
            raise FitError(f"ToSA was asked to read depth from {self.depth}, where no file is: name a NumPy file.")
        maps = torch.from_numpy(np.load(self.depth).astype(np.float32)).to(cell.device)
        if maps.ndim != 3 or len(maps) != steps:
            raise FitError(
                f"ToSA was given depth of shape {list(maps.shape)} for a clip of {steps} time steps: give one map per "
                "step, [steps, height, width]."
            )
        side = max(height, width)
        level = (adaptive_avg_pool2d(maps[:, None], (height, width)).flatten() * side / LEVELS).round()
        return level.clamp(0, side - 1)


def codes(cell: Tensor, depth: Tensor | None) -> Tensor:
    """Sinusoidal codes float32 [N, WIDTH] of row, column and depth (if known) of cells [N, 3]."""
    axes = [cell[:, 1], cell[:, 2]] + ([] if depth is None else [depth])
    half = WIDTH // len(axes) // 2
    rate = 10_000.0 ** (-torch.arange(half, device=cell.device) / half)
    angles = [axis[:, None].float() * rate for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
