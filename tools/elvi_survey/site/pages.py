"""What pages exist and what each one is told: plain values for the templates; nothing is drawn or written here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from elvi.pairs import Pairs
from elvi_survey.apifacts import Module
from elvi_survey.codefacts import RELATED, Technique
from elvi_survey.schema import Catalog, Record
from elvi_survey.site import compare as side_by_side
from elvi_survey.site import matrix, reduction, roofline
from elvi_survey.site.comparisons import Comparison, comparison
from elvi_survey.site.explorer import facets
from elvi_survey.site.figures import Request, acts_at
from elvi_survey.site.results import Result
from elvi_survey.vocabulary import Category, Stage, Subcategory

PAPERS = "papers/"
NEWEST = 6


@dataclass(frozen=True)
class Page:
    """One page: its address below the site's root, its template and what the template is told."""

    url: str
    template: str
    title: str
    description: str
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Path of its Markdown file: the index of its folder, so that links are the same before and after the build."""
        return f"{self.url}index.md"

    def to(self, url: str) -> str:
        """Relative link from this page to another address of the site."""
        return "../" * self.url.count("/") + url or "./"


@dataclass(frozen=True)
class Place:
    """A placement with its vocabulary entries."""

    stage: Stage
    category: Category
    subcategory: Subcategory | None


@dataclass(frozen=True)
class Sources:
    """All that pages are made from. `techniques` are the code facts by id, `facts` the sentences by fact name.

    core: what the modules of the core offer.
    machines: what was measured of many techniques together, by the name of the file.
    pairs: what works with what, if that has been written.
    """

    catalog: Catalog
    techniques: dict[str, Technique]
    facts: dict[str, str]
    results: dict[str, list[Result]]
    core: dict[str, Module] = field(default_factory=dict)
    machines: dict[str, list[Result]] = field(default_factory=dict)
    pairs: Pairs | None = None


def record_url(record: Record) -> str:
    return f"{PAPERS}{record.id}/"


def measured_url(record: Record) -> str:
    """Where all measured numbers of a record stand as tables."""
    return f"{record_url(record)}measured/"


def category_url(stage: Stage, category: Category) -> str:
    return f"{stage.id}/{category.id}/"


def newest_first(records: list[Record]) -> list[Record]:
    """By month of first posting, or by year where it is unknown; then by id."""
    by_id = sorted(records, key=lambda record: record.id)
    return sorted(by_id, key=lambda record: record.first_posted or f"{record.year}-00", reverse=True)


def places(catalog: Catalog, record: Record) -> list[Place]:
    """The distinct placements of a record, the main one first."""
    found = []
    for stage_id, category_id, subcategory_id in record.paths:
        stage = catalog.stages[stage_id]
        category = stage.categories[category_id]
        found.append(Place(stage, category, category.subcategories[subcategory_id] if subcategory_id else None))
    return found


def training(record: Record) -> str:
    """The word of the papers table; empty where it is not known."""
    return {True: "training-free", False: "trained", None: ""}[record.training_free]


def subtitle(record: Record) -> str:
    """The title as it stands under the name in lists: without the name it may begin with."""
    return record.title.removeprefix(f"{record.name}: ")


def all_pages(sources: Sources) -> Iterator[Page]:
    catalog = sources.catalog
    reduced = reduction.groups(sources.results, sources.techniques, sources.machines)
    yield _home(catalog, reduced=bool(reduced))
    yield _papers(catalog)
    if found := roofline.choices(catalog):
        yield Page(roofline.URL, "roofline.html", "Roofline calculator", _ROOFLINE, roofline.context(found))
    if reduced:
        yield _reduction(sources, reduced)
    if sources.pairs:
        told = matrix.context(sources.pairs, catalog, sources.techniques)
        yield Page(matrix.URL, "matrix.html", "What works with what", _MATRIX, told)
    yield compare_page(sources)
    for stage in catalog.stages.values():
        yield _stage(sources, stage)
        for category in stage.categories.values():
            yield _category(sources, stage, category)
            if compared := compare(sources, stage, category):
                yield _compared(stage, category, compared)
    for record in catalog.records.values():
        page = _record(sources, record)
        yield page
        if page.context["code"] and page.context["results"]:
            told = {key: page.context[key] for key in ("record", "results", "system")}
            title = f"{record.display_name}, measured"
            yield Page(
                measured_url(record), "measured.html", title, f"All measured numbers of {record.display_name}.", told
            )


def compare_page(sources: Sources) -> Page:
    words = (
        "Papers and techniques side by side: what they do, need and break, what works together, and what was measured."
    )
    return Page(side_by_side.URL, "compare.html", "Compare", words, side_by_side.context(sources))


def _home(catalog: Catalog, *, reduced: bool) -> Page:
    records = list(catalog.records.values())
    stages = list(catalog.stages.values())
    counted = {
        stage.id: [(category, len(catalog.in_path(stage.id, category.id))) for category in stage.categories.values()]
        for stage in stages
    }
    runnable = newest_first([record for record in records if record.implementation.status == "runnable"])
    context = {
        "records": records,
        "runnable": runnable,
        "featured": next((record for record in runnable if record.stage == "prefill"), next(iter(runnable), None)),
        "newest": newest_first(records)[:NEWEST],
        "pipeline": [stage for stage in stages if stage.in_pipeline],
        "others": [stage for stage in stages if not stage.in_pipeline],
        "categories": counted,
        "total": {stage.id: len(catalog.in_path(stage.id)) for stage in stages},
        "widest": max((n for found in counted.values() for _, n in found), default=0) or 1,
        "metrics": catalog.metrics,
        "request": Request(),
        "reduction": reduction.URL if reduced else None,
        **roofline.home(catalog),
    }
    return Page("", "home.html", "A living survey of efficient vision-language inference", _HOME, context)


_HOME = "Papers and runnable techniques for efficient vision-language inference, by encode, prefill and decode."


_ROOFLINE = "The least time of encoding, prefilling and decoding, by the roofline of a model on a machine."

_MATRIX = "Every pair of the techniques that run here: what works, what is refused, and what the refusal says."


def _papers(catalog: Catalog) -> Page:
    order = {stage: i for i, stage in enumerate(catalog.stages)}
    records = sorted(newest_first(list(catalog.records.values())), key=lambda record: order[record.stage])
    words = "Every paper of the catalog with its place in the pipeline, its venue and whether it runs here."
    return Page(PAPERS, "papers.html", "Papers", words, {"records": records, "facets": facets(catalog)})


def compare(sources: Sources, stage: Stage, category: Category) -> Comparison | None:
    """The techniques of a category side by side, if they have been measured; each related system has its own tables."""
    if stage.id == RELATED:
        return None
    return comparison(sources, category, sorted(r.id for r in sources.catalog.in_path(stage.id, category.id)))


def compared_url(sources: Sources, stage: Stage, category: Category) -> str | None:
    """Where the techniques of a category stand side by side: on a page of its own, or on that of token reduction."""
    if compare(sources, stage, category):
        return f"{category_url(stage, category)}compared/"
    reduced = any(_reduces(sources, record) for record in sources.catalog.in_path(stage.id, category.id))
    return reduction.URL if reduced else None


def _reduces(sources: Sources, record: Record) -> bool:
    """Whether it has been measured to leave fewer visual tokens."""
    found = reduction.curves(sources.techniques.get(record.id), sources.results.get(record.id, []))
    return next(found, None) is not None


def _reduction(sources: Sources, groups: list[reduction.Group]) -> Page:
    shown = {curve.id for group in groups for curve in group.curves}
    runs = [r for r in sources.catalog.records.values() if r.implementation.status == "runnable"]
    waiting = [r for r in runs if r.id not in shown and reduction.reduces(sources.techniques.get(r.id))]
    context = {"groups": groups, "budget": reduction.BUDGET, "unmeasured": waiting}
    return Page(reduction.URL, "reduction.html", "Token reduction, compared", _REDUCTION, context)


_REDUCTION = (
    "Quality against the visual tokens left, of all that is measured here, from random selection to the full model."
)


def _compared(stage: Stage, category: Category, compared: Comparison) -> Page:
    context = {"stage": stage, "category": category, "groups": compared.groups, **compared.context}
    url, title = f"{category_url(stage, category)}compared/", f"{category.title}, compared"
    return Page(url, compared.template, title, f"{category.title}: {compared.words}", context)


def _stage(sources: Sources, stage: Stage) -> Page:
    catalog = sources.catalog
    categories = [(c, newest_first(catalog.in_path(stage.id, c.id))) for c in stage.categories.values()]
    compared = {c.id: compared_url(sources, stage, c) for c in stage.categories.values()}
    context = {
        "stage": stage,
        "records": catalog.in_path(stage.id),
        "categories": categories,
        "compared": compared,
        "metric": catalog.metrics[stage.metric].title if stage.metric else None,
    }
    return Page(f"{stage.id}/", "stage.html", stage.title, stage.definition, context)


def _category(sources: Sources, stage: Stage, category: Category) -> Page:
    catalog = sources.catalog
    records = newest_first(catalog.in_path(stage.id, category.id))
    groups = [
        (sub.title, sub.definition, sub.id, newest_first(catalog.in_path(stage.id, category.id, sub.id)))
        for sub in category.subcategories.values()
    ]
    here = (stage.id, category.id, None)
    if loose := [record for record in records if not groups or here in record.paths]:
        groups.append(("Papers" if not groups else "Not placed further", "", "papers", loose))
    compared = compared_url(sources, stage, category)
    context = {"stage": stage, "category": category, "records": records, "groups": groups, "compared": compared}
    return Page(category_url(stage, category), "category.html", category.title, category.definition, context)


def _record(sources: Sources, record: Record) -> Page:
    code = sources.techniques.get(record.id) if record.implementation.status == "runnable" else None
    main = record.placements[0]
    siblings = newest_first([r for r in sources.catalog.in_path(main.stage, main.category) if r.id != record.id])
    classes = code.classes if code else []
    acts = acts_at([method for part in classes for method in part.methods], record.stage)
    settable = [field for part in classes[:1] for field in part.fields if field.default is not None]
    context = {
        "record": record,
        "code": code,
        "system": record.stage == RELATED,
        "facts": sources.facts,
        "results": sources.results.get(record.id, []),
        "compared": _compared_from(sources, record),
        "acts": acts,
        "stations": {station for _, station, _ in acts},
        "example": next(iter(settable), None),
        "siblings": siblings[:8],
        "needs": [sources.catalog.needs[id_] for id_ in record.needs],
        "sections": _sections(record, runs=code is not None, acts=bool(acts), fields=bool(classes)),
    }
    return Page(record_url(record), "record.html", record.display_name, record.summary, context)


def _compared_from(sources: Sources, record: Record) -> tuple[str, str] | None:
    """(address, words of the link) of the first page on which this record stands beside others."""
    for place in places(sources.catalog, record):
        compared = compare(sources, place.stage, place.category)
        if compared and record.id in compared.techniques:
            return f"{category_url(place.stage, place.category)}compared/", compared.link
    return (reduction.URL, reduction.LINK) if _reduces(sources, record) else None


def _sections(record: Record, *, runs: bool, acts: bool, fields: bool) -> list[tuple[str, str]]:
    """(anchor, label) of the sections that the record's page has."""
    return [
        (anchor, label)
        for anchor, label, present in [
            ("idea", "Idea", True),
            ("run", "Planned" if record.implementation.status == "planned" else "No implementation", not runs),
            ("where", "Where it acts", acts),
            ("run", "Run it", runs),
            ("fields", "Fields and defaults", fields),
            ("cost", "Quality and cost", runs),
            ("reported", "Reported numbers", bool(record.claims)),
            (
                "compose",
                "Composition",
                (runs and record.stage != RELATED) or bool(record.needs or record.conflicts or record.relations),
            ),
            ("source", "Source and tests", runs),
            ("cite", "Cite", True),
        ]
        if present
    ]
