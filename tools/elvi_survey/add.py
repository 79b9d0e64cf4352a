"""A new record from what a source says: provenance for every fact, and TODO where only a person can decide."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from elvi.errors import ElviError
from elvi_survey.fmt import format_text
from elvi_survey.load import TODO, Reading
from elvi_survey.scalars import ID
from elvi_survey.schema import Catalog, Record
from elvi_survey.similar import duplicate, normalised
from elvi_survey.sources import Paper, arxiv_id, from_arxiv, from_doi, from_openreview, one_line
from elvi_survey.web import Web

FACTS = ("title", "authors", "year", "month", "first_posted", "venue", "arxiv", "doi", "openreview", "url")
_HINTS = {
    "venue": "a key of taxonomy/venues.yaml",
    "placements": "stage, category and subcategory are keys of taxonomy/stages.yaml; delete what does not apply",
    "modality": "text, image, video, streaming",
    "summary": "one to three sentences of your own: what it changes in the pipeline",
}
_SMALL = {"a", "an", "the", "of", "for", "and", "in", "on", "to", "with", "via", "is", "are", "by", "from"}


class AddError(ElviError):
    """The paper cannot be added."""


def find_paper(
    arxiv: str | None,
    doi: str | None,
    openreview: str | None,
    bibtex: Path | None,
    key: str | None,
    web: Web | None = None,
) -> Paper:
    """The paper from the one source that is given; only BibTeX asks no network.  Raises ElviError."""
    if bibtex is not None:
        from elvi_survey.readbib import read_bibtex  # its packages take longer to import than the rest to run

        return read_bibtex(bibtex, key)
    web = web or Web()
    if doi is not None:
        plain = re.sub(r"^(https?://(dx\.)?doi\.org/|doi:)", "", doi.strip(), flags=re.IGNORECASE)
        return from_doi(web, _valid("doi", plain, doi))
    if openreview is not None:
        return from_openreview(web, _valid("openreview", openreview.strip().rpartition("id=")[2], openreview))
    return from_arxiv(web, _valid("arxiv", arxiv_id(arxiv or ""), arxiv))


def _valid(name: str, value: str | None, asked: str | None) -> str:
    if value is None or not _accepted(name, value):
        example = {"arxiv": "2403.06764", "doi": "10.1007/978-3-031-73004-7_2", "openreview": "aBcDeF123"}[name]
        raise AddError(f"{asked!r} is not an id of {name}; write it like {example}, or give a BibTeX file.")
    return value


def new_record(
    paper: Paper, catalog: Catalog, reading: Reading, id_: str | None = None, known: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """Id and canonical text of a record; `known` is what the contributor decided.  Raises AddError on a duplicate."""
    if found := duplicate(paper, reading):
        raise AddError(f"{paper.title!r} is in the catalog, {found}; correct that record instead.")
    taken = {Path(file).stem for file in reading.marked} | {path.stem for path in (reading.root / "catalog").glob("*")}
    id_ = id_ or suggested_id(paper.title)
    if not ID.fullmatch(id_):
        raise AddError(f"{id_!r} cannot be an id; use lower-case letters, digits and single hyphens with --id.")
    if id_ in taken:
        raise AddError(f"catalog/{id_}.yaml exists for another paper; choose another id with --id.")
    return id_, record_text(paper, catalog, known or {})


def suggested_id(title: str) -> str:
    """The short name before the colon, else the first words that carry meaning; kept for ever, so worth a look."""
    head = short_name(title) or " ".join([word for word in normalised(title).split() if word not in _SMALL][:4])
    plain = unicodedata.normalize("NFKD", head).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain)) or "paper"


def short_name(title: str) -> str | None:
    """`FastV` of `FastV: ...`; None where what stands before the colon is a sentence."""
    head, colon, _ = title.partition(":")
    return head.strip() if colon and 0 < len(head.split()) <= 2 else None


def record_text(paper: Paper, catalog: Catalog, known: Mapping[str, Any]) -> str:
    """The record in canonical form; a fact that the schema would not accept is left out."""
    data = _facts(paper, catalog) | {
        "placements": [{"stage": TODO, "category": TODO, "subcategory": TODO, "source": "ours"}],
        "training_free": None,
        "modality": [TODO],
        "in_survey": False,
        "added": str(datetime.now(UTC).date()),
        "summary": TODO,
        "implementation": {"status": "none", "reason": "Not implemented here."},
    }
    data |= known
    data["provenance"] = {name: paper.origin for name in FACTS if data.get(name) not in (None, TODO, [TODO])}
    hints = {name: hint for name, hint in _HINTS.items() if TODO in str(data[name])}
    if paper.venue and "venue" in hints:
        hints["venue"] += f"; the source says {one_line(paper.venue)[:200]}"
    elif paper.comment and data["venue"] == "arxiv":
        hints["venue"] = f"the comment on arXiv says {one_line(paper.comment)[:200]}"
    return format_text("".join(_field(name, value, hints.get(name)) for name, value in data.items()))


def _facts(paper: Paper, catalog: Catalog) -> dict[str, Any]:
    venue = known_venue(paper.venue or "", catalog)
    if venue is None and paper.venue_type == "preprint" and "arxiv" in catalog.venues:
        venue = "arxiv"
    month = paper.month if venue not in (None, "arxiv") else None
    facts = {
        "name": short_name(paper.title),
        "title": paper.title,
        "authors": list(paper.authors),
        "authors_truncated": paper.authors_truncated or None,
        "year": paper.year,
        "month": month,
        "first_posted": f"20{paper.arxiv[:2]}-{paper.arxiv[2:4]}" if paper.arxiv else None,
        "venue": venue,
        "venue_type": catalog.venues[venue].type if venue else None,
        "arxiv": paper.arxiv,
        "doi": paper.doi,
        "openreview": paper.openreview,
        "url": paper.url,
    }
    facts = {name: value if _accepted(name, value) else None for name, value in facts.items()}
    for name in ("title", "year", "venue", "venue_type", "url"):
        facts[name] = TODO if facts[name] is None else facts[name]
    facts["authors"] = facts["authors"] or [TODO]
    return {name: value for name, value in facts.items() if name != "authors_truncated" or value}


def _accepted(name: str, value: Any) -> bool:
    field = Record.model_fields[name]
    try:
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value, strict=True)  # type: ignore[valid-type]
    except ValidationError:
        return False
    return True


def known_venue(words: str, catalog: Catalog) -> str | None:
    """The venue whose full name, or else short name as a word, stands in `words`; the longest one of several."""
    text = f" {normalised(words)} "
    named = [(len(name), id_) for id_, name in _names(catalog) if f" {normalised(name)} " in text]
    return max(named, default=(0, None))[1]


def _names(catalog: Catalog) -> Iterable[tuple[str, str]]:
    for id_, venue in catalog.venues.items():
        yield id_, venue.title
        if venue.name:
            yield id_, venue.name


def _field(name: str, value: Any, hint: str | None) -> str:
    """The YAML of one top-level field, with its hint in a comment above."""
    yaml, out = YAML(), io.StringIO()
    yaml.width, yaml.allow_unicode = 4096, True
    yaml.dump({name: value}, out)
    return f"# {name}: {hint}\n{out.getvalue()}" if hint else out.getvalue()
