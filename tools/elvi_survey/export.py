"""The catalog as BibTeX, RIS, CSL-JSON, CSV, JSON and CITATION.cff, and the JSON Schemas of records and of the JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml

from elvi_survey.load import read_text
from elvi_survey.schema import Catalog, Record, Stage

JSON_VERSION = 1
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_CFF = {"cff-version": "1.2.0", "message": "Please cite the papers.", "title": "ELVI", "authors": [{"name": "ELVI"}]}

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
})  # fmt: skip
_NAME_NEEDS_BRACES = re.compile(r"\band\b|,|^others$", re.IGNORECASE)
_BIBTEX_TYPE = {"conference": "inproceedings", "workshop": "inproceedings", "journal": "article"}
_CSL_TYPE = {"conference": "paper-conference", "workshop": "paper-conference", "journal": "article-journal"}
_RIS_TYPE = {"conference": "CPAPER", "workshop": "CPAPER", "journal": "JOUR", "web": "ELEC"}
_CFF_TYPE = {"conference": "conference-paper", "workshop": "conference-paper", "journal": "article", "web": "website"}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def bibtex(record: Record, venue: str | None = None) -> str:
    """One BibTeX entry under the record's id; `venue` is the name to print (by default the id of the venue)."""
    kind = _BIBTEX_TYPE.get(record.venue_type, "misc")
    authors = [f"{{{_tex(name)}}}" if _NAME_NEEDS_BRACES.search(name) else _tex(name) for name in record.authors]
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


def ris(record: Record, venue: str | None = None) -> str:
    """One RIS record; names are written as the paper writes them."""
    truncated = ["et al."] if record.authors_truncated else []
    date = f"{record.year}/{record.month:02d}//" if record.month else None
    tags = [
        ("TY", _RIS_TYPE.get(record.venue_type, "UNPB")),
        ("ID", record.id),
        ("TI", record.title),
        *(("AU", name) for name in [*record.authors, *truncated]),
        ("PY", str(record.year)),
        ("DA", date),
        ("JO" if record.venue_type == "journal" else "T2", venue or record.venue),
        ("AN", f"arXiv:{record.arxiv}" if record.arxiv else None),
        ("DO", record.doi),
        ("UR", record.url),
        ("ER", ""),
    ]
    return "".join(f"{tag}  - {' '.join(value.split())}\r\n" for tag, value in tags if value is not None)


def cff(record: Record, venue: str | None = None) -> dict[str, Any]:
    """One reference of a CITATION.cff (1.2.0); an author is one `name`: family names are not told apart."""
    kind = _CFF_TYPE.get(record.venue_type, "article")
    place = {"conference-paper": "conference", "article": "journal"}.get(kind)
    names = [*record.authors, *(["others"] if record.authors_truncated else [])]
    identifiers = [{"type": "other", "value": f"arXiv:{record.arxiv}"}] if record.arxiv else None
    reference = {
        "type": kind,
        "title": record.title,
        "authors": [{"name": name} for name in names],
        "year": record.year,
        "month": record.month,
        "conference": {"name": venue or record.venue} if place == "conference" else None,
        "journal": (venue or record.venue) if place == "journal" else None,
        "doi": record.doi,
        "identifiers": identifiers,
        "url": record.url,
    }
    return {key: value for key, value in reference.items() if value is not None}


def row(record: Record) -> dict[str, str]:
    """One line of the table: lists are joined with `; `, unknown facts are empty."""
    flat = {
        "name", "title", "year", "month", "first_posted", "venue", "arxiv", "doi", "openreview", "url", "training_free",
    }  # fmt: skip
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


@dataclass(frozen=True)
class Parts:
    """A format as one text per record, by id, with what stands before, between and after the chosen ones."""

    head: str
    between: str
    tail: str
    texts: dict[str, str]

    def whole(self) -> str:
        return self.head + self.between.join(self.texts.values()) + self.tail


def bibtex_parts(catalog: Catalog) -> Parts:
    return Parts("", "\n\n", "\n", {key: bibtex(record, _venue(catalog, record)) for key, record in _of(catalog)})


def csl_parts(catalog: Catalog) -> Parts:
    texts = {key: _json([csl(record, _venue(catalog, record))])[2:-3] for key, record in _of(catalog)}
    return Parts("[\n", ",\n", "\n]\n", texts)


def csv_parts(catalog: Catalog) -> Parts:
    rows = {key: row(record) for key, record in _of(catalog)}
    columns = list(next(iter(rows.values()), {}))
    return Parts(_line(columns), "", "", {key: _line(cells.values()) for key, cells in rows.items()})


def ris_parts(catalog: Catalog) -> Parts:
    return Parts("", "\r\n", "", {key: ris(record, _venue(catalog, record)) for key, record in _of(catalog)})


PARTS: dict[str, Callable[[Catalog], Parts]] = {
    "bibtex": bibtex_parts, "ris": ris_parts, "csl": csl_parts, "csv": csv_parts,
}  # fmt: skip


def to_json(catalog: Catalog) -> str:
    """Records and taxonomy, as in the files, with their ids; `to_schema` describes it."""
    records = [{"id": record.id, **record.model_dump()} for record in catalog.records.values()]
    stages = {key: stage.model_dump() for key, stage in catalog.stages.items()}
    return _json({"version": JSON_VERSION, "records": records, "stages": stages})


def to_cff(catalog: Catalog) -> str:
    """The repository's CITATION.cff with every paper of the catalog as a reference."""
    path = catalog.root / "CITATION.cff"
    head = yaml.load(read_text(path), Loader=yaml.CSafeLoader) if path.is_file() else dict(_CFF)
    head["references"] = [cff(record, _venue(catalog, record)) for record in catalog.records.values()]
    head = {key: value.isoformat() if isinstance(value, date) else value for key, value in head.items()}
    return yaml.dump(head, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False, width=4096)


def to_schema(catalog: Catalog) -> str:
    """JSON Schema of what `to_json` writes."""
    record = Record.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
    stage = Stage.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
    defs = {**record.pop("$defs", {}), **stage.pop("$defs", {}), "Record": _open(record), "Stage": _open(stage)}
    defs["Record"]["properties"] = {"id": {"type": "string"}, **record["properties"]}
    defs["Record"]["required"] = ["id", *record["properties"]]
    properties = {
        "version": {"const": JSON_VERSION},
        "records": {"type": "array", "items": {"$ref": "#/$defs/Record"}},
        "stages": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Stage"}},
    }
    top = {"$schema": DRAFT, "title": "ELVI catalog", "type": "object", "required": list(properties)}
    return _json(top | {"properties": properties, "$defs": {name: _open(part) for name, part in defs.items()}})


def to_record_schema(catalog: Catalog) -> str:
    """JSON Schema of one file of the catalog, with the words of the taxonomy, for completion in editors."""
    schema = Record.model_json_schema(mode="validation")
    del schema["properties"]["id"]
    schema["required"].remove("id")
    schema["properties"]["venue"] = {"enum": list(catalog.venues), "title": "Venue"}
    schema["$defs"]["Relation"]["properties"]["kind"] = {"enum": list(catalog.relations), "title": "Kind"}
    placement = schema["$defs"]["Placement"]
    placement["properties"]["stage"] = {"enum": list(catalog.stages), "title": "Stage"}
    placement["oneOf"] = [_places(stage) for stage in catalog.stages.values()]
    return _json({"$schema": DRAFT, **schema})


def _places(stage: Stage) -> dict[str, Any]:
    """The categories of one stage, each with its subcategories."""
    categories = []
    for category in stage.categories.values():
        below = {"enum": [*category.subcategories, None]}
        categories.append({"properties": {"category": {"const": category.id}, "subcategory": below}})
    return {"properties": {"stage": {"const": stage.id}}, "oneOf": categories}


def _open(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` of an object that may gain fields: readers must not break when a version adds one."""
    return {key: value for key, value in schema.items() if key != "additionalProperties" or value is not False}


FORMATS: dict[str, Callable[[Catalog], str]] = {
    **{name: lambda catalog, parts=parts: parts(catalog).whole() for name, parts in PARTS.items()},
    "json": to_json, "cff": to_cff, "schema": to_schema, "record-schema": to_record_schema,
}  # fmt: skip


def _of(catalog: Catalog) -> Iterable[tuple[str, Record]]:
    return catalog.records.items()


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _venue(catalog: Catalog, record: Record) -> str:
    venue = catalog.venues[record.venue]
    return venue.name or venue.title


def _tex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def _cell(value: Any) -> str:
    """Booleans as in YAML; a cell that a spreadsheet would run as a formula gets a leading apostrophe."""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
