"""Drafting with a model: a second family, with a cache of its own that follows what the target accepts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.core.accept import Draft, Path, Sampler
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError

if TYPE_CHECKING:
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class Shape:
    """A static tree of drafts: node i continues node parents[i] (-1: the last emitted token), siblings best first.

    Parents come first, and nodes are listed level by level.
    """

    parents: tuple[int, ...]

    @staticmethod
    def chain(depth: int) -> Shape:
        """One token after another, `depth` of them."""
        return Shape(tuple(range(-1, depth - 1)))

    @staticmethod
    def branches(count: int, depth: int) -> Shape:
        """`count` chains that start with different tokens."""
        return Shape(tuple(max(node - count, -1) for node in range(count * depth)))

    @staticmethod
    def of(paths: str) -> Shape:
        """From the path to each node, a digit for each step: "0 1 00 01" is two nodes, the first with two children."""
        nodes = sorted(paths.split(), key=lambda path: (len(path), path))
        return Shape(tuple(nodes.index(path[:-1]) if len(path) > 1 else -1 for path in nodes))

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of every node, and of the root (-1)."""
        found: dict[int, list[int]] = {node: [] for node in range(-1, len(self.parents))}
        for node, parent in enumerate(self.parents):
            found[parent].append(node)
        return found

    @property
    def is_chain(self) -> bool:
        """Whether every node continues the one before it."""
        return self == Shape.chain(len(self.parents))


def check_drafter(technique: object, target: Family, drafter: Family) -> None:
    """Raise FitError unless both models speak one vocabulary (heads may be padded differently) on one device."""
    asked = f"{type(technique).__name__} was asked to draft with {drafter.name}"
    if drafter.device != target.device:
        raise FitError(
            f"{asked} on {drafter.device} for {target.name} on {target.device}, but their tokens would have to travel "
            "in every step: load both on one device."
        )
    words = [(family.vocabulary, family.tokenizer.get_vocab()) for family in (target, drafter)]
    if words[0] != words[1]:
        raise FitError(
            f"{asked} ({drafter.vocabulary} tokens) for {target.name} ({target.vocabulary} tokens), but their "
            "vocabularies differ: use a drafter that shares the target's tokenizer, or a technique that bridges two."
        )


def check_shape(technique: object, target: Family, shape: Shape) -> None:
    """Raise FitError for a tree on an attention kernel that takes no mask."""
    if not shape.is_chain and "flash" in target.attention_kernel:
        raise FitError(
            f"{type(technique).__name__} was asked to draft a tree, which is verified under a mask, but {target.name} "
            f"runs on {target.attention_kernel}, which takes none: draft a chain, or load the model with sdpa."
        )


class ModelDrafting:
    """A model drafting for `target` in the given shape, with its own cache and under its own plan.

    It reads the same question and, unless it reads text only, the same clip through its own tower. Greedy drafts are
    points: the best tokens after each node. Sampled drafts follow the drafter's law at the target's temperature,
    siblings drawn without replacement; `Draft.probs` states the law of every token.
    """

    def __init__(
        self, family: Family, target: Run, clip: Clip | None, sampler: Sampler, shape: Shape, plan: Plan | None = None
    ) -> None:
        self.run = Run(family, plan or Plan())
        self.sampler, self.shape = sampler, shape
        self.head_width = target.family.model.get_output_embeddings().weight.shape[0]
        self.known = 0  # emitted tokens that the cache holds
        self.waiting: list[int] = []  # nodes of the draft whose rows wait in the cache: those that were continued
        prefill(self.run, clip if family.image_processor is not None else None, target.question or "")

    def propose(self, ids: list[int], limit: int) -> Draft:
        """A tree of the shape, at most `limit` deep, after the emitted tokens `ids`."""
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        level, depth = [(-1, -1)], 0  # (place in the shape, node of the draft) of what is continued next
        while depth < limit and (level := [(place, node) for place, node in level if self.shape.children[place]]):
            grown = []
            for (place, node), logits in zip(level, self._read(ids, tokens, parents, [node for _, node in level])):
                places = self.shape.children[place]
                drawn, law = self._draw(logits, len(places))
                grown += [(child, len(tokens) + turn) for turn, child in enumerate(places[: len(drawn)])]
                tokens, parents, laws = tokens + drawn, parents + [node] * len(drawn), [*laws, *law]
            level, depth = grown, depth + 1
        return Draft(tokens, parents, torch.stack(laws) if laws else None)

    def heard(self, path: Path) -> None:
        """Keep the rows of accepted nodes in the drafter's cache and drop the others."""
        stand = [self.waiting.index(node) for node in path.nodes if node in self.waiting]
        self.run.commit(stand)
        self.known += len(stand)
        self.waiting = []

    def _read(self, ids: list[int], tokens: list[int], parents: list[int], nodes: list[int]) -> Tensor:
        """Logits [n, V] after nodes of one level; for the root, after all that was emitted since the last draft."""
        if nodes == [-1]:
            logits = forward(self.run, ids[self.known :], list(range(len(ids) - self.known)))[-1:]
            self.run.commit()
            self.known = len(ids)
            return logits
        draft = Draft(tokens, parents)
        self.waiting += nodes
        tree = None
        if not self.shape.is_chain:
            tree = draft.mask()[1:, 1:][nodes][:, self.waiting]
        return forward(self.run, [tokens[node] for node in nodes], [draft.depths[nodes[0]] - 1] * len(nodes), tree)

    def _draw(self, logits: Tensor, count: int) -> tuple[list[int], list[Tensor]]:
        """Up to `count` distinct tokens after logits [V], and the law [V] that each was drawn from (none if greedy)."""
        logits = logits[: self.run.family.vocabulary]
        if self.sampler.greedy:
            return (logits.topk(min(count, len(logits))).indices.tolist() if count > 1 else [int(logits.argmax())]), []
        law = torch.nn.functional.pad(self.sampler.probs(logits), (0, self.head_width - len(logits)))
        tokens: list[int] = []
        laws: list[Tensor] = []
        while len(tokens) < count and law.sum() > 0:
            laws.append(law / law.sum())
            tokens.append(int(torch.multinomial(laws[-1], 1, generator=self.sampler.draft_generator)))
            law = laws[-1].index_fill(0, torch.tensor(tokens[-1:]), 0.0)
        return tokens, laws
