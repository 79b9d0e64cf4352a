"""Sentences with nested mentions: a seeded grammar (R), and a reader of files.

The grammar stands in for corpora that need a licence or a download. People, organisations, places and buildings hold
one another (`the lawyer of the head of the bank of Norland`), up to twelve tokens long. Names are made up of syllables;
those of the split "unseen" never occur in the others. Some surnames are places, and a country that acts is an
organisation too, so that context decides; phrases that look like mentions and are none are strewn in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from elvi.errors import ElviError
from elvi.related.pyramid_ner.labels import Mention

LONGEST, DEEPEST, MAX_TOKENS = 12, 4, 25
ROLES = ("president", "minister", "director", "head", "founder")
BRIDGES = ("spokesman", "delegate", "envoy")  # the word that two crossing mentions share
KIN = ("daughter", "lawyer", "adviser", "driver")
TOPICS = ("health", "trade", "justice", "culture", "fisheries")
UNITS = ("board", "union", "staff", "council")
SUFFIXES = ("Group", "Corp", "Bank", "Media")
HALLS = ("bridge", "station", "museum", "airport")
SIDES = ("northern", "southern", "eastern", "greater")
VERBS = ("praised", "visited", "sued", "left", "warned", "called")
LOOKALIKES = (
    "near the bank of the river",
    "in a city of lights",
    "on the board of wood",
    "after Easter",
    "on Monday",
    "at the head of the queue",
    "by the union of ideas",
    "in the northern wind",
)
SYLLABLES = ("ka", "lo", "mir", "ven", "ta", "dor", "su", "nel", "bra", "qui", "zan", "fe", "rho", "gil", "pa", "tem")


@dataclass(frozen=True)
class Sentence:
    tokens: tuple[str, ...]
    mentions: frozenset[Mention]


@dataclass
class Grammar:
    """Draws sentences; `nesting` is the chance that a mention holds another, `crossing` that of a crossing pair."""

    random: Random
    nesting: float
    crossing: float
    unseen: bool = False
    names: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {kind: _names(kind, self.unseen) for kind in ("given", "surname", "place", "company")}
        self.names["surname"] += self.names["place"][:10]

    def sentence(self) -> Sentence:
        while True:
            made = self._sentence()
            short = all(end - start <= LONGEST for _, start, end in made.mentions)
            if short and len(made.tokens) <= MAX_TOKENS:
                return made

    def _sentence(self) -> Sentence:
        subject = self.pair() if self.random.random() < self.crossing else self.person()
        middle = self._pick(
            [
                lambda: (subject, self._pick(VERBS), self.person(), "at", self.building()),
                lambda: (subject, self._pick(VERBS), self.organisation(), "in", self.place()),
                lambda: (self.actor(), "signed", "the", "treaty", "with", self.organisation(), "and", subject),
                lambda: (self.organisation(), self._pick(VERBS), subject, "and", self.person()),
                lambda: ("in", self.place(), ",", subject, self._pick(VERBS), self.building()),
                lambda: ("the", self._pick(self.names["surname"]), "effect", self._pick(VERBS), subject),
            ]
        )()
        aside = self._pick(LOOKALIKES).split() if self.random.random() < 0.5 else []
        return _join(*middle, *aside, ".")

    def person(self, depth: int = 1) -> Sentence:
        given, surname = self._pick(self.names["given"]), self._pick(self.names["surname"])
        role = self._pick(ROLES)
        if self._nests(depth):
            rules = [
                lambda: ("the", role, "of", self.organisation(depth + 1)),
                lambda: ("the", role, "of", self.place(depth + 1)),
                lambda: (self.place(depth + 1), role, given, surname),
                lambda: (given, surname, ",", _join("the", role, "of", self.organisation(depth + 2), kind="PER")),
                lambda: ("the", self._pick(KIN), "of", self.person(depth + 1)),
            ]
        else:
            rules = [lambda: (given, surname), lambda: (surname,), lambda: ("the", role, "of", self._pick(TOPICS))]
        return _join(*self._pick(rules)(), kind="PER")

    def organisation(self, depth: int = 1) -> Sentence:
        if self._nests(depth):
            rules = [
                lambda: ("the", self.place(depth + 1), "ministry", "of", self._pick(TOPICS)),
                lambda: ("the", "bank", "of", self.place(depth + 1)),
                lambda: ("the", self._pick(UNITS), "of", self.organisation(depth + 1)),
                lambda: (self.place(depth + 1), "university"),
                lambda: (self.person(depth + 1), "foundation"),
            ]
        else:
            company = self._pick(self.names["company"])
            rules = [lambda: (company, self._pick(SUFFIXES)), lambda: (company,)]
        return _join(*self._pick(rules)(), kind="ORG")

    def place(self, depth: int = 1) -> Sentence:
        name = self._pick(self.names["place"])
        if not self._nests(depth):
            return _join(name, kind="GPE")
        rules = [
            lambda: ("the", "city", "of", self.place(depth + 1)),
            lambda: (self._pick(SIDES), self.place(depth + 1)),
        ]
        return _join(*self._pick(rules)(), kind="GPE")

    def building(self) -> Sentence:
        if self._nests(1):
            return _join(self._pick([self.place, self.person])(2), self._pick(HALLS), kind="FAC")
        return _join("the", self._pick(SIDES), self._pick(HALLS), kind="FAC")

    def actor(self) -> Sentence:
        """A country that acts: a place and an organisation at once."""
        return _join(_join(self._pick(self.names["place"]), kind="GPE"), kind="ORG")

    def pair(self) -> Sentence:
        """`Velka Bank envoy Mira Dor`: the envoy of the bank, and envoy Mira Dor, share a word."""
        office = _join(self._pick(self.names["company"]), self._pick(SUFFIXES), kind="ORG")
        name = (self._pick(self.names["given"]), self._pick(self.names["surname"]))
        whole = _join(office, self._pick(BRIDGES), *name)
        return Sentence(whole.tokens, whole.mentions | {("PER", 0, 3), ("PER", 2, 5)})

    def _nests(self, depth: int) -> bool:
        return depth < DEEPEST and self.random.random() < self.nesting

    def _pick(self, choices: Sequence):
        return self.random.choice(choices)


def _join(*parts: str | Sentence, kind: str = "") -> Sentence:
    """The parts one after the other, as a mention of that kind where one is given."""
    tokens: list[str] = []
    mentions: set[Mention] = set()
    for part in parts:
        if isinstance(part, Sentence):
            mentions |= {(k, s + len(tokens), e + len(tokens)) for k, s, e in part.mentions}
            tokens += part.tokens
        else:
            tokens.append(part)
    if kind:
        mentions.add((kind, 0, len(tokens)))
    return Sentence(tuple(tokens), frozenset(mentions))


def _names(kind: str, unseen: bool) -> list[str]:
    """Forty made-up names of a kind; the unseen ones share none with the others."""
    random, made = Random(f"names of {kind}"), []
    while len(made) < 80:
        name = "".join(random.sample(SYLLABLES, random.choice((2, 2, 3)))).capitalize()
        if name not in made:
            made.append(name)
    return made[40:] if unseen else made[:40]


def corpus(split: str, size: int, nesting: float, crossing: float, seed: int) -> list[Sentence]:
    """The seeded sentences of a split: train, valid, test (the same names) or unseen (other names)."""
    grammar = Grammar(Random(f"{split} {seed}"), nesting, crossing, unseen=split == "unseen")
    return [grammar.sentence() for _ in range(size)]


def read(path: Path) -> list[Sentence]:
    """Sentences of a JSON list of {"tokens": [...], "entities": [{"entity_type": ..., "span": [start, end)}]}.

    Raises ElviError when the file cannot be read, has another form, or a span is not inside its sentence.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        made = [
            Sentence(tuple(map(str, row["tokens"])), frozenset(_mention(entity) for entity in row["entities"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        form = '[{"tokens": [...], "entities": [{"entity_type": "PER", "span": [0, 2]}]}]'
        raise ElviError(
            f"{path} was asked for, but it cannot be read ({error!r}): give a JSON list like {form}."
        ) from error
    for number, row in enumerate(made):
        wrong = next((m for m in sorted(row.mentions) if not 0 <= m[1] < m[2] <= len(row.tokens)), None)
        if wrong or not row.tokens:
            what = f"the span {list(wrong[1:])}" if wrong else "no tokens"
            size = len(row.tokens)
            raise ElviError(
                f"Sentence {number} of {path} has {what} for {size} tokens: spans are [start, end) within it."
            )
    if not made:
        raise ElviError(f"{path} holds no sentences: give at least one.")
    return made


def _mention(entity: dict) -> Mention:
    start, end = entity["span"]
    return str(entity["entity_type"]), int(start), int(end)
