"""Two worlds to choose training data in: made-up sources of known worth, and texts that people wrote.

Shapes as in model.py. What selection may read (`Target`) and what only the final report reads (`World.test`) are
apart; `select` is given a `Target`, so it has no way to the test queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from elvi.errors import ElviError
from elvi.related.trait.model import WORDS, Pairs, Retrieval

if TYPE_CHECKING:
    from torch import Tensor

HELPFUL, NEUTRAL, HARMFUL = "helpful", "neutral", "harmful"
TOPICS, CONCEPTS = 20, 24  # every concept has a word for queries and a word for documents
TARGET_TOPICS = 5
FILLERS = 40


@dataclass(frozen=True)
class Source:
    """A training set: name, pairs, and what the generator knows of its worth (None for real text)."""

    name: str
    pairs: Pairs
    kind: str | None = None


@dataclass(frozen=True)
class Target:
    """What selection may know of the target: few pairs to adapt on (A) and queries to measure on (V)."""

    adapt: Pairs
    dev: Retrieval


@dataclass(frozen=True)
class World:
    """`general` trains theta0; `titles` name the documents; `words` are those a prompt may hold (None: any, hashed)."""

    sources: tuple[Source, ...]
    target: Target
    test: Retrieval
    general: Pairs
    titles: tuple[str, ...]
    words: dict[str, int] | None = None


@dataclass(frozen=True)
class Chunks:
    """Equal parts of all sources: pairs of each, and the number of the source it came from."""

    pairs: list[Pairs]
    source: list[int]

    def __len__(self) -> int:
        return len(self.pairs)


def chunks_of(sources: tuple[Source, ...], size: int, seed: int) -> Chunks:
    """Every source shuffled and cut into chunks of exactly `size` pairs; what is left over is dropped.

    Raises ElviError when no source fills a chunk.
    """
    pairs, owner = [], []
    for number, source in enumerate(sources):
        order = torch.randperm(len(source.pairs), generator=torch.Generator().manual_seed(seed + number))
        for start in range(0, len(order) - size + 1, size):
            pairs.append(source.pairs[order[start : start + size]])
            owner.append(number)
    if not pairs:
        largest = max(len(source.pairs) for source in sources)
        raise ElviError(f"Chunks of {size} pairs were asked for, but the largest source has {largest}: use less.")
    return Chunks(pairs, owner)


def synthetic(seed: int, per_source: int = 2560, dev: int = 100, test: int = 300, documents: int = 1000) -> World:
    """Twelve sources in a language of 20 topics: 3 share the target's topics and synonyms, 5 its language only,
    and 4 its topics with the relevance turned round.

    A concept is written with one word in queries and another in documents. Documents have 6 concepts of a topic and 4
    words that mean nothing; queries ask for 3 of them, and with probability 0.25 use the document's own word. In a
    prompt q17 is concept 17 as queries say it, w17 as documents do. theta0 has read queries that repeat their document.
    """
    chance = np.random.default_rng(seed)
    speech = _Language(chance)
    near, far = np.arange(TARGET_TOPICS), np.arange(TARGET_TOPICS, TOPICS)
    sources = []
    for kind, count, topics in ((HELPFUL, 3, near), (NEUTRAL, 5, far), (HARMFUL, 4, near)):
        for number in range(count):
            mixture = chance.dirichlet(np.full(len(topics), 0.5))  # every source leans to some topics
            pairs = speech.pairs(chance.choice(topics, per_source, p=mixture), inverted=kind == HARMFUL)
            sources.append(Source(f"{kind}-{number + 1}", pairs, kind))
    adapt = speech.pairs(chance.choice(near, 32))
    concepts = speech.concepts(chance.choice(near, documents))
    texts = speech.documents(concepts)
    queries = speech.queries(concepts[: dev + test])
    asked = concepts[: dev + test, :3]
    grades = torch.from_numpy((asked[:, None, :, None] == concepts[None, :, None, :]).any(-1).all(-1)).float()
    return World(
        tuple(sources),
        Target(adapt, Retrieval(queries[:dev], texts, grades[:dev])),
        Retrieval(queries[dev:], texts, grades[dev:]),
        speech.general(2000),
        tuple(" ".join(f"w{concept}" for concept in row) for row in concepts),
        {
            f"{mark}{concept}": int(word)
            for mark, row in (("q", speech.asked), ("w", speech.written))
            for concept, word in enumerate(row)
        },
    )


class _Language:
    """Words of queries and documents by concept, and texts of them."""

    def __init__(self, chance: np.random.Generator) -> None:
        concepts = TOPICS * CONCEPTS
        words = chance.permutation(np.arange(1, WORDS))
        self.chance = chance
        self.asked, self.written, rest = np.split(words, [concepts, 2 * concepts])
        self.filler = rest[:FILLERS]
        target = TARGET_TOPICS * CONCEPTS
        self.mistaken = np.roll(np.arange(concepts), CONCEPTS)  # the same place in the topic before
        self.mistaken[:target] = np.roll(np.arange(target), CONCEPTS)

    def concepts(self, topics: np.ndarray) -> np.ndarray:
        """Six different concepts [B, 6] of each topic [B]."""
        within = self.chance.random((len(topics), CONCEPTS)).argsort(1)[:, :6]
        return topics[:, None] * CONCEPTS + within

    def queries(self, concepts: np.ndarray) -> Tensor:
        asked = concepts[:, :3]
        plain = self.chance.random(asked.shape) < 0.25
        return self._text(np.where(plain, self.written[asked], self.asked[asked]), 1)

    def documents(self, concepts: np.ndarray) -> Tensor:
        return self._text(self.written[concepts], 4)

    def general(self, count: int) -> Pairs:
        """Pairs of all topics whose queries repeat the document's words."""
        concepts = self.concepts(self.chance.integers(TOPICS, size=count))
        query = self._text(self.written[concepts[:, :3]], 1)
        return Pairs(query, self.documents(concepts), self.documents(self.concepts(concepts[:, 0] // CONCEPTS)))

    def pairs(self, topics: np.ndarray, *, inverted: bool = False) -> Pairs:
        """A negative is another document of the topic. Inverted: a document of concepts that these are always mistaken
        for counts as the answer, the answer as wrong."""
        concepts = self.concepts(topics)
        query, answer = self.queries(concepts), self.documents(concepts)
        if inverted:
            return Pairs(query, self.documents(self.mistaken[concepts]), answer)
        return Pairs(query, answer, self.documents(self.concepts(topics)))

    def _text(self, words: np.ndarray, fillers: int) -> Tensor:
        return torch.from_numpy(np.hstack([words, self.chance.choice(self.filler, (len(words), fillers))]))
