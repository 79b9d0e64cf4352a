"""Words of records and vocabularies that point elsewhere must point at something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elvi_survey.problems import suggest
from elvi_survey.schema import Catalog, Placement, Record
from elvi_survey.vocabulary import Stage

if TYPE_CHECKING:
    from elvi_survey.load import Reading
    from elvi_survey.marked import Path


def unknown_references(catalog: Catalog, reading: Reading) -> None:
    """Note every word that names nothing, of partial records too; a vocabulary that could not be read is skipped."""
    ids = {path.stem for path in (catalog.root / "catalog").glob("*.yaml")}
    for record in [*catalog.records.values(), *reading.partial]:
        _record(catalog, reading, record, ids)
    _stages(catalog, reading)
    _serving(catalog, reading, ids)
    for frontier in catalog.frontiers.values():
        for index, id_ in enumerate(frontier.records):
            _known(reading, "taxonomy/frontiers.yaml", (frontier.id, "records", index), id_, ids, empty=True)


def _record(catalog: Catalog, reading: Reading, record: Record, ids: set[str]) -> None:
    file = f"catalog/{record.id}.yaml"
    for index, placement in enumerate(record.placements):
        _placement(catalog, reading, file, index, placement)
    if record.venue is not None:
        _known(reading, file, ("venue",), record.venue, catalog.venues)
    for index, need in enumerate(record.needs):
        _known(reading, file, ("needs", index), need, catalog.needs)
    for index in range(len(record.relations)):
        _relation(catalog, reading, record, index, ids)
    for index, claim in enumerate(record.claims):
        if claim.model is not None:
            _known(reading, file, ("claims", index, "model"), claim.model, catalog.models)
    for key in record.provenance:
        _known(reading, file, ("provenance", key), key, sorted(set(Record.model_fields) - {"id", "provenance"}))
    _venue_type(catalog, reading, record)


def _relation(catalog: Catalog, reading: Reading, record: Record, index: int, ids: set[str]) -> None:
    """Its kind and its record exist; no record is tied to itself, twice in one way, or builds on a later one."""
    file, relation = f"catalog/{record.id}.yaml", record.relations[index]
    _known(reading, file, ("relations", index, "kind"), relation.kind, catalog.relations)
    other, before = catalog.records.get(relation.to), record.relations[:index]
    code, where = "wrong-value", f"relations.{index}"
    if relation.to not in ids:
        code, fix = "unknown-record", suggest(relation.to, sorted(ids), "add that record")
        message = f"{record.id} {relation.kind} {relation.to!r}, but catalog/{relation.to}.yaml does not exist"
    elif relation.to == record.id:
        message, fix = f"{where}: the record is related to itself", "delete it"
    elif (relation.kind, relation.to) in [(tie.kind, tie.to) for tie in before]:
        message, fix = f"{where}: {relation.kind} is said twice of {relation.to}", "delete one of the two"
    elif relation.kind == "builds-on" and other and (record.first_posted or "9") < (other.first_posted or ""):
        message = f"{where}: {relation.to} was first posted in {other.first_posted}, after {record.first_posted}"
        fix = "correct the date, or say it in the other record"
    else:
        return
    reading.add(file, reading.marked[file].nearest(("relations", index, "to")), code, message, fix)


def _placement(catalog: Catalog, reading: Reading, file: str, index: int, placement: Placement) -> None:
    """Report the outermost unknown level only."""
    path = ("placements", index)
    if not _known(reading, file, (*path, "stage"), placement.stage, catalog.stages):
        return
    categories = catalog.stages[placement.stage].categories
    known = _known(reading, file, (*path, "category"), placement.category, categories)
    if known and placement.subcategory is not None:
        subcategories = categories[placement.category].subcategories
        _known(reading, file, (*path, "subcategory"), placement.subcategory, subcategories, empty=True)


def _venue_type(catalog: Catalog, reading: Reading, record: Record) -> None:
    venue = catalog.venues.get(record.venue)
    if venue is not None and record.venue_type not in (venue.type, None):
        file = f"catalog/{record.id}.yaml"
        message = f"venue_type {record.venue_type!r} contradicts {venue.title}"
        reading.add(file, reading.marked[file].nearest(("venue_type",)), "wrong-value", message, f"write {venue.type}")


def _stages(catalog: Catalog, reading: Reading) -> None:
    file = "taxonomy/stages.yaml"
    for stage in catalog.stages.values():
        if stage.metric is not None:
            _known(reading, file, (stage.id, "metric"), stage.metric, catalog.metrics)
        if stage.formula is not None:
            _known(reading, file, (stage.id, "formula"), stage.formula, catalog.formulas)
        for key in stage.sources:
            _known(reading, file, (stage.id, "sources", key), key, sorted(set(Stage.model_fields) - {"id", "sources"}))
        for category in stage.categories.values():
            if category.axis is not None:
                path = (stage.id, "categories", category.id, "axis")
                _known(reading, file, path, category.axis, stage.axes, empty=True)


def _serving(catalog: Catalog, reading: Reading, ids: set[str]) -> None:
    file = "taxonomy/serving.yaml"
    paradigms = catalog.stages["serve"].categories if "serve" in catalog.stages else {}
    for system in catalog.serving.values():
        if system.paradigm is not None:
            _known(reading, file, (system.id, "paradigm"), system.paradigm, paradigms)
        if system.record is not None:
            _known(reading, file, (system.id, "record"), system.record, ids, empty=True)


def _known(reading: Reading, file: str, path: Path, word: str, names: Iterable[str], *, empty: bool = False) -> bool:
    """Whether `word` is in the vocabulary `names`; an empty one was not readable unless `empty` says it may be."""
    known = sorted(names) if isinstance(names, set) else list(names)
    if word in known:
        return True
    if known or empty:
        mark = reading.marked[file].nearest(path)
        where = ".".join(str(part) for part in path)
        reading.add(
            file, mark, "unknown-tag", f"{where}: {word!r} is not known", suggest(word, known), at_key=path[-1] == word
        )
    return False
