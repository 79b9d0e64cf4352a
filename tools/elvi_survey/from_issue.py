"""The body of an issue form ("Add a paper", "Fix an entry") as a record or as a changed record.

GitHub writes a form as Markdown: `### Label`, then the answer.  Answers are data, never a path or a command.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from ruamel.yaml import YAML

from elvi.errors import ElviError
from elvi_survey.add import new_record
from elvi_survey.fmt import format_text
from elvi_survey.load import Reading, read_text
from elvi_survey.marked import MarkedError, read_marked
from elvi_survey.problems import suggest
from elvi_survey.schema import Catalog, Model, Record
from elvi_survey.sources import Paper, arxiv_id, one_line

ADD = {
    "id": "arXiv id, DOI or OpenReview address", "title": "Title", "authors": "Authors", "year": "Year",
    "venue": "Venue", "url": "Address of the paper", "code": "Code", "place": "Place in the taxonomy",
    "training": "Training-free", "modality": "Modality", "summary": "Summary",
}  # fmt: skip
FIX = {"record": "Record", "field": "Field", "value": "New value", "source": "Source"}
FIXABLE = sorted(set(Record.model_fields) - {"id", "provenance", "verified"})
EMPTY = {"", "_No response_", "None", "unknown", "null"}
_LABELS = {*ADD.values(), *FIX.values()}


class IssueError(ElviError):
    """The body is not one of the two forms, or says what cannot be."""


def body_of(text: str) -> str:
    """The Markdown of an issue: `text` itself, or what an event or an API reply in JSON holds.  Raises IssueError."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        data = json.loads(text)
        body = data.get("issue", data)["body"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        body = None
    if not isinstance(body, str):
        raise IssueError("The JSON holds no issue body; save the event, or `gh issue view N --json body`.")
    return body


def answers(body: str) -> dict[str, str]:
    """Label -> answer, empty where nothing was answered; text under other headings belongs to the answer above."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in body.replace("\r\n", "\n").split("\n"):
        label = line.removeprefix("### ").strip() if line.startswith("### ") else None
        if label in _LABELS and label not in found:
            lines = found.setdefault(label, [])
        else:
            lines.append(line)
    texts = {label: "\n".join(part).strip() for label, part in found.items()}
    return {label: "" if text in EMPTY else text for label, text in texts.items()}


def from_issue(text: str, catalog: Catalog, reading: Reading, id_: str | None = None) -> tuple[str, str]:
    """Path (below the root) and new text of the record that the issue speaks of; raises IssueError or AddError."""
    given = answers(body_of(text))
    if FIX["record"] in given and FIX["field"] in given:
        return _fixed({key: given.get(label, "") for key, label in FIX.items()}, reading)
    if ADD["title"] in given:
        id_, record = _added({key: given.get(label, "") for key, label in ADD.items()}, catalog, reading, id_)
        return f"catalog/{id_}.yaml", record
    raise IssueError("The text is neither an `Add a paper` nor a `Fix an entry` form; pass the issue's body unchanged.")


def diff(file: str, old: str, new: str) -> str:
    """A patch that `git apply` takes; empty when nothing changes."""
    start = f"a/{file}" if old else "/dev/null"
    return "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), start, f"b/{file}"))


def _added(given: dict[str, str], catalog: Catalog, reading: Reading, id_: str | None) -> tuple[str, str]:
    if not given["title"]:
        raise IssueError("The form has no title; ask for it in the issue, or use `elvi-survey add` with an id.")
    forum = re.search(r"openreview\.net/\w+\?id=([\w-]+)", given["id"])
    doi = re.search(r"10\.\d{4,9}/\S+", given["id"])
    year = re.search(r"\b(?:19|20)\d{2}\b", given["year"])
    arxiv = arxiv_id(given["id"])
    paper = Paper(
        origin="issue form",
        title=one_line(given["title"]),
        authors=tuple(_lines(given["authors"].replace(";", "\n"))),
        year=int(year[0]) if year else None,
        venue=one_line(given["venue"]) or None,
        venue_type="preprint" if not given["venue"] and arxiv else None,
        arxiv=arxiv,
        doi=doi[0] if doi and not arxiv else None,
        openreview=forum[1] if forum else None,
        url=one_line(given["url"]) or (f"https://arxiv.org/abs/{arxiv}" if arxiv else None),
    )
    return new_record(paper, catalog, reading, id_, _decided(given, catalog))


def _decided(given: dict[str, str], catalog: Catalog) -> dict[str, Any]:
    """What the contributor chose: only answers that are among the choices."""
    known: dict[str, Any] = {}
    if given["place"]:
        known["placements"] = [placement(given["place"], catalog)]
    ticked = [line[5:].strip() for line in given["modality"].splitlines() if line.lower().startswith("- [x]")]
    if ticked:
        known["modality"] = ticked
    if given["training"].lower() in ("yes", "no"):
        known["training_free"] = given["training"].lower() == "yes"
    if given["summary"]:
        known["summary"] = one_line(given["summary"])
    if given["code"]:
        known["links"] = [{"kind": "official", "url": one_line(given["code"])}]
    return known


def placement(words: str, catalog: Catalog) -> dict[str, str]:
    """`stage/category[/subcategory]` as a placement of ours; raises IssueError with the nearest place that there is."""
    path = "/".join(part.strip() for part in words.split("/"))
    places = all_places(catalog)
    if path not in places:
        raise IssueError(f"{one_line(path)!r} is no place in the taxonomy; {suggest(path, places)}.")
    return dict(zip(("stage", "category", "subcategory"), path.split("/"), strict=False)) | {"source": "ours"}


def all_places(catalog: Catalog) -> list[str]:
    """Every `stage/category` and `stage/category/subcategory`, in the order of the taxonomy."""
    places = []
    for stage in catalog.stages.values():
        for category in stage.categories.values():
            here = f"{stage.id}/{category.id}"
            places += [here, *(f"{here}/{subcategory}" for subcategory in category.subcategories)]
    return places


def _fixed(given: dict[str, str], reading: Reading) -> tuple[str, str]:
    known = [Path(file).stem for file in reading.marked if file.startswith("catalog/")]
    id_, name = given["record"].strip(), given["field"].strip()
    if id_ not in known:
        raise IssueError(f"There is no record {one_line(id_)[:80]!r}; {suggest(id_, known, 'check its id')}.")
    if name not in FIXABLE:
        raise IssueError(f"{one_line(name)[:80]!r} is not a field that can be fixed; {suggest(name, FIXABLE)}.")
    file = f"catalog/{id_}.yaml"
    text = read_text(reading.root / file)
    changes: dict[str, Any] = {name: _value(name, given["value"])}
    if given["source"]:
        old = reading.marked[file].data.get("provenance")
        changes["provenance"] = {**(old if isinstance(old, dict) else {}), name: one_line(given["source"])}
    return file, with_values(text, changes)


def with_values(text: str, changes: Mapping[str, Any]) -> str:
    """`text` of a record with these fields set, comments elsewhere kept."""
    yaml, out = YAML(), io.StringIO()
    yaml.width, yaml.preserve_quotes, yaml.allow_unicode = 4096, True, True
    data = yaml.load(format_text(text))
    for name, value in changes.items():
        data[name] = value
    yaml.dump(data, out)
    return format_text(out.getvalue())


def _value(name: str, words: str) -> Any:
    """An answer as the type of its field: numbers, truth, lines of a list, or YAML where records are nested."""
    kinds = {kind for kind in _inside(Record.model_fields[name].annotation) if isinstance(kind, type)}
    if not words:
        return None
    if any(issubclass(kind, Model) for kind in kinds):
        try:
            return read_marked(re.sub(r"\A```\w*\n|\n```\Z", "", words)).data
        except MarkedError as error:
            raise IssueError(f"The new value of {name} is not YAML, {error.message}; {error.fix}.") from None
    if list in kinds:
        return _lines(words)
    line = one_line(words)
    if bool in kinds and line.lower() in ("yes", "true", "no", "false"):
        return line.lower() in ("yes", "true")
    return int(line) if int in kinds and re.fullmatch(r"\d{1,6}", line) else line


def _inside(kind: Any) -> set[Any]:
    """The types that make up an annotation."""
    return {kind, get_origin(kind)}.union(*(_inside(part) for part in get_args(kind)))


def _lines(words: str) -> list[str]:
    """One item per line, without bullets."""
    items = (one_line(line).removeprefix("- ") for line in words.splitlines())
    return [item for item in items if item]
