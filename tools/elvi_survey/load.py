"""Read catalog and taxonomy files into the schema; every problem is collected with its line and column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from elvi_survey.marked import Mark, Marked, MarkedError, read_marked
from elvi_survey.problems import CatalogError, Problem, suggest
from elvi_survey.references import unknown_references
from elvi_survey.scalars import ID
from elvi_survey.schema import Catalog, Record
from elvi_survey.vocabulary import (
    Benchmark,
    Formula,
    Frontier,
    Hardware,
    LanguageModel,
    Metric,
    Model,
    Need,
    RelationKind,
    ServingSystem,
    Stage,
    Venue,
)

MAX_BYTES = 256 * 1024
VOCABULARIES: dict[str, type[Model]] = {
    "stages": Stage, "models": LanguageModel, "hardware": Hardware, "benchmarks": Benchmark, "venues": Venue,
    "needs": Need, "metrics": Metric, "formulas": Formula, "serving": ServingSystem, "frontiers": Frontier,
    "relations": RelationKind,
}  # fmt: skip
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
_ENTRIES: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(dict[str, kind]) for name, kind in VOCABULARIES.items()}  # type: ignore[valid-type]
NESTED = {"stages": ("axes", "categories"), "categories": ("subcategories",)}
_AT_KEY = {"unknown-field", "missing-field", "missing-reason"}
_QUOTED_FIELDS = {"arxiv", "doi", "openreview", "section"}
TODO = "TODO"  # what `elvi-survey add` writes where only a person can decide
_TODO_FIX = {"venue": "choose a key of taxonomy/venues.yaml"} | dict.fromkeys(
    ("stage", "category", "subcategory"), "choose a key of taxonomy/stages.yaml"
)
T = TypeVar("T")


@dataclass
class Reading:
    """One pass over the files below `root`: `marked` holds what could be read, by path relative to `root`.

    instead: texts that stand for files, by such a path, whether or not these exist.
    """

    root: Path
    instead: Mapping[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    marked: dict[str, Marked] = field(default_factory=dict)
    partial: list[Record] = field(default_factory=list)
    """What is sound of records with a problem: their words must point somewhere, too."""

    def add(self, file: str, mark: Mark, code: str, message: str, fix: str, *, at_key: bool = False) -> None:
        line, column = (mark.key_line, mark.key_column) if at_key else (mark.line, mark.column)
        self.problems.append(Problem(file, line, column, code, message, fix))

    def read(self, path: Path) -> Marked | None:
        """The document in `path`, or None after noting why it cannot be read."""
        file = path.relative_to(self.root).as_posix()
        try:
            document = read_marked(self.instead[file] if file in self.instead else read_text(path))
            if not isinstance(document.data, dict):
                raise MarkedError("wrong-type", 1, 1, "the file is not a mapping", "write `key: value` lines")
        except MarkedError as error:
            self.problems.append(Problem(file, error.line, error.column, error.code, error.message, error.fix))
            return None
        self.marked[file] = document
        return document

    def validate(self, file: str, adapter: TypeAdapter[T], data: Any) -> T | None:
        """`data` as the schema wants it, or None after noting each error."""
        try:
            return adapter.validate_python(data)
        except ValidationError as error:
            for detail in _without_echoes(error.errors(include_url=False)):
                self._note(file, detail)
            return None

    def _note(self, file: str, detail: Any) -> None:
        context = detail.get("ctx", {})
        path = detail["loc"]
        path = (*path, context["field"]) if "field" in context else path
        mark = self.marked[file].nearest(path)
        if mark.raw == TODO:
            return  # said already
        code, message, fix = _explain(detail, path, mark)
        self.add(file, mark, code, message, fix, at_key=code in _AT_KEY or path[-1:] == ("id",))


def read_catalog(root: Path, instead: Mapping[str, str] | None = None) -> tuple[Catalog, Reading]:
    """Everything that could be read below `root`, and what could not; a record with a problem is left out."""
    reading = Reading(root, instead or {})
    vocabularies = {name: _vocabulary(reading, name) for name in VOCABULARIES}
    paths = sorted({*catalog_files(root), *(root / file for file in reading.instead)})
    records = {record.id: record for path in paths if (record := _record(reading, path))}
    catalog = Catalog(root=root, records=records, **vocabularies)  # type: ignore[arg-type]
    unknown_references(catalog, reading)
    return catalog, reading


def load_catalog(root: Path) -> Catalog:
    """The catalog below `root`, with every tag resolving; raises CatalogError when anything is wrong with it."""
    catalog, reading = read_catalog(Path(root))
    if reading.problems:
        raise CatalogError(sorted(reading.problems))
    return catalog


def catalog_files(root: Path) -> list[Path]:
    """Everything below catalog/ but folders and hidden files: each is meant to be a record."""
    found = (root / "catalog").rglob("[!.]*")
    return sorted(path for path in found if path.is_symlink() or not path.is_dir())


def _record(reading: Reading, path: Path) -> Record | None:
    file = path.relative_to(reading.root).as_posix()
    if file != f"catalog/{path.stem}.yaml" or not ID.fullmatch(path.stem):
        fix = "name it catalog/<id>.yaml with lower-case letters, digits and single hyphens"
        reading.problems.append(Problem(file, 1, 1, "bad-id", "this is not a record's file name", fix))
        return None
    document = reading.read(path)
    if document is None or _has_own_id(reading, file, document, ()):
        return None
    _left_to_do(reading, file, document)
    data = {**document.data, "id": path.stem}
    record = reading.validate(file, _RECORD, data)
    if record is None:
        reading.partial.append(_sound(data))
    return record


def _sound(data: dict[str, Any]) -> Record:
    """The fields of a record that are as the schema wants them, each for itself; None where nothing stands."""
    sound: dict[str, Any] = {"placements": [], "venue": None, "venue_type": None}
    for name in data.keys() & Record.model_fields.keys():
        with suppress(ValidationError):
            sound[name] = TypeAdapter(Record.model_fields[name].rebuild_annotation()).validate_python(data[name])
    return Record.model_construct(**sound)


def _left_to_do(reading: Reading, file: str, document: Marked) -> None:
    for path, mark in document.marks.items():
        if mark.raw == TODO:
            field = next((part for part in reversed(path) if isinstance(part, str)), "")
            message = f"{'.'.join(map(str, path))} is still to be filled in"
            reading.add(file, mark, "to-do", message, _TODO_FIX.get(field, "write what the paper says"))


def _vocabulary(reading: Reading, name: str) -> dict[str, Any]:
    path = reading.root / "taxonomy" / f"{name}.yaml"
    document = reading.read(path)
    if document is None:
        return {}
    file = f"taxonomy/{name}.yaml"
    data = _with_ids(reading, file, document, document.data, (), name)
    return reading.validate(file, _ENTRIES[name], data) or {}


def _with_ids(reading: Reading, file: str, document: Marked, entries: Any, path: tuple[str, ...], level: str) -> Any:
    """Copy of a mapping id -> entry in which every entry knows its id, on each level of the taxonomy."""
    if not isinstance(entries, dict):
        return entries
    result = {}
    for key, entry in entries.items():
        if isinstance(entry, dict):
            _has_own_id(reading, file, document, (*path, key))
            entry = {**entry, "id": key}
            for below in [name for name in NESTED.get(level, ()) if name in entry]:
                entry[below] = _with_ids(reading, file, document, entry[below], (*path, key, below), below)
        result[key] = entry
    return result


def _has_own_id(reading: Reading, file: str, document: Marked, path: tuple[str, ...]) -> bool:
    mark = document.marks.get((*path, "id"))
    if mark is not None:
        what = "key" if path else "file name"
        reading.add(file, mark, "unknown-field", f"`id` repeats the {what}", "delete this line", at_key=True)
    return mark is not None


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The file's text; raises MarkedError for what is not a plain UTF-8 file of at `most` so many bytes."""
    if path.is_symlink():
        raise MarkedError("file-link", 1, 1, "the file is a symbolic link", "put a plain file there")
    if not path.is_file():
        raise MarkedError("file-missing", 1, 1, "the file does not exist", "add it")
    size = path.stat().st_size
    if size > most:
        raise MarkedError("file-size", 1, 1, f"the file has {size} bytes", f"stay below {most} bytes")
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MarkedError("file-encoding", line, 1, "the file is not UTF-8", "save it as UTF-8") from None


def _without_echoes(details: list[Any]) -> list[Any]:
    """`details` less missing fields that stand there under a misspelt name, and keys that are refused as ids too."""
    details = [detail for detail in details if detail["loc"][-1:] != ("[key]",)]
    unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
    names = {(loc[:-1], near) for loc in unknown for near in get_close_matches(str(loc[-1]), _FIELDS, n=1, cutoff=0.5)}
    return [d for d in details if d["type"] != "missing" or (d["loc"][:-1], d["loc"][-1]) not in names]


def _explain(detail: Any, path: tuple[Any, ...], mark: Mark) -> tuple[str, str, str]:
    """Code, message and fix for one pydantic error."""
    kind, context, name = detail["type"], detail.get("ctx", {}), path[-1] if path else "the record"
    where = ".".join(str(part) for part in path)
    if "fix" in context:
        return kind.replace("_", "-"), f"{where}: {detail['msg']}", context["fix"]
    if kind == "missing":
        return "missing-field", f"`{where}` is missing", f"add `{name}:`"
    if kind == "extra_forbidden":
        return "unknown-field", f"`{where}` is not a field", suggest(name, _fields_beside(path), otherwise="delete it")
    if kind == "literal_error":
        near = suggest(detail["input"], _choices(context["expected"]))
        return "unknown-tag", f"{where}: {detail['input']!r} is not known", near
    if kind == "string_type" and mark.raw is not None and isinstance(detail["input"], (int, float)):
        code = "unquoted-id" if name in _QUOTED_FIELDS else "wrong-type"
        return code, f"{where}: {mark.raw} is read as a number", f'write "{mark.raw}" in quotes'
    code = "wrong-type" if kind.endswith(("_type", "_parsing")) else "wrong-value"
    return code, f"{where}: {detail['msg'][0].lower()}{detail['msg'][1:]}", "correct the value"


def _fields_beside(path: tuple[Any, ...]) -> list[str]:
    """The fields that may stand where the last part of `path` does."""
    kind = Record if len(path) == 1 else next((_KINDS[part] for part in reversed(path[:-1]) if part in _KINDS), None)
    return sorted(set(kind.model_fields) - {"id"}) if kind else _FIELDS


def _choices(expected: str) -> list[str]:
    """The words of pydantic's "'a', 'b' or 'c'"."""
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(", ")]


_FIELDS = sorted({name for kind in Model.__subclasses__() for name in kind.model_fields} - {"id"})
_KINDS = {
    name: part
    for kind in Model.__subclasses__()
    for name, field in kind.model_fields.items()
    for part in Model.__subclasses__()
    if part.__name__ in re.findall(r"\w+", str(field.annotation))
}
