"""Tags that point into the taxonomy must exist there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elvi_survey.problems import suggest
from elvi_survey.schema import Catalog, Placement, Record

if TYPE_CHECKING:
    from elvi_survey.load import Reading
    from elvi_survey.marked import Path


def unknown_references(catalog: Catalog, reading: Reading) -> None:
    """Note every tag of the records that names nothing; a vocabulary that could not be read is skipped."""
    for record in catalog.records.values():
        for index, placement in enumerate(record.placements):
            _placement(catalog, reading, record, index, placement)
        _known(reading, record, ("venue",), record.venue, catalog.venues)
        for index, claim in enumerate(record.claims):
            if claim.model is not None:
                _known(reading, record, ("claims", index, "model"), claim.model, catalog.models)
        for key in record.provenance:
            _known(reading, record, ("provenance", key), key, sorted(set(Record.model_fields) - {"id", "provenance"}))
        _venue_type(catalog, reading, record)


def _placement(catalog: Catalog, reading: Reading, record: Record, index: int, placement: Placement) -> None:
    """Report the outermost unknown level only."""
    path = ("placements", index)
    if not _known(reading, record, (*path, "stage"), placement.stage, catalog.stages):
        return
    categories = catalog.stages[placement.stage].categories
    known = _known(reading, record, (*path, "category"), placement.category, categories)
    if known and placement.subcategory is not None:
        subcategories = categories[placement.category].subcategories
        _known(reading, record, (*path, "subcategory"), placement.subcategory, subcategories, empty=True)


def _venue_type(catalog: Catalog, reading: Reading, record: Record) -> None:
    venue = catalog.venues.get(record.venue)
    if venue is not None and venue.type != record.venue_type:
        file = f"catalog/{record.id}.yaml"
        message = f"venue_type {record.venue_type!r} contradicts {venue.title}"
        reading.add(file, reading.marked[file].nearest(("venue_type",)), "wrong-value", message, f"write {venue.type}")


def _known(
    reading: Reading, record: Record, path: Path, word: str, names: Iterable[str], *, empty: bool = False
) -> bool:
    """Whether `word` is in the vocabulary `names`; an empty one was not readable unless `empty` says it may be."""
    known = list(names)
    if word in known:
        return True
    if known or empty:
        file = f"catalog/{record.id}.yaml"
        mark = reading.marked[file].nearest(path)
        where = ".".join(str(part) for part in path)
        reading.add(
            file, mark, "unknown-tag", f"{where}: {word!r} is not known", suggest(word, known), at_key=path[-1] == word
        )
    return False
