"""Nested mentions as one row of tags per length, and back; the scores and ceilings that go with them.

A mention is (type, start, end) with an open end, counted in tokens. Several types on one span are one tag "a|b", in
alphabetical order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from elvi.errors import ElviError

Mention: TypeAlias = tuple[str, int, int]
OUTSIDE = "O"


def spans(mentions: Iterable[Mention]) -> dict[tuple[int, int], str]:
    """Each span with its types joined into one word, shortest spans first and from left to right."""
    kinds: dict[tuple[int, int], set[str]] = defaultdict(set)
    for kind, start, end in mentions:
        kinds[start, end].add(kind)
    order = sorted(kinds, key=lambda span: (span[1] - span[0], span))
    return {span: "|".join(sorted(kinds[span])) for span in order}


def tag_set(sentences: Iterable[Iterable[Mention]]) -> tuple[str, ...]:
    """O, then B and I of every joined type that the sentences (the training set) hold."""
    kinds = sorted({kind for mentions in sentences for kind in spans(mentions).values()})
    return (OUTSIDE, *(f"{place}-{kind}" for kind in kinds for place in "BI"))


def known(kind: str, tags: Sequence[str]) -> str:
    """The joined type itself, or its first part that the tags know; raises ElviError when they know none."""
    found = next((part for part in (kind, *kind.split("|")) if f"B-{part}" in tags), None)
    if found is None:
        listed = ", ".join(tag[2:] for tag in tags if tag.startswith("B-"))
        raise ElviError(f"The label {kind} is unknown to this model, which knows {listed}: train one on such data.")
    return found


def encode(mentions: Iterable[Mention], length: int, depth: int, tags: Sequence[str]) -> list[list[int]]:
    """Tag numbers of each layer d = 0..min(depth, length - 1), as many as positions: length - d.

    A mention of n tokens is one B at layer n - 1. Those longer than the stack are a run of B I I ... at its top; where
    two of them overlap there, the one written later (the longer, then the one further right) wins.
    """
    rows = [[0] * (length - d) for d in range(min(depth, length - 1) + 1)]
    for (start, end), kind in spans(mentions).items():
        kind, layer = known(kind, tags), min(end - start - 1, depth)
        rows[layer][start : end - layer] = [tags.index(f"I-{kind}")] * (end - layer - start)
        rows[layer][start] = tags.index(f"B-{kind}")
    return rows


def decode(rows: Sequence[Sequence[int]], depth: int, tags: Sequence[str]) -> set[Mention]:
    """The mentions of all layers. Only the top of the stack, which is trained on them, has spans continued by I.

    An I of any type continues the open span, and one with nothing open is passed over.
    """
    found: set[Mention] = set()
    for layer, row in enumerate(rows):
        words = [tags[tag] for tag in row]
        for start, word in enumerate(words):
            if word.startswith("B-"):
                end = start + 1
                while layer == depth and end < len(words) and words[end].startswith("I-"):
                    end += 1
                found |= {(kind, start, end + layer) for kind in word[2:].split("|")}
    return found


def apart(mentions: Iterable[Mention], *, outermost: bool) -> set[Mention]:
    """What a flat tagger is taught: the longest (or shortest) spans that do not touch one another, leftmost first."""
    by_span = spans(mentions)
    sign = -1 if outermost else 1
    taken: list[tuple[int, int]] = []
    for start, end in sorted(by_span, key=lambda span: (sign * (span[1] - span[0]), span)):
        if all(end <= left or right <= start for left, right in taken):
            taken.append((start, end))
    return {(kind, *span) for span in taken for kind in by_span[span].split("|")}


def flat_ceiling(mentions: Iterable[Mention]) -> int:
    """The most mentions that any set of spans that do not overlap can hold (weighted interval scheduling)."""
    best: dict[int, int] = {0: 0}
    weights = {span: kind.count("|") + 1 for span, kind in spans(mentions).items()}
    for place in range(1, max((end for _, end in weights), default=0) + 1):
        ending = [best[start] + weight for (start, end), weight in weights.items() if end == place]
        best[place] = max([best[place - 1], *ending])
    return max(best.values())


def inside(mentions: set[Mention]) -> set[Mention]:
    """Mentions whose span lies within a longer one."""
    return {m for m in mentions if any(s <= m[1] and m[2] <= e and e - s > m[2] - m[1] for _, s, e in mentions)}


def crossing(mentions: set[Mention]) -> set[Mention]:
    """Mentions that share tokens with one that neither holds them nor lies within them."""
    pairs = {(a, b) for a in mentions for b in mentions if a[1] < b[1] < a[2] < b[2]}
    return {mention for pair in pairs for mention in pair}


def score(gold: Sequence[set[Mention]], found: Sequence[set[Mention]]) -> tuple[float, float, float]:
    """Micro precision, recall and F1 over exact (type, start, end), in percent; 0 where nothing is there to count."""
    hits = sum(len(a & b) for a, b in zip(gold, found, strict=True))
    total, said = sum(map(len, gold)), sum(map(len, found))
    precision, recall = (100 * hits / n if n else 0.0 for n in (said, total))
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0
