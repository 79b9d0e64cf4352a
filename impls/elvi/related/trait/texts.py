"""The world of real text, read from two packages as the registry has them; nothing of them is copied here.

The folder holds gensim's wheel (test data: 50 news texts with human ratings of their likeness, Lee, Pincombe and Welsh
2005; 300 more news texts; 250 encyclopedia texts) and vaderSentiment's source distribution (tweets, movie and product
reviews, editorials; Hutto and Gilbert 2014). Sources are made-up pairs: a beginning and what follows it.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
import zlib
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elvi.errors import ElviError
from elvi.related.trait.data import Source, Target, World
from elvi.related.trait.model import WORDS, Pairs, Retrieval

LENGTH, MOST = 128, 640  # words of a text, pairs of a source
ADAPT, DEV = 10, 15  # of the 50 rated texts; the other 25 are test queries
FETCH = "`pip download --no-deps gensim==4.4.0 vaderSentiment==3.3.2 --no-binary vaderSentiment -d FOLDER` fetches both"


def real(folder: str, seed: int) -> World:
    """The rated news texts as target, six kinds of text as sources. Raises ElviError for a folder without them."""
    try:
        wheel = zipfile.ZipFile(_find(folder, "gensim-*.whl"))
        outer = tarfile.open(_find(folder, "vadersentiment-*.tar.gz"))  # noqa: SIM115
        news, background, articles, ratings = (
            wheel.read(f"gensim/test/test_data/{name}").decode("utf-8", "replace")
            for name in ("lee.cor", "lee_background.cor", "head500.noblanks.cor", "similarities0-1.txt")
        )
        inner = next(outer.extractfile(name) for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        reviews = tarfile.open(fileobj=io.BytesIO(inner.read()))  # noqa: SIM115
        kinds = {
            name: reviews.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode("utf-8", "replace")
            for name in ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
        }
    except (OSError, KeyError, StopIteration, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ElviError(f"Real text was asked for, but {folder} does not hold it ({error}): {FETCH}.") from error
    chance = np.random.default_rng(seed)
    sources = [
        _source("news", [tuple(line.split(". ", 1)) for line in background.splitlines()], chance),
        _source("encyclopedia", [_cut(line, 12) for line in articles.splitlines()], chance),
        *(_source(name, _followed(text), chance) for name, text in kinds.items()),
    ]
    texts = news.splitlines()
    likeness = torch.from_numpy(np.loadtxt(io.StringIO(ratings)))
    likeness = torch.maximum(likeness, likeness.T).float().fill_diagonal_(-1)  # no text is an answer to itself
    words = hashed(texts)
    order = torch.from_numpy(chance.permutation(len(texts)))
    adapt, dev, test = order[:ADAPT], order[ADAPT : ADAPT + DEV], order[ADAPT + DEV :]
    opposite = likeness[adapt].masked_fill(likeness[adapt] < 0, 2).argmin(1)
    pairs = Pairs(words[adapt], words[likeness[adapt].argmax(1)], words[opposite])
    return World(
        tuple(sources),
        Target(pairs, Retrieval(words[dev], words, likeness[dev])),
        Retrieval(words[test], words, likeness[test]),
        pairs[:0],
        tuple(text[:80] for text in texts),
    )


def hashed(texts: list[str]) -> Tensor:
    """Words of three letters and more as numbers from 1 to V-1: int64 [B, L], padded with 0."""
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        found = re.findall(r"[^\W\d_]{3,}", text.lower())[:LENGTH]
        row[: len(found)] = torch.tensor([zlib.crc32(word.encode()) % (WORDS - 1) + 1 for word in found])
    return rows


def _find(folder: str, pattern: str) -> Path:
    found = sorted(path for path in Path(folder).glob("*") if fnmatch(path.name.lower(), pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern}")
    return found[-1]


def _cut(text: str, words: int) -> tuple[str, ...]:
    parts = text.split()
    return " ".join(parts[:words]), " ".join(parts[words:])


def _followed(table: str) -> list[tuple[str, ...]]:
    """Rows of id, rating, text. An id 7_2 is sentence 2 of text 7, which the next row goes on; others are halved."""
    rows = [line.split("\t", 2) for line in table.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if all("_" in row[0] for row in rows):
        return [(a[2], b[2]) for a, b in pairwise(rows) if a[0].split("_")[0] == b[0].split("_")[0]]
    return [_cut(row[2], len(row[2].split()) // 2) for row in rows]


def _source(name: str, pairs: list[tuple[str, ...]], chance: np.random.Generator) -> Source:
    """At most MOST of the pairs in a seeded order, each with the next one's document as its negative."""
    pairs = [pair for pair in pairs if len(pair) == 2 and min(len(part.split()) for part in pair) >= 3]
    kept = [pairs[index] for index in chance.permutation(len(pairs))[:MOST]]
    query, positive = (hashed([pair[side] for pair in kept]) for side in (0, 1))
    return Source(name, Pairs(query, positive, positive.roll(-1, 0)))
