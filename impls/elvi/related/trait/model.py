"""A small retriever: words -> hashed bag -> one linear map, trained with in-batch InfoNCE.

Shapes: B pairs, L words of a padded text, Q queries, M documents, V words known, D width. A model is one matrix
theta [V, D]; training returns a new one and leaves the old one alone, so whoever keeps it can go back bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS, WIDTH = 2000, 64  # V and D; word 0 is padding
TEMPERATURE, RATE, BATCH = 0.05, 0.01, 64


@dataclass(frozen=True)
class Pairs:
    """Training triples: a query, a document that answers it, one that does not; int64 [B, L] each, padded with 0."""

    query: Tensor
    positive: Tensor
    negative: Tensor

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, index: Tensor | slice) -> Pairs:
        return Pairs(self.query[index], self.positive[index], self.negative[index])

    @staticmethod
    def join(parts: list[Pairs]) -> Pairs:
        """All pairs of the parts, in order; the parts have the same padded lengths."""
        return Pairs(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("query", "positive", "negative"))
        )


@dataclass(frozen=True)
class Retrieval:
    """Queries [Q, L] over documents [M, L] with grades [Q, M]; a document with a negative grade is no candidate."""

    queries: Tensor
    documents: Tensor
    grades: Tensor


def fresh(seed: int) -> Tensor:
    """theta0 [V, D]: a random projection, under which texts are alike when they share words."""
    return torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(seed)) / WIDTH**0.5


def encode(theta: Tensor, words: Tensor) -> Tensor:
    """Unit vectors [B, D] of texts [B, L]; a text without words is the zero vector."""
    return F.normalize(F.embedding_bag(words, theta, mode="mean", padding_idx=0), dim=-1)


def loss(theta: Tensor, pairs: Pairs) -> Tensor:
    """InfoNCE: each query against its document, the documents of the other queries and all negatives."""
    query, positive, negative = (encode(theta, words) for words in (pairs.query, pairs.positive, pairs.negative))
    return F.cross_entropy(query @ torch.cat([positive, negative]).T / TEMPERATURE, torch.arange(len(query)))


def train(theta: Tensor, pairs: Pairs, steps: int, seed: int) -> Tensor:
    """theta after `steps` steps of Adam on batches of `pairs`, read in a seeded order; no pairs, no change."""
    if not len(pairs):
        return theta
    texts = (pairs.query, pairs.positive, pairs.negative)
    words = torch.cat([torch.zeros(1, dtype=torch.long), *(text.flatten() for text in texts)]).unique()
    pairs = Pairs(*(torch.searchsorted(words, text) for text in texts))  # Adam moves no word that is not there
    part = theta[words].requires_grad_()
    optimiser = torch.optim.Adam([part], lr=RATE)
    chance = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(pairs), generator=chance)
        batch, order = order[:BATCH], order[BATCH:]
        optimiser.zero_grad()
        loss(part, pairs[batch]).backward()
        optimiser.step()
    return theta.index_copy(0, words, part.detach())


def ndcg(theta: Tensor, task: Retrieval, depth: int = 10) -> float:
    """nDCG@depth with linear gains, averaged over the queries; equal scores rank the lower document first."""
    scores = encode(theta, task.queries) @ encode(theta, task.documents).T
    scores = scores.masked_fill(task.grades < 0, -torch.inf)
    found = scores.argsort(dim=1, descending=True, stable=True)[:, :depth]
    gains = task.grades.clamp(min=0)
    discount = 1 / torch.arange(2, found.shape[1] + 2).log2()
    best = (gains.sort(dim=1, descending=True)[0][:, : found.shape[1]] * discount).sum(1)
    return float(((gains.gather(1, found) * discount).sum(1) / best.clamp(min=1e-9)).mean())
