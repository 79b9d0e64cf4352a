"""The single schema of catalog and taxonomy.  A file's stem or a mapping's key is an id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from elvi_survey.scalars import Arxiv, Count, Doi, Id, Month, Number, OpenReview, Positive, Text, Url, Year, YearMonth

Modality = Literal["text", "image", "video", "streaming"]
VenueType = Literal["conference", "workshop", "journal", "preprint", "web"]
LinkKind = Literal["official", "fork", "third-party"]
Status = Literal["runnable", "planned", "none"]
Verified = Literal["title", "arxiv", "authors", "venue", "code"]
PlacementSource = Literal[
    "figure3", "table2", "table3", "table4", "table6", "text", "appendix", "readme", "readme-2026-09", "ours"
]


class Model(BaseModel):
    """Base of everything read from YAML: immutable, no conversions, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=False)


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


class Record(Model):
    """One paper.  None means that the fact is not known to us."""

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
    links: list[Link] = []
    project_page: Url | None = None
    placements: Annotated[list[Placement], Field(min_length=1)]
    training_free: bool | None = None
    modality: Annotated[list[Modality], Field(min_length=1)]
    in_survey: bool
    verified: list[Verified] = []
    summary: Text
    implementation: Implementation
    claims: list[Claim] = []
    provenance: dict[str, Text] = {}
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


class Subcategory(Model):
    id: Id
    title: Text
    definition: Text


class Category(Model):
    id: Id
    title: Text
    definition: Text
    section: Text | None = None
    lowers: list[Text] = []
    subcategories: dict[Id, Subcategory] = {}


class Stage(Model):
    """`test` is the question that decides what belongs here; `in_pipeline` stages are drawn in a row."""

    id: Id
    title: Text
    definition: Text
    test: Text
    in_pipeline: bool = False
    section: Text | None = None
    bottleneck: Text | None = None
    metric: Text | None = None
    complexity: Text | None = None
    categories: dict[Id, Category]


class VisionTower(Model):
    name: Text
    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    patch: Count
    spatial_merge: Count
    image_tokens: Text


class LanguageModel(Model):
    """Dimensions of one model.  `checked` parts were seen in public files, the rest is from memory."""

    id: Id
    title: Text
    llm: Text
    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    intermediate: Count
    vocab: Count
    vision: VisionTower | None = None
    checked: list[Literal["llm", "vision"]] = []
    source: Annotated[list[Text], Field(min_length=1)]
    note: Text | None = None


class Hardware(Model):
    """One accelerator: dense 16-bit peak [TFLOP/s], memory [GB], bandwidth [GB/s]; see LanguageModel.checked."""

    id: Id
    title: Text
    peak_tflops: Positive | None = None
    memory_gb: Positive | None = None
    bandwidth_gb_s: Positive
    checked: list[Literal["tflops", "memory", "bandwidth"]] = []
    source: Text
    note: Text | None = None


class Benchmark(Model):
    id: Id
    title: Text
    modality: Annotated[list[Modality], Field(min_length=1)]
    competency: Text | None = None
    year: Year | None = None
    metric: Text | None = None
    arxiv: Arxiv | None = None
    note: Text | None = None


class Venue(Model):
    """`title` is the short name that pages show, `name` the one that citations print."""

    id: Id
    title: Text
    name: Text | None = None
    type: VenueType


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

    def in_path(self, stage: str, category: str | None = None, subcategory: str | None = None) -> list[Record]:
        """Records placed at this node of the taxonomy, or below it, by id."""
        wanted = tuple(part for part in (stage, category, subcategory) if part is not None)
        return [r for r in self.records.values() if any(path[: len(wanted)] == wanted for path in r.paths)]
