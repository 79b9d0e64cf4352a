"""CDPruner: conditional diversity, tokens that differ from one another and fit the question.

Zhang et al., NeurIPS 2025, arXiv:2506.10967. With S the cosine similarities of the visual tokens and r their relevance
to the question, scaled to 0 ... 1, L = diag(r) S diag(r) is the kernel of a determinantal point process: a set Y is the
likelier, the greater det(L_Y), so the more relevant and the less alike its members are. The likeliest set of m tokens
is looked for greedily: with d_j what token j would multiply the determinant by,

    j* = argmax d,  e_j = (L_j*j - <c_j*, c_j>) / sqrt(d_j*),  c_j <- (c_j, e_j),  d_j <- d_j - e_j^2.

Relevance is the cosine between CLIP's patch and text embeddings, negated: CLIP's patches, which were never trained for
that, come out the less like a text the more they show of it.

Where we differ:
- CLIP looks at each frame anew, and its patch nearest to a token lends the relevance, frames of one time step being
  averaged. The released code reuses LLaVA's own tower, which is a CLIP tower.
- scorer="model" (R): the cosine between a visual token and the mean of the question's embeddings in the language model,
  for models without a CLIP tower; there the sign stays.
- All visual tokens of the prompt are one set; the released code takes as many from each tile of a picture.
- Texts longer than CLIP reads are cut, not averaged over their parts. If relevance is the same for all, r = 1.
- Where no token adds anything more (d falls to rounding error), the most relevant ones follow.
- Kept tokens keep their positions; positions="compact" numbers them anew, as LLaVA does in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

SPENT = 1e-6  # share of the greatest d below which a token adds rounding error alone


@dataclass(frozen=True)
class CDPruner:
    """Keep a set of visual tokens that is diverse and fits the question, before the language model.

    keep_ratio: share of the visual tokens that stays (paper: 64 of 576); scorer: CLIP folder, hub id, tiny-clip, or
    "model"; positions: "original" or "compact". Raises BudgetError for values out of range, FitError for other scorers.
    """

    keep_ratio: float = 0.111
    scorer: str = "tiny-clip"
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.GRID})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.111, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        count = budget(self.keep_ratio, len(visual))
        if count == len(visual):
            return tokens
        relevant = spanned(self.relevance(tokens.keep(visual), tokens.hidden[seen.question_index], seen))
        return tokens.keep_visual(visual[choose(tokens.hidden[visual], relevant, count)])

    def relevance(self, visual: Tokens, question: Tensor, seen: Seen) -> Tensor:
        """How much each visual token [N] has to do with the question [Q, D], on no particular scale."""
        if self.scorer == "model":
            return normalize(visual.hidden.float(), dim=-1) @ normalize(question.float().mean(0), dim=-1)
        assert seen.clip is not None and seen.question is not None  # noqa: PT018
        score = frame_scorer(self.scorer).patch_scores(seen.clip, seen.question).to(visual.hidden.device)
        (steps, height, width), side = (visual.cell.amax(0) + 1).tolist(), score.shape[1]
        score = score.unflatten(0, (steps, -1)).mean(1)
        t, y, x = visual.cell.unbind(1)
        return -score[t, (2 * y + 1) * side // (2 * height), (2 * x + 1) * side // (2 * width)]


def spanned(score: Tensor) -> Tensor:
    """Scores [N] moved to span 0 ... 1, the lowest just above 0; ones if they are all equal."""
    span = score.max() - score.min()
    return (score - score.min() + 1e-6) / span if span > 0 else torch.ones_like(score)


def choose(hidden: Tensor, relevant: Tensor, count: int) -> Tensor:
    """Index [count] of rows of hidden [N, D] that are diverse and relevant [N], in the order of choice."""
    unit = normalize(hidden.float(), dim=-1)
    similar = (unit @ unit.mT).fill_diagonal_(1.0)  # rounding must not decide between equally relevant tokens
    kernel = similar.double() * relevant.double()[:, None] * relevant.double()
    if kernel.device.type == "cpu":
        chosen = torch.from_numpy(likeliest(kernel.numpy(), count, SPENT))
    else:
        chosen = likeliest_reference(kernel, count, SPENT)
    rest = relevant.clone().index_fill_(0, chosen, float("-inf")).sort(descending=True, stable=True).indices
    return torch.cat([chosen, rest[: count - len(chosen)]])


@numba.njit(cache=True)
def likeliest(kernel: np.ndarray, count: int, spent: float) -> np.ndarray:
    """Greedy choice from a kernel float64 [N, N]: int64 [count or less], ties to the lowest; O(count^2 N)."""
    total = len(kernel)
    gain = np.diag(kernel).copy()
    least = spent * gain.max() if total else 0.0
    columns, chosen = np.empty((count, total)), np.empty(count, np.int64)
    for step in range(count):
        best = np.argmax(gain)
        if gain[best] <= least:
            return chosen[:step]
        chosen[step], root = best, np.sqrt(gain[best])
        own = columns[step]
        own[:] = kernel[best]
        for k in range(step):
            factor = columns[k, best]
            for j in range(total):
                own[j] -= factor * columns[k, j]
        for j in range(total):
            own[j] /= root
            gain[j] -= own[j] * own[j]
        gain[chosen[: step + 1]] = -np.inf
    return chosen


def likeliest_reference(kernel: Tensor, count: int, spent: float) -> Tensor:
    """The same choice as `likeliest` with the same roundings, in torch: what each choice leaves of the kernel."""
    left, chosen = kernel.clone(), []
    gain = left.diagonal()
    least = spent * gain.max() if len(gain) else 0.0
    while len(chosen) < count:
        free = gain.index_fill(0, torch.tensor(chosen, dtype=torch.long, device=gain.device), float("-inf"))
        best = int(free.argmax())
        if free[best] <= least:
            break
        own = left[best] / left[best, best].sqrt()
        chosen.append(best)
        left -= own[:, None] * own
    return torch.tensor(chosen, dtype=torch.long, device=kernel.device)
