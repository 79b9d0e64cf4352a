"""Every rule of the catalog in one run: the schema and tags (load), then what only all files together show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from elvi import pairs
from elvi_survey.codefacts import CodeFactsError, module_files, read_facts, read_technique
from elvi_survey.load import Reading, catalog_files, read_catalog, read_text
from elvi_survey.marked import MarkedError
from elvi_survey.problems import Problem, suggest
from elvi_survey.queries import query_problems
from elvi_survey.schema import Catalog, Record

FOLDERS = ("catalog", "taxonomy", "impls", "results", "tests")
RESULTS_SCHEMA = 1
OF_MANY = {"speed.json", "kept.json"}  # measured of all techniques of a machine together
MAX_RESULT_BYTES = 4 * 1024 * 1024
_NOTHING = re.compile(r"[^a-z0-9]+")


def check(root: Path, instead: Mapping[str, str] | None = None) -> list[Problem]:
    """All problems of the repository at `root`, sorted by place; `instead` as in Reading."""
    if links := [name for name in FOLDERS if (root / name).is_symlink()]:
        return [
            Problem(name, 1, 1, "file-link", "the folder is a symbolic link", "put a folder there") for name in links
        ]
    catalog, reading = read_catalog(root, instead)
    known = {path.stem for path in [*catalog_files(root), *map(Path, instead or {})]}
    _duplicates(catalog, reading)
    _records_have_code(catalog, reading)
    reading.problems += query_problems(root, catalog)
    reading.problems += [*_code_has_records(root, catalog, known), *_results(root, catalog, known)]
    return sorted(reading.problems)


def _duplicates(catalog: Catalog, reading: Reading) -> None:
    """No two records share an identifier or a title (compared by letters and digits)."""
    keys: dict[str, Callable[[Record], str | None]] = {
        "arxiv": lambda record: record.arxiv,
        "doi": lambda record: record.doi and record.doi.lower(),
        "openreview": lambda record: record.openreview,
        "title": lambda record: _NOTHING.sub("", record.title.lower()) or record.title,
    }
    for name, key in keys.items():
        first: dict[str, str] = {}
        for record in catalog.records.values():
            value = key(record)
            if value is None:
                continue
            other = first.setdefault(value, record.id)
            if other != record.id:
                message = f"{name} is the same as in catalog/{other}.yaml"
                _at(reading, record, (name,), f"duplicate-{name}", message, "keep one record, with both placements")


def _records_have_code(catalog: Catalog, reading: Reading) -> None:
    """A runnable record has its module and its tests; any other has no module."""
    for record in catalog.records.values():
        if record.stage not in catalog.stages:
            continue
        runnable = record.implementation.status == "runnable"
        module, test = ((reading.root / path).is_file() for path in (record.module, record.test))
        note = partial(_at, reading, record, ("implementation", "status"))
        if runnable and not module:
            note("module-missing", f"{record.module} does not exist", "add it or set status to planned")
        elif runnable and not test:
            note("test-missing", f"{record.test} does not exist", "add the tests of this technique")
        elif module and not runnable:
            note("status-stale", f"{record.module} exists", "set status to runnable")


def _code_has_records(root: Path, catalog: Catalog, known: set[str]) -> Iterator[Problem]:
    """Every technique module has a record in its own stage, and can be read as a technique."""
    try:
        facts = read_facts(root)
    except CodeFactsError as error:
        yield _code_problem(error, "code-facts")
        return
    for stage, id_, path in module_files(root):
        file = path.relative_to(root).as_posix()
        record = catalog.records.get(id_)
        if id_ not in known:
            message = f"catalog/{id_}.yaml does not exist"
            yield Problem(file, 1, 1, "record-missing", message, "add the record of this technique")
        elif record is not None and stage != record.stage and record.stage in catalog.stages:
            message = f"the module is in {stage}, its record in {record.stage}"
            yield Problem(file, 1, 1, "stage-mismatch", message, f"move it to impls/elvi/{record.stage}")
        yield from _contract(root, stage, id_, path, facts)


def _contract(root: Path, stage: str, id_: str, path: Path, facts: dict[str, str]) -> Iterator[Problem]:
    try:
        technique = read_technique(root, stage, id_, path)
    except CodeFactsError as error:
        yield _code_problem(error, "code-contract")
        return
    for part in technique.classes:
        for name in sorted({*part.needs, *part.breaks} - set(facts)):
            message = f"{part.name} names Fact.{name}"
            yield Problem(technique.path, part.line, 1, "unknown-fact", message, suggest(name, facts))


def _results(root: Path, catalog: Catalog, known: set[str]) -> Iterator[Problem]:
    """results/<hardware>/<model>/<technique>.json: readable, of our schema, of a runnable record, where it says.

    Those of a related system have no model, and stand in `related` instead.
    """
    for path in sorted((root / "results").glob("**/*.json")):
        if path.name in OF_MANY or path == root / pairs.FILE:
            continue
        file = path.relative_to(root).as_posix()
        problem = _result_problem(path, catalog, known)
        if problem:
            yield Problem(file, 1, 1, *problem)


def _result_problem(path: Path, catalog: Catalog, known: set[str]) -> tuple[str, str, str] | None:
    try:
        data: Any = json.loads(read_text(path, MAX_RESULT_BYTES))
    except MarkedError as error:
        return error.code, error.message, error.fix
    except (ValueError, RecursionError):
        return "results-syntax", "the file is not JSON", "measure again with `elvi bench`"
    if not isinstance(data, dict) or data.get("schema") != RESULTS_SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        return "results-schema", f"schema {found!r} is not {RESULTS_SCHEMA}", "measure again with `elvi bench`"
    hardware, model = data.get("hardware"), data.get("model")
    machine = hardware.get("id") if isinstance(hardware, dict) else None
    name = str(model.get("name") if isinstance(model, dict) else "related" if "tables" in data else None)
    id_ = path.stem
    if (machine, name.replace("/", "--"), data.get("technique")) != (path.parent.parent.name, path.parent.name, id_):
        message = f"the file says technique {data.get('technique')!r} with {name!r} on {machine!r}"
        return "results-misfiled", message, "file it as results/<hardware>/<model>/<technique>.json"
    if id_ not in known:
        return "results-unknown", f"catalog/{id_}.yaml does not exist", suggest(id_, known, "add the record")
    status = catalog.records[id_].implementation.status if id_ in catalog.records else "runnable"
    if status != "runnable":
        return "results-unknown", f"{id_} is {status}, not runnable", "delete the file or set the status"
    return None


def _at(reading: Reading, record: Record, path: tuple[str | int, ...], code: str, message: str, fix: str) -> None:
    file = f"catalog/{record.id}.yaml"
    reading.add(file, reading.marked[file].nearest(path), code, message, fix)


def _code_problem(error: CodeFactsError, code: str) -> Problem:
    return Problem(error.file, error.line, 1, code, error.message, error.fix)
