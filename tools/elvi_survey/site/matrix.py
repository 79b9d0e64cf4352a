"""The page of all pairs: what works with what, by the file of `elvi pairs`, which tests hold to what happens."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from elvi.pairs import Pairs
from elvi_survey.codefacts import Technique
from elvi_survey.schema import Catalog, Record
from elvi_survey.vocabulary import Stage

URL = "compose/"
STATES = {
    "works": "works",
    "needs": "works with a third",
    "refused": "refused",
    "model": "refused on one model",
    "unfit": "fits no model here",
}
CLASSES = {"works": "", "needs": "n", "refused": "x", "model": "m", "unfit": "u"}


@dataclass(frozen=True)
class Together:
    """What comes of two techniques over all models that both fit, and the sentence of the error where there is one.

    sentence: of {first} and {second}; models: those on which it is said, empty where it is said on all of them.
    """

    state: str
    sentence: str | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reason:
    """One sentence and all pairs that it is said of: (technique, its partners), by whichever side has fewer."""

    state: str
    sentence: str
    models: tuple[str, ...]
    pairs: list[tuple[str, str]]

    @property
    def words(self) -> str:
        said = self.sentence.replace("{first}", "the first").replace("{second}", "the second")
        return said[0].upper() + said[1:]

    @property
    def leads(self) -> bool:
        """Whether the lines begin with the one that acts first."""
        return len({first for first, _ in self.pairs}) <= len({second for _, second in self.pairs})

    @property
    def lines(self) -> list[tuple[str, list[str]]]:
        found: dict[str, list[str]] = {}
        for first, second in self.pairs:
            one, other = (first, second) if self.leads else (second, first)
            found.setdefault(one, []).append(other)
        return list(found.items())


def merged(pairs: Pairs, first: str, second: str) -> Together:
    """The verdicts of all models in one; a model that one of the two does not fit has no say."""
    found = {model: pairs.reason(model, first, second) for model in pairs.models}
    fitting = {model: each for model, each in found.items() if each.kind != "unfit"} or found
    kinds = {each.kind for each in fitting.values()}
    said = {model: each.sentence for model, each in fitting.items() if each.sentence}
    sentence = next(iter(said.values()), None)
    return Together(kinds.pop(), sentence) if len(kinds) == 1 else Together("model", sentence, tuple(said))


def arrange(pairs: Pairs, catalog: Catalog, techniques: dict[str, Technique]) -> list[tuple[Stage, list[Record]]]:
    """The techniques of the file by the stage folder of their module, in the order in which they act."""
    known = [id_ for id_ in pairs.techniques if id_ in catalog.records and id_ in techniques]
    acting = sorted(known, key=lambda id_: (pairs.techniques[id_]["seam"], id_))
    groups = [
        (stage, [catalog.records[id_] for id_ in acting if techniques[id_].stage == stage.id])
        for stage in catalog.stages.values()
    ]
    return [(stage, records) for stage, records in groups if records]


def context(pairs: Pairs, catalog: Catalog, techniques: dict[str, Technique]) -> dict[str, Any]:
    """What the template is told."""
    groups = arrange(pairs, catalog, techniques)
    shown = {record.id for _, records in groups for record in records}
    found = {pair: merged(pairs, *pair) for pair in pairs.ordered() if shown.issuperset(pair)}
    reasons = _reasons(found, [record.id for _, records in groups for record in records])
    number = {pair: n for n, reason in enumerate(reasons, 1) for pair in reason.pairs}
    places = sorted({tuple(known["seam"]) for known in pairs.techniques.values()})

    def cell(row: str, column: str) -> Markup:
        pair = (row, column) if (row, column) in found else (column, row)
        if row == column:
            return Markup('<td class="d"></td>')
        state = found[pair].state
        if state == "works":
            return Markup("<td>works</td>")
        return Markup('<td class="{}" data-r="{}">{}</td>').format(CLASSES[state], number[pair], STATES[state])

    return {
        "groups": groups,
        "cell": cell,
        "counts": Counter(each.state for each in found.values()),
        "states": STATES,
        "marks": CLASSES,
        "reasons": reasons,
        "models": pairs.models,
        "known": pairs.techniques,
        "place": {id_: places.index(tuple(known["seam"])) for id_, known in pairs.techniques.items()},
        "unfit": _unfit(pairs, shown),
    }


def _reasons(found: dict[tuple[str, str], Together], order: list[str]) -> list[Reason]:
    """Refusals first, those that are said most often before others."""
    grouped: dict[Together, list[tuple[str, str]]] = {}
    for pair, together in found.items():
        if together.sentence:
            grouped.setdefault(together, []).append(pair)
    made = [
        Reason(each.state, each.sentence, each.models, sorted(of, key=lambda pair: [order.index(id_) for id_ in pair]))
        for each, of in grouped.items()
        if each.sentence
    ]
    kinds = ["refused", "model", "unfit", "needs"]
    return sorted(made, key=lambda reason: (kinds.index(reason.state), -len(reason.pairs), reason.sentence))


def _unfit(pairs: Pairs, shown: set[str]) -> list[tuple[str, str]]:
    """(technique, model) wherever no pair with the technique works because it does not fit the model."""
    found = []
    for id_ in sorted(shown):
        of = [pair for pair in pairs.ordered() if id_ in pair]
        for model in pairs.models:
            kinds = Counter(pairs.reason(model, *pair).kind for pair in of)
            if kinds["unfit"] and not kinds["works"]:
                found.append((id_, model))
    return found
