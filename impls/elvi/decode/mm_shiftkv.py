"""MM-ShiftKV: queries that decoding may ask, drawn before it begins, vote on the keys of the prompt.

Shu et al., Findings of ACL 2026 (2026.findings-acl.1447); formulas from the official code. Queries of generated tokens
spread more widely than those of the prompt, so at small budgets the prompt's own queries rank keys wrongly. With X the
normed inputs of a layer's attention, mu their mean and sigma their (unbiased) standard deviation, N proxies

    h_n = mu + gamma sigma eps_n,    eps_n ~ N(0, I),    q_n = rotate(W_q h_n, last position + stride j)

are split into G groups of g, in each of which j runs from 1 to g. A group's attention, its g rows and that of the last
prompt token averaged, votes for the longest run of best keys that holds at most `mass` of it. The score of a key is its
number of votes plus the attention of the last prompt token, which breaks ties; that token itself always stays. The
cache is cut once, when the prompt has been read, by one number of rows for all heads and layers.

Where we differ:
- The budget is a share of the prompt; in the paper it is 64 to 512 tokens. It never goes below the last token.
- Noise comes from a generator with a `seed`, for every layer its own; the official code takes the global one.
- A group whose best key alone exceeds the mass casts no vote in the code. `inclusive` lets a group vote for the
  smallest set that reaches the mass, as the paper's words suggest.
- `stride` is G in the code, 1 in the paper's figure. The code takes mu and sigma over all tokens and channels, on LLaVA
  from the last 512 tokens (`source`); `sigma` may be taken per channel, and then mu is too.
- On LLaVA the first two layers of the code repeat the last token 16 times instead (`repeat_layers`; here none does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.scores import CHUNK, check_groups, window_score
from elvi.core.tokens import budget, top
from elvi.errors import BudgetError, check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView

LAST = 512  # rows of the source "last512"
REPEATS = 16  # proxies of a layer that repeats its last token


@dataclass(frozen=True)
class MMShiftKV:
    """Keep, per head, the prompt keys that synthetic queries at future positions vote for.

    keep_ratio: share of each layer's prompt rows that every head keeps; gamma: how much wider than the prompt's inputs
    the proxies spread; num_proxies: N, in `groups` (G) of equal size; stride: places from one proxy of a group to the
    next (None: G); source: rows that mu and sigma come from, "all" or "last512"; sigma: "scalar" or "per_channel".
    Raises BudgetError for values out of range, FitError for heads that do not share keys evenly.
    """

    keep_ratio: float = 0.1
    gamma: float = 10.0
    num_proxies: int = 512
    groups: int = 32
    mass: float = 0.95
    inclusive: bool = False
    sigma: str = "scalar"
    stride: int | None = None
    source: str = "all"
    repeat_layers: int = 0
    seed: int = 0

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = 1
    inputs: ClassVar[bool] = True
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "gamma", 0.0, float("inf"))
        check_range(self, "groups", 1, float("inf"))
        check_range(self, "mass", 0.0, 1.0, open_low=True)
        if self.stride is not None:
            check_range(self, "stride", 1, float("inf"))
        check_range(self, "repeat_layers", 0, float("inf"))
        check_choice(self, "sigma", "scalar", "per_channel")
        check_choice(self, "source", "all", "last512")
        if self.num_proxies < 1 or self.num_proxies % self.groups:
            asked = f"MMShiftKV was asked for num_proxies={self.num_proxies} in {self.groups} groups"
            raise BudgetError(f"{asked}, which cannot be of equal size: use a multiple of {self.groups}.")

    fit = check_groups

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        total = view.keys.shape[1]
        count = max(1, budget(self.keep_ratio, total))
        if count == total:
            return None
        view = replace(view, query=view.query[:, -1:], query_row=view.query_row[-1:])
        chosen = top(self.score(view), count - 1)
        return torch.cat([chosen, chosen.new_full((len(chosen), 1), total - 1)], dim=1)

    def score(self, view: LayerView) -> Tensor:
        """Votes plus attention of the last prompt row (the query given), without the last slot: float64 [H, K - 1]."""
        last, keys = window_score(view, 1)[:, :-1], view.keys.float()
        votes = torch.zeros_like(last, dtype=torch.float64)  # in float32, votes would swallow what breaks ties
        for proxies, rows in self.proxies(view):
            mean = (received(proxies, keys, view.scaling)[:, :-1] + last) / (len(rows) + 1)
            votes += voted(mean, self.mass, self.inclusive)
        return votes + last

    def proxies(self, view: LayerView) -> list[tuple[Tensor, Tensor]]:
        """Queries [Hq, g, d] of every group, and the rows [g] they stand at, all of them after the prompt."""
        if view.layer < self.repeat_layers:
            hidden, size, stride = view.inputs[-1:].expand(REPEATS, -1), REPEATS, 1
        else:
            hidden, size = self._drawn(view.inputs, view.layer), self.num_proxies // self.groups
            stride = self.groups if self.stride is None else self.stride
        step = torch.arange(len(hidden), device=hidden.device) % size + 1
        rows = view.query_row[-1] + stride * step
        queries = view.family.queries(view.layer, hidden, view.positions(rows))
        return [*zip(queries.split(size, dim=1), rows.split(size))]

    def _drawn(self, inputs: Tensor, layer: int) -> Tensor:
        """Inputs [N, D] that decoding might bring."""
        x = (inputs[-LAST:] if self.source == "last512" else inputs).float()
        over = (0,) if self.sigma == "per_channel" else (0, 1)
        spread = x.std(over, correction=min(1, len(x) - 1))  # one row alone has no spread
        generator = torch.Generator().manual_seed(self.seed * 1000 + layer)
        noise = torch.randn(self.num_proxies, x.shape[1], generator=generator)
        return (x.mean(over) + self.gamma * spread * noise.to(x.device)).to(inputs.dtype)


def received(proxies: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Attention [H, K] that keys [H, K, d] get from proxies [Hq, g, d] after them, mean over a group of heads."""
    asking = proxies.float().reshape(len(keys), -1, proxies.shape[-1])  # [H, G g, d]
    paid = [(part @ keys.mT * scaling).softmax(-1).sum(1) for part in asking.split(CHUNK, dim=1)]
    return torch.stack(paid).sum(0) * (len(keys) / len(proxies))


def voted(attention: Tensor, mass: float, inclusive: bool) -> Tensor:
    """bool [H, K]: the best slots of attention [H, K] that together hold at most `mass` of its sum.

    inclusive: the fewest that hold `mass` of it or more. Ties go to the lower slot.
    """
    order = attention.sort(dim=-1, descending=True, stable=True)
    held = order.values.double().cumsum(-1)
    share = mass * held[:, -1:]
    chosen = torch.nn.functional.pad(held[:, :-1], (1, 0)) < share if inclusive else held <= share
    return torch.zeros_like(chosen).scatter(-1, order.indices, chosen)
