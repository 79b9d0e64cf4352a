"""The catalog as BibTeX, CSL-JSON, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from elvi_survey.schema import Catalog, Record

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
})  # fmt: skip
_BIBTEX_TYPE = {"conference": "inproceedings", "workshop": "inproceedings", "journal": "article"}
_CSL_TYPE = {"conference": "paper-conference", "workshop": "paper-conference", "journal": "article-journal"}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def bibtex(record: Record, venue: str | None = None) -> str:
    """One BibTeX entry under the record's id; `venue` is the name to print (by default the id of the venue)."""
    kind = _BIBTEX_TYPE.get(record.venue_type, "misc")
    authors = [f"{{{_tex(name)}}}" if " and " in name or "," in name else _tex(name) for name in record.authors]
    names = " and ".join([*authors, "others"] if record.authors_truncated else authors)
    fields = {"title": f"{{{_tex(record.title)}}}", "author": names, "year": str(record.year)}
    if kind != "misc":
        fields["booktitle" if kind == "inproceedings" else "journal"] = _tex(venue or record.venue)
    if record.arxiv:
        fields |= {"eprint": record.arxiv, "archiveprefix": "arXiv"}
    if record.doi:
        fields["doi"] = record.doi
    fields["url"] = record.url
    body = [f"  {key} = {{{value}}}" for key, value in fields.items()]
    body += [f"  month = {_MONTHS[record.month - 1]}"] if record.month else []
    return f"@{kind}{{{record.id},\n" + ",\n".join(body) + "\n}"


def csl(record: Record, venue: str | None = None) -> dict[str, Any]:
    """One CSL-JSON item; names are literals because given and family names are not told apart in the catalog."""
    date = [record.year, record.month] if record.month else [record.year]
    item = {
        "id": record.id,
        "type": _CSL_TYPE.get(record.venue_type, "article"),
        "title": record.title,
        "author": [{"literal": name} for name in record.authors],
        "issued": {"date-parts": [date]},
        "container-title": venue or record.venue,
        "DOI": record.doi,
        "number": f"arXiv:{record.arxiv}" if record.arxiv else None,
        "URL": record.url,
    }
    return {key: value for key, value in item.items() if value is not None}


def row(record: Record) -> dict[str, str]:
    """One line of the table: lists are joined with `; `, unknown facts are empty."""
    flat = {
        "name",
        "title",
        "year",
        "month",
        "first_posted",
        "venue",
        "arxiv",
        "doi",
        "openreview",
        "url",
        "training_free",
    }
    stage, category, subcategory = record.paths[0]
    cells = {
        "id": record.id,
        **record.model_dump(include=flat),
        "authors": "; ".join(record.authors),
        "stage": stage,
        "category": category,
        "subcategory": subcategory,
        "modality": "; ".join(record.modality),
        "implementation": record.implementation.status,
        "summary": record.summary,
    }
    return {key: _cell(value) for key, value in cells.items()}


def to_bibtex(catalog: Catalog) -> str:
    return "\n\n".join(bibtex(record, _venue(catalog, record)) for record in catalog.records.values()) + "\n"


def to_csl(catalog: Catalog) -> str:
    return _json([csl(record, _venue(catalog, record)) for record in catalog.records.values()])


def to_csv(catalog: Catalog) -> str:
    rows = [row(record) for record in catalog.records.values()]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_json(catalog: Catalog) -> str:
    """Records and taxonomy, as in the files, with their ids."""
    records = [{"id": record.id, **record.model_dump()} for record in catalog.records.values()]
    return _json({"records": records, "stages": {key: stage.model_dump() for key, stage in catalog.stages.items()}})


FORMATS: dict[str, Callable[[Catalog], str]] = {"bibtex": to_bibtex, "csl": to_csl, "csv": to_csv, "json": to_json}


def _venue(catalog: Catalog, record: Record) -> str:
    venue = catalog.venues[record.venue]
    return venue.name or venue.title


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def _cell(value: Any) -> str:
    """Booleans as in YAML; a cell that a spreadsheet would run as a formula gets a leading apostrophe."""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
