"""What the filter of the papers table offers, and the script files that it reads.

Data comes as scripts, not as JSON: a page opened without a server may load a script beside it and may not fetch a file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from elvi_survey.export import PARTS
from elvi_survey.schema import Catalog, Record

FILES = {
    "bibtex": ("elvi-papers.bib", "application/x-bibtex"),
    "ris": ("elvi-papers.ris", "application/x-research-info-systems"),
    "csv": ("elvi-papers.csv", "text/csv"),
    "csl": ("elvi-papers.csl.json", "application/json"),
}
WORDS = {
    "training": {"free": "Training-free", "trained": "Trained", "unknown": "Not recorded"},
    "input": {"image": "Image", "video": "Video", "streaming": "Stream", "text": "Text"},
    "here": {"runs": "Runs", "planned": "Planned", "none": "No implementation"},
    "has": {
        "code": "Authors’ code",
        "other-code": "Others’ code",
        "page": "Project page",
        "numbers": "Reported numbers",
    },
}
TRAINING = {True: "free", False: "trained", None: "unknown"}
HERE = {"runnable": "runs", "planned": "planned", "none": "none"}


@dataclass(frozen=True)
class Choice:
    """One box: its value in the address, its words, its stage or None, and how many papers have it."""

    value: str
    label: str
    stage: str | None
    count: int


@dataclass(frozen=True)
class Facet:
    """Boxes of which a paper needs one; those after the first `open` are folded away."""

    key: str
    title: str
    choices: list[Choice]
    open: int

    @property
    def most(self) -> int:
        return max((choice.count for choice in self.choices), default=0) or 1


def values(record: Record) -> dict[str, list[str]]:
    """What a record has, facet by facet; a paper in two places counts in both."""
    has = {
        "code": any(link.kind == "official" for link in record.links),
        "other-code": any(link.kind != "official" for link in record.links),
        "page": record.project_page is not None,
        "numbers": bool(record.claims),
    }
    found = {
        "stage": [stage for stage, _, _ in record.paths],
        "category": [f"{stage}/{category}" for stage, category, _ in record.paths],
        "here": [HERE[record.implementation.status]],
        "training": [TRAINING[record.training_free]],
        "input": list(record.modality),
        "year": [str(record.year)],
        "venue": [record.venue],
        "has": [key for key, present in has.items() if present],
    }
    return {key: list(dict.fromkeys(each)) for key, each in found.items()}


def facets(catalog: Catalog) -> list[Facet]:
    """All facets with the values that occur, in the order of their vocabulary; years from new to old, venues by use."""
    counts: dict[str, dict[str, int]] = {}
    for record in catalog.records.values():
        for key, each in values(record).items():
            for value in each:
                counts.setdefault(key, {})[value] = counts.get(key, {}).get(value, 0) + 1

    def facet(key: str, title: str, words: dict[str, str], open_: int = 99, staged: bool = False) -> Facet:
        counted = counts.get(key, {})
        shown = [
            Choice(value, label, value.partition("/")[0] if staged else None, counted[value])
            for value, label in words.items()
            if value in counted
        ]
        return Facet(key, title, shown, open_)

    stages = catalog.stages.values()
    categories = {f"{s.id}/{c.id}": c.title for s in stages for c in s.categories.values()}
    by_use = sorted(counts.get("venue", {}).items(), key=lambda item: (-item[1], catalog.venues[item[0]].title))
    pipeline = {f"{s.id}/{c}" for s in stages if s.in_pipeline for c in s.categories} & counts.get(
        "category", {}
    ).keys()
    return [
        facet("stage", "Stage", {s.id: s.title for s in stages}, staged=True),
        facet("here", "Implementation here", WORDS["here"]),
        facet("training", "Training", WORDS["training"]),
        facet("input", "Input", WORDS["input"]),
        facet("category", "Category", categories, len(pipeline) or 99, staged=True),
        facet("year", "Year", {year: year for year in sorted(counts.get("year", {}), reverse=True)}, 5),
        facet("venue", "Venue", {venue: catalog.venues[venue].title for venue, _ in by_use}, 6),
        facet("has", "With", WORDS["has"]),
    ]


def script_files(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """(path, text) of the scripts beside the papers page: what to filter by, and every format to export."""
    table = {
        record.id: {
            "has": [f"{key}={value}" for key, each in values(record).items() for value in each],
            "words": " ".join([*record.authors, record.summary]),
            "posted": record.first_posted or f"{record.year}",
        }
        for record in catalog.records.values()
    }
    yield "papers/records.js", _script("elviPapers", table)
    for name, (file, kind) in FILES.items():
        parts = PARTS[name](catalog)
        data = {"file": file, "type": kind, "head": parts.head, "between": parts.between, "tail": parts.tail}
        yield f"papers/export/{name}.js", _script("elviExport", data | {"texts": parts.texts})


def _script(name: str, data: object) -> str:
    return f"window.{name}={json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n"
