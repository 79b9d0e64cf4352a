"""Drafts, and the rules that decide which drafted tokens stand.

A draft is a tree whose root is the last emitted token (a chain is a tree without siblings); verification gives the
target's logits after the root and after every node. Exact greedy and exact sampling emit what plain decoding emits;
relaxed rules emit some drafted tokens that the target would not have chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Draft:
    """Drafted tokens in an order in which parents come first.

    ids: vocabulary ids; parents: index of each node's parent, -1 for the root; probs: float32 [n, V], the distribution
    that node i was really drawn from, given the siblings before it, or None when the drafter is deterministic (its
    proposals are points). V is the width of the target's head.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: Tensor | None = None

    @staticmethod
    def chain(ids: list[int], probs: Tensor | None = None) -> Draft:
        """Tokens one after another, each the child of the one before."""
        return Draft(ids, list(range(-1, len(ids) - 1)), probs)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_chain(self) -> bool:
        """Whether every node continues the one before it."""
        return self.parents == list(range(-1, len(self.ids) - 1))

    @property
    def depths(self) -> list[int]:
        """1 for children of the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def children(self, node: int) -> list[int]:
        """The nodes that continue `node` (-1: the root), in their order."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def mask(self) -> Tensor:
        """bool [n+1, n+1]: which nodes (root first) each node may read: its ancestors and itself."""
        mask = torch.eye(len(self.ids) + 1, dtype=torch.bool)
        for node, parent in enumerate(self.parents, start=1):
            mask[node] |= mask[parent + 1]
        return mask


@dataclass(frozen=True)
class Path:
    """Accepted nodes from the root down, and the token the target adds after the last of them."""

    nodes: list[int]
    next: int


@dataclass
class Sampler:
    """How the target turns logits into a token: greedy at temperature 0, else seeded sampling.

    Separate random streams for the target (`generator`) and for drafting (`draft_generator`).
    """

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.draft_generator = torch.Generator().manual_seed(self.seed + 1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that no chance is involved."""
        return self.temperature == 0.0

    def probs(self, logits: Tensor) -> Tensor:
        """float32 [..., V] on the CPU: the distribution that is sampled from (a point mass when greedy)."""
        logits = logits.float().cpu()
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return (logits / self.temperature).softmax(-1)

    def pick(self, logits: Tensor) -> int:
        """One token after logits [V]."""
        if self.greedy:
            return int(logits.argmax())
        return self.draw(self.probs(logits))

    def draw(self, probs: Tensor) -> int:
        """One token from probs [V], by the target's stream."""
        return int(torch.multinomial(probs, 1, generator=self.generator))

    def uniform(self) -> float:
        """A number in [0, 1), by the target's stream."""
        return float(torch.rand((), generator=self.generator))


def accept_exact(draft: Draft, logits: Tensor, sampler: Sampler) -> Path:
    """Emit what plain decoding would: greedily the argmax path, else by rejection sampling."""
    return accept_greedy(draft, logits) if sampler.greedy else accept_sampled(draft, logits, sampler)


def accept_greedy(draft: Draft, logits: Tensor) -> Path:
    """Follow the target's argmax down the tree; logits [n+1, V], row 0 after the root.

    Of equal siblings the first is followed, so a drafter should not repeat a token under one parent.
    """
    best = logits.argmax(-1).tolist()
    nodes: list[int] = []
    node = -1
    while True:
        match = [child for child in draft.children(node) if draft.ids[child] == best[node + 1]]
        if not match:
            return Path(nodes, best[node + 1])
        node = match[0]
        nodes.append(node)


def accept_relaxed(draft: Draft, logits: Tensor, strict: set[int], passes: Callable[[int, list[int]], bool]) -> Path:
    """Follow the target's argmax; where no child matches it, the first child stands if it passes.

    passes(node, best): whether a mismatching node stands all the same; best [n+1] are the target's tokens, row 0 after
    the root. Tokens in `strict` (ends, placeholders) are never let through, nor is a mismatch in their place.
    """
    best: list[int] = logits.argmax(-1).tolist()
    nodes: list[int] = []
    node = -1
    while children := draft.children(node):
        wanted = best[node + 1]
        match = [child for child in children if draft.ids[child] == wanted]
        if not match and not {wanted, draft.ids[children[0]]} & strict and passes(children[0], best):
            match = children
        if not match:
            break
        node = match[0]
        nodes.append(node)
    return Path(nodes, best[node + 1])


def accept_sampled(draft: Draft, logits: Tensor, sampler: Sampler) -> Path:
    """Rejection sampling down the tree (Leviathan et al. 2023, section 2.3; siblings in turn as in SpecInfer).

    At each node the target's distribution p is tested against each child in turn: accept it with probability
    min(1, p/q), else p <- norm(max(p - q, 0)) and on to the next; after the last child draw from what is left of p.
    One step emits x with q(x) min(1, p(x)/q(x)) + max(p(x) - q(x), 0) = p(x), whatever q is, so the emitted tokens
    follow the target's law. A point proposal has q = 1 at its token: accepted with p(x), and p without x is left.
    """
    probs = sampler.probs(logits)
    nodes: list[int] = []
    node = -1
    while True:
        target, chosen = probs[node + 1], None
        for child in draft.children(node):
            token = draft.ids[child]
            proposal = _proposal(draft, child, target)
            if sampler.uniform() * float(proposal[token]) < float(target[token]):
                chosen = child
                break
            target = _residual(target, proposal)
        if chosen is None:
            return Path(nodes, sampler.draw(target))
        nodes.append(chosen)
        node = chosen


def _proposal(draft: Draft, node: int, like: Tensor) -> Tensor:
    if draft.probs is not None:
        return draft.probs[node]
    point = torch.zeros_like(like)
    point[draft.ids[node]] = 1.0
    return point


def _residual(target: Tensor, proposal: Tensor) -> Tensor:
    """norm(max(p - q, 0)); p itself where rounding leaves nothing of it."""
    rest = (target - proposal).clamp_(min=0)
    mass = rest.sum()
    return rest / mass if mass > 0 else target
