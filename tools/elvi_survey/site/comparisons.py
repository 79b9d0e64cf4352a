"""Pages on which the techniques of a category stand side by side: which kind a category has, and what it is told."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from elvi_survey.site import compression, speculation
from elvi_survey.vocabulary import Category

if TYPE_CHECKING:
    from elvi_survey.site.pages import Sources


@dataclass(frozen=True)
class Comparison:
    """One such page. `words` follow the category's title in its description, `link` leads there from a technique."""

    template: str
    words: str
    link: str
    groups: list[Any]
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def techniques(self) -> set[str]:
        """Ids of the techniques that stand there."""
        return {id_ for group in self.groups for id_ in group.techniques}


def comparison(sources: "Sources", category: Category, ids: list[str]) -> Comparison | None:
    """The page of a category whose techniques are `ids`: of smaller caches, or of drafting; None without results."""
    lowered = compression.LOWERED in category.lowers
    if lowered and (smaller := compression.groups(sources.results, ids)):
        words = "quality against bytes of all that is measured here, from random selection to the full cache."
        return Comparison("compression.html", words, _SMALLER, smaller, _contracts(sources, smaller, ids))
    if drafting := speculation.groups(sources.results, ids):
        words = "all techniques that run here, side by side with plain decoding on the same prompts."
        return Comparison("compared.html", words, _DRAFTING, drafting, _reported(sources, drafting, ids))
    return None


_SMALLER = "Compared with the other techniques that make the cache smaller"
_DRAFTING = "Compared with the other techniques that draft"


def _contracts(sources: "Sources", groups: list[compression.Group], ids: list[str]) -> dict[str, Any]:
    """What the compared techniques need and break, the sentences of these facts, and what runs but is not measured."""
    records = sources.catalog.records
    shown = dict.fromkeys(id_ for group in groups for id_ in group.techniques)
    classes = {id_: code.classes if (code := sources.techniques.get(id_)) else [] for id_ in shown}
    needs = {id_: list(dict.fromkeys(name for part in classes[id_] for name in part.needs)) for id_ in shown}
    breaks = {id_: list(dict.fromkeys(name for part in classes[id_] for name in part.breaks)) for id_ in shown}
    named = {name for contract in (needs, breaks) for names in contract.values() for name in names}
    return {
        "budget": compression.BUDGET,
        "contracts": [(records[id_], needs[id_], breaks[id_]) for id_ in shown],
        "sentences": {name: words for name, words in sources.facts.items() if name in named},
        "baselines": [(tie.to, id_) for id_ in shown for tie in records[id_].relations if tie.kind == "baseline-of"],
        "unmeasured": [records[i] for i in ids if i not in shown and records[i].implementation.status == "runnable"],
    }


def _reported(sources: "Sources", groups: list[speculation.Group], ids: list[str]) -> dict[str, Any]:
    """What the authors of rules that relax verification state."""
    judged = {row.result.technique for group in groups for row, *_ in group.relaxed()}
    return {"reported": [record for id_ in ids if id_ in judged and (record := sources.catalog.records[id_]).claims]}
