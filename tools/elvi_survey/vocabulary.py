"""The closed vocabularies of taxonomy/: what a record may point at.  A mapping's key is an id."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from elvi_survey.scalars import Arxiv, Count, Id, Positive, Text, Url, Year

Modality = Literal["text", "image", "video", "streaming"]
VenueType = Literal["conference", "workshop", "journal", "preprint", "web"]


class Model(BaseModel):
    """Base of everything read from YAML: immutable, no conversions, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=False)


class Axis(Model):
    """One of the ways in which a stage is made cheaper; categories lie on it."""

    id: Id
    title: Text
    definition: Text


class Subcategory(Model):
    id: Id
    title: Text
    definition: Text
    test: Text


class Category(Model):
    """`test` is the question that decides what belongs here, as for stages and subcategories."""

    id: Id
    title: Text
    definition: Text
    test: Text
    axis: Id | None = None
    section: Text | None = None
    lowers: list[Text] = []
    subcategories: dict[Id, Subcategory] = {}


class Stage(Model):
    """`in_pipeline` stages are drawn in a row; `metric` and `formula` are ids, `sources` says who states a field."""

    id: Id
    title: Text
    definition: Text
    test: Text
    in_pipeline: bool = False
    section: Text | None = None
    bottleneck: Text | None = None
    metric: Id | None = None
    complexity: Text | None = None
    formula: Id | None = None
    sources: dict[str, Text] = {}
    note: Text | None = None
    axes: dict[Id, Axis] = {}
    categories: dict[Id, Category]


class Metric(Model):
    """What is counted, in `unit`; `note` says where we differ from `source`."""

    id: Id
    title: Text
    definition: Text
    latex: Text | None = None
    unit: Text | None = None
    source: Text
    note: Text | None = None


class Formula(Model):
    """One equation in LaTeX, with the meaning of its symbols; `note` says what `source` gets wrong."""

    id: Id
    title: Text
    latex: Text
    symbols: dict[str, Text] = {}
    source: Text
    note: Text | None = None


class Need(Model):
    """Something that a technique must be given before it can act."""

    id: Id
    title: Text
    definition: Text


class VisionTower(Model):
    """Dimensions of a tower and its adapter; the head of taxonomy/models.yaml says what the later fields mean."""

    name: Text
    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    patch: Count
    spatial_merge: Count
    image_tokens: Text
    side: Count | None = None
    temporal_patch: Count = 1
    gated: bool = False
    window: Count | None = None
    full_layers: list[Annotated[int, Field(ge=0)]] = []
    adapter: Literal["merger", "mlp", "linear"]
    deepstack: Count | None = None
    frame_pool: Count = 1


class RelationKind(Model):
    """A way in which one paper stands to another; `title` is the verb between them, `mutual` ones hold both ways."""

    id: Id
    title: Text
    definition: Text
    test: Text
    mutual: bool = False


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
    """A test set; its record, where there is one, has the same id.  An unchecked size is from memory."""

    id: Id
    title: Text
    modality: Annotated[list[Modality], Field(min_length=1)]
    competency: Text | None = None
    year: Year | None = None
    size: Text | None = None
    size_checked: bool = False
    metric: Text | None = None
    arxiv: Arxiv | None = None
    source: Text
    note: Text | None = None


class ServingSystem(Model):
    """A system that serves many requests; `paradigm` is a category of the stage serve, the effects are as reported."""

    id: Id
    title: Text
    paradigm: Id | None = None
    record: Id | None = None
    mechanism: Text
    workload: Text | None = None
    ttft: Text | None = None
    tpot: Text | None = None
    communication: Text | None = None
    code: Url | None = None
    source: Annotated[list[Text], Field(min_length=1)]
    note: Text | None = None


class Frontier(Model):
    """An open direction: why it is open, and the records that work on it."""

    id: Id
    title: Text
    definition: Text
    open: Text
    source: Text
    records: Annotated[list[Id], Field(min_length=1)]


class Venue(Model):
    """`title` is the short name that pages show, `name` the one that citations print."""

    id: Id
    title: Text
    name: Text | None = None
    type: VenueType
