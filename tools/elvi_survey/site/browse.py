"""Pages across the taxonomy: frontiers, models, years and venues, and the indexes over them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from elvi.roofline import estimate
from elvi_survey.schema import Catalog, Record
from elvi_survey.site import roofline
from elvi_survey.site.pages import Page, Sources, compared_url, newest_first, places
from elvi_survey.vocabulary import Frontier, LanguageModel

KINDS = {
    "frontiers": ("Frontiers", "Directions that the survey leaves open, and what runs here of each."),
    "models": ("Models", "Dimensions of models, what a cached token takes, and what was reported on them."),
    "venues": ("Venues", "Where the papers of the catalog were published."),
    "years": ("Years", "The papers of the catalog by the year in which they were published."),
}


@dataclass(frozen=True)
class Entry:
    """One line of an index."""

    page: Page
    words: str
    count: int


def url(kind: str, id_: object) -> str:
    return f"{kind}/{id_}/"


def pages(sources: Sources) -> Iterator[Page]:
    """All of these pages; a kind without entries has no index."""
    catalog = sources.catalog
    kinds = {
        "frontiers": [_frontier(sources, frontier) for frontier in catalog.frontiers.values()],
        "models": [_model(catalog, model) for model in catalog.models.values()],
        "venues": list(_venues(catalog)),
        "years": list(_years(catalog)),
    }
    for kind, entries in kinds.items():
        if entries:
            title, words = KINDS[kind]
            yield Page(f"{kind}/", "index.html", title, words, {"entries": entries})
        yield from (entry.page for entry in entries)


def _frontier(sources: Sources, frontier: Frontier) -> Entry:
    catalog = sources.catalog
    records = [catalog.records[id_] for id_ in frontier.records]
    running = [record for record in records if record.implementation.status == "runnable"]
    spots = {(p.stage.id, p.category.id): p for record in running for p in places(catalog, record)}
    found = [(place.category, compared_url(sources, place.stage, place.category)) for place in spots.values()]
    context = {
        "frontier": frontier,
        "running": newest_first(running),
        "others": newest_first([record for record in records if record not in running]),
        "compared": [(category, address) for category, address in found if address],
    }
    page = Page(url("frontiers", frontier.id), "frontier.html", frontier.title, frontier.definition, context)
    return Entry(page, frontier.definition, len(records))


def _model(catalog: Catalog, model: LanguageModel) -> Entry:
    claims = [(record, claim) for record in catalog.records.values() for claim in record.claims]
    reported = [(record, claim) for record, claim in claims if claim.model == model.id]
    found = roofline.choices(catalog)
    shape = found.models.get(model.id) if found else None
    bounds = [
        (found.titles[id_], estimate(shape, machine, roofline.REQUEST)) for id_, machine in found.machines.items()
    ] if found and shape else []  # fmt: skip
    # a key and a value of kv_heads x head_dim in every layer, 2 bytes each
    token = 2 * model.layers * model.kv_heads * model.head_dim * 2
    context = {"model": model, "token": token, "bounds": bounds, "reported": reported, "request": roofline.REQUEST}
    words = f"{model.title}: {model.layers} layers, {token:,} bytes of keys and values a token."
    page = Page(url("models", model.id), "model.html", model.title, words, context)
    return Entry(page, f"{model.llm}; {token:,} B of KV per token", len({record.id for record, _ in reported}))


def _venues(catalog: Catalog) -> Iterator[Entry]:
    """Venues with papers, those with most first."""
    held = {id_: [r for r in catalog.records.values() if r.venue == id_] for id_ in catalog.venues}
    for id_, records in sorted(held.items(), key=lambda item: -len(item[1])):
        if records:
            venue = catalog.venues[id_]
            yield _listing(catalog, "venues", id_, venue.title, venue.name or venue.type, records)


def _years(catalog: Catalog) -> Iterator[Entry]:
    for year in sorted({record.year for record in catalog.records.values()}, reverse=True):
        records = [record for record in catalog.records.values() if record.year == year]
        yield _listing(catalog, "years", year, str(year), "", records)


def _listing(catalog: Catalog, kind: str, id_: object, title: str, words: str, records: list[Record]) -> Entry:
    groups = [(stage, newest_first([r for r in records if r.stage == stage.id])) for stage in catalog.stages.values()]
    context = {"kind": kind, "words": words, "records": records, "groups": [each for each in groups if each[1]]}
    said = f"Papers in the catalog, {title}, by the stage of a request on which they act."
    return Entry(Page(url(kind, id_), "listing.html", title, said, context), words, len(records))


def frontiers_of(catalog: Catalog, record: Record) -> Iterable[Frontier]:
    return [frontier for frontier in catalog.frontiers.values() if record.id in frontier.records]


def helpers(catalog: Catalog) -> dict[str, Any]:
    """What templates use to link here."""
    return {"browse_url": url, "frontiers_of": lambda record: frontiers_of(catalog, record), "kinds": KINDS}
