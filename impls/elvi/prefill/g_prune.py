"""G-Prune: which visual tokens stand for others, from the perspective of a graph.

Jiang et al., AAAI 2025, arXiv:2501.02268. The tokens of a picture are the nodes of a graph whose edges join similar
ones. What a token carries at first is its norm w; it flows along the edges for t steps, and the tokens that collect
most per neighbour stay, so that foreground and background both keep those that represent them. No text is looked at.

1. A = cosine similarities; an edge where A_ij >= s. Rows of P = softmax(A / tau) over the edges of each row.
2. w_t = w P^t, and the score of token i is w_t,i / deg_i, with deg_i the edges of row i, its own among them.

Where we differ:
- The vector w is propagated, O(t N^2); the released code raises the matrix to the power t, O(t N^3).
- A token is always its own neighbour. In the released code a zero vector is not, and where a row has no edge at all
  its softmax becomes uniform over all tokens.
- Every picture (time step) is a graph of its own and keeps the same share, rounded half up; the released code rounds
  down, and knows one picture as a base tile and a grid of details.
- Kept tokens keep their positions; positions="compact" numbers them anew, as LLaVA does in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class GPrune:
    """Keep the visual tokens that collect most when norms flow between similar ones, before the language model.

    keep_ratio: share of each picture's tokens that stays; threshold: s, least similarity of neighbours; temperature:
    tau; steps: t; positions: "original" or "compact". Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.5
    threshold: float = 0.5
    temperature: float = 0.03
    steps: int = 5
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "threshold", 0.0, 1.0)
        check_range(self, "temperature", 0.0, float("inf"), open_low=True)
        check_range(self, "steps", 0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        stays = ~tokens.visual
        for step in tokens.cell[tokens.visual, 0].unique():
            picture = (tokens.cell[:, 0] == step).nonzero()[:, 0]
            score = collected(tokens.hidden[picture], self.threshold, self.temperature, self.steps)
            stays[picture[top(score, budget(self.keep_ratio, len(picture)))]] = True
        return tokens.keep(stays)


def collected(hidden: Tensor, threshold: float, temperature: float, steps: int) -> Tensor:
    """What each token of hidden [N, D] holds after so many steps, per neighbour: float32 [N]."""
    transition, degree = graph(hidden, threshold, temperature)
    carried = hidden.float().norm(dim=-1)
    for _ in range(steps):
        carried = carried @ transition
    return carried / degree


def graph(hidden: Tensor, threshold: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Of tokens [N, D] the row-stochastic transitions P [N, N] and the number of neighbours [N], itself included."""
    unit = normalize(hidden.float(), dim=-1)
    similar = unit @ unit.mT
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    edge = (similar >= threshold) | itself
    return (similar / temperature).masked_fill(~edge, float("-inf")).softmax(-1), edge.sum(-1)
