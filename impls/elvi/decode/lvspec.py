"""LVSpec: drafted tokens that say nothing about the picture are verified loosely.

"See the Forest for the Trees: Loosely Speculative Decoding via Visual-Semantic Guidance", ACL 2026, arXiv:2604.05650.

Idea. The quality of an answer hangs on a few words that are grounded in the picture; articles and connectives may
differ. With h_i the target's hidden state at drafted token d_i (from the verification itself) and H_V those of the
visual tokens (from the prefill), the relevance of a draft is

    A_i = mean of the `top` largest cos(h_i, H_V).

The share 1 - relaxation of the drafts with the highest A_i is verified strictly: d_i has to be the target's greedy
token y_i. The others stand as drafted. A strict mismatch is rescued if it is only out of place: d_i occurs among the
y_j with 0 < |j - i| <= window. The first that is not rescued is replaced by y_i, and the round ends.

This is a reconstruction. No official code can be had, and we know the method from its abstract and from digests of its
text, which give A_i, the share, `top` and the chain of ten. Ours are: one ranking per round (`threshold="rank"`, ties
strict for the earlier token) or a running quantile of all relevances so far ("quantile"); the window and the reading of
the rescue (`shift`: "target" as above, or "draft": y_i among the d_j); the layer, the last before the final norm, and
its hidden states rather than the embeddings of the visual tokens (`visual_source`). Special tokens are always strict,
and so is everything where there is no picture. In a tree, nodes are ranked together, and the window of a node runs
along its ancestors and first children.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.accept import Draft, Path, accept_relaxed
from elvi.core.facts import Fact
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.core.run import Run
    from elvi.core.seams import Judge


@dataclass(frozen=True)
class LVSpec:
    """Verify visually relevant drafts strictly and the others loosely; not lossless, greedy decoding only.

    relaxation: share of drafted tokens that is verified loosely (lambda); top: similarities averaged per token (N);
    window: places by which a rescued token may be off (0: no rescue); layer: of the hidden states, -1 is the last;
    visual_source: "hidden" or "embedding"; threshold: "rank" or "quantile"; shift: "target" or "draft".
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    greedy_only: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("specvlm:tree=chain,select=uniform",)
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("relaxation", (0.0, 0.5, 0.7, 0.9))
    full: ClassVar[dict[str, Any] | None] = {"relaxation": 0.0, "window": 0}

    relaxation: float = 0.7
    top: int = 10
    window: int = 3
    layer: int = -1
    visual_source: str = "hidden"
    threshold: str = "rank"
    shift: str = "target"

    def __post_init__(self) -> None:
        check_range(self, "relaxation", 0, 1)
        check_range(self, "top", 1, 10_000)
        check_range(self, "window", 0, 64)
        check_choice(self, "visual_source", "hidden", "embedding")
        check_choice(self, "threshold", "rank", "quantile")
        check_choice(self, "shift", "target", "draft")

    @property
    def hidden_layer(self) -> int:
        return self.layer

    def judge(self, run: Run, sampler: Sampler) -> Judge:
        source = run.watched if self.visual_source == "hidden" else run.entered
        return _Judge(self, run, normalize(source.hidden[source.visual].float(), dim=-1))


class _Judge:
    """The rule for one sequence; it remembers the relevances it has seen."""

    def __init__(self, technique: LVSpec, run: Run, visual: Tensor) -> None:
        self.technique, self.run, self.visual = technique, run, visual
        self.special = run.family.special_tokens
        self.past = torch.empty(0)

    def __call__(self, draft: Draft, logits: Tensor) -> Path:
        strict = set(range(len(draft)))
        if len(self.visual) and len(draft):
            strict = self.strict(relevance(self.run.watched.hidden[1:], self.visual, self.technique.top))

        def passes(node: int, best: list[int]) -> bool:
            return node not in strict or (len(self.visual) > 0 and self.shifted(draft, node, best))

        return accept_relaxed(draft, logits, self.special, passes)

    def strict(self, score: Tensor) -> set[int]:
        """Drafted tokens that have to match, given the relevance [n] of each."""
        share = self.technique.relaxation
        if self.technique.threshold == "rank":
            order = score.sort(descending=True, stable=True).indices
            return set(order[: len(score) - int(share * len(score) + 1e-9)].tolist())
        self.past = torch.cat([self.past, score.cpu()])
        return set((score.cpu() >= self.past.quantile(share)).nonzero()[:, 0].tolist()) if share < 1 else set()

    def shifted(self, draft: Draft, node: int, best: list[int]) -> bool:
        """Whether a mismatching token stands nearby in the other sequence."""
        line, place = _line(draft, node)
        drafted = [draft.ids[each] for each in line]
        wanted = [best[draft.parents[each] + 1] for each in line] + [best[line[-1] + 1]]
        token, other = (draft.ids[node], wanted) if self.technique.shift == "target" else (wanted[place], drafted)
        first = max(0, place - self.technique.window)
        return token in other[first:place] + other[place + 1 : place + 1 + self.technique.window]


def relevance(hidden: Tensor, visual: Tensor, top: int) -> Tensor:
    """A [n]: mean of the `top` largest cosines of each hidden state [n, D] with unit visual states [m, D], m > 0."""
    cosine = normalize(hidden.float(), dim=-1) @ visual.mT
    return cosine.topk(min(top, visual.shape[0]), dim=-1).values.mean(-1)


def _line(draft: Draft, node: int) -> tuple[list[int], int]:
    """A node with its ancestors before and its first children after it, from the root down; and its place there."""
    line = [node]
    while draft.parents[line[0]] >= 0:
        line.insert(0, draft.parents[line[0]])
    place = len(line) - 1
    while children := draft.children(line[-1]):
        line.append(children[0])
    return line, place
