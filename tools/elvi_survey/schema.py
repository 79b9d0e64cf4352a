"""The single schema of catalog and taxonomy.  A file's stem or a mapping's key is an id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from elvi_survey.scalars import Arxiv, Day, Doi, Id, Month, Number, OpenReview, Text, Url, Year, YearMonth
from elvi_survey.vocabulary import (
    Benchmark,
    Formula,
    Frontier,
    Hardware,
    LanguageModel,
    Metric,
    Modality,
    Model,
    Need,
    RelationKind,
    ServingSystem,
    Stage,
    Venue,
    VenueType,
)

LinkKind = Literal["official", "fork", "third-party"]
Status = Literal["runnable", "planned", "none"]
Verified = Literal["title", "arxiv", "authors", "venue", "code"]
PlacementSource = Literal[
    "figure3", "table2", "table3", "table4", "table6", "text", "appendix", "readme", "readme-2026-09", "ours"
]


class Link(Model):
    kind: LinkKind
    url: Url


class Placement(Model):
    """Where a paper stands in the taxonomy, and who says so."""

    stage: Id
    category: Id
    subcategory: Id | None = None
    source: PlacementSource


class Implementation(Model):
    status: Status
    reason: Text | None = None

    @model_validator(mode="after")
    def _reasoned(self) -> Implementation:
        if self.status != "runnable" and self.reason is None:
            context = {"status": repr(self.status), "fix": "add `reason:` with one sentence"}
            raise PydanticCustomError("missing_reason", "implementation is {status} without a reason", context)
        return self


class Claim(Model):
    """One published number: `number` in `unit`, of `what`, on `model` in `setting`; `source` is the table."""

    number: Number
    unit: Text
    what: Text
    model: Id | None = None
    setting: Text
    source: Text


class Relation(Model):
    """A tie of this record to another one, `to`, of a kind of taxonomy/relations.yaml."""

    kind: Id
    to: Id
    source: Text


class Record(Model):
    """One paper; `added` is the day on which it entered the catalog.  None means that the fact is not known to us."""

    id: Id = Field(exclude=True)
    name: Text | None = None
    title: Text
    authors: Annotated[list[Text], Field(min_length=1)]
    authors_truncated: bool = False
    year: Year
    month: Month | None = None
    first_posted: YearMonth | None = None
    venue: Id
    venue_type: VenueType
    arxiv: Arxiv | None = None
    doi: Doi | None = None
    openreview: OpenReview | None = None
    url: Url
    links: list[Link] = Field([])
    project_page: Url | None = None
    placements: Annotated[list[Placement], Field(min_length=1)]
    training_free: bool | None = None
    modality: Annotated[list[Modality], Field(min_length=1)]
    in_survey: bool
    added: Day | None = None
    verified: list[Verified] = Field([])
    summary: Text
    implementation: Implementation
    needs: list[Id] = Field([])
    conflicts: list[Text] = Field([])
    relations: list[Relation] = Field([])
    claims: list[Claim] = Field([])
    provenance: dict[str, Text] = Field({})
    note: Text | None = None

    @model_validator(mode="after")
    def _posted_when_the_id_says(self) -> Record:
        expected = f"20{self.arxiv[:2]}-{self.arxiv[2:4]}" if self.arxiv else None
        if expected and self.first_posted and self.first_posted != expected:
            context = {"arxiv": self.arxiv, "fix": f"write {expected}", "field": "first_posted"}
            raise PydanticCustomError("bad_date", "the month contradicts arXiv id {arxiv}", context)
        return self

    @property
    def display_name(self) -> str:
        """The short name, or the title where the paper has none."""
        return self.name or self.title

    @property
    def stage(self) -> str:
        return self.placements[0].stage

    @property
    def paths(self) -> list[tuple[str, str, str | None]]:
        """Distinct (stage, category, subcategory), the main one first, however many sources name each."""
        return list(dict.fromkeys((p.stage, p.category, p.subcategory) for p in self.placements))

    @property
    def module(self) -> str:
        """Path of the implementation below the repository root, whether or not it exists."""
        stem = f"impls/elvi/{self.stage}/{self.id.replace('-', '_')}"
        return f"{stem}/__init__.py" if self.stage == "related" else f"{stem}.py"

    @property
    def test(self) -> str:
        """Path of the test file below the repository root, whether or not it exists."""
        return f"tests/{self.stage}/test_{self.id.replace('-', '_')}.py"


@dataclass(frozen=True)
class Catalog:
    """All records by id (sorted), and the closed vocabularies by id in the order of their files."""

    root: Path
    records: dict[str, Record]
    stages: dict[str, Stage]
    models: dict[str, LanguageModel]
    hardware: dict[str, Hardware]
    benchmarks: dict[str, Benchmark]
    venues: dict[str, Venue]
    needs: dict[str, Need]
    metrics: dict[str, Metric]
    formulas: dict[str, Formula]
    serving: dict[str, ServingSystem]
    frontiers: dict[str, Frontier]
    relations: dict[str, RelationKind]

    def in_path(self, stage: str, category: str | None = None, subcategory: str | None = None) -> list[Record]:
        """Records placed at this node of the taxonomy, or below it, by id."""
        wanted = tuple(part for part in (stage, category, subcategory) if part is not None)
        return [r for r in self.records.values() if any(path[: len(wanted)] == wanted for path in r.paths)]
