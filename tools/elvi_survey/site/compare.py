"""The page that puts a few papers side by side, and a script for each paper with its column.

A column is loaded when it is chosen. It comes as a script, not as JSON, so that the page works without a server.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import escape

from elvi.pairs import Pairs
from elvi_survey.codefacts import RELATED, Technique
from elvi_survey.schema import Record
from elvi_survey.site.figures import acts_at
from elvi_survey.site.matrix import CLASSES, STATES, merged
from elvi_survey.site.results import Result

if TYPE_CHECKING:
    from elvi_survey.site.pages import Page, Sources

URL = "compare/"
MOST = 6
HOW, MEASURED, REPORTED = "How it works", "Measured here", "Reported by the authors"
Row = tuple[str, str, str]  # what puts cells of two columns into one row, the row's head, the cell


def context(sources: "Sources") -> dict[str, Any]:
    """What the template is told: all papers to choose from, and what runs here as a table."""
    records = sources.catalog.records
    running = [
        (records[id_], code.main, _acts(records[id_], code))
        for id_, code in sources.techniques.items()
        if id_ in records and code.stage != RELATED
    ]
    named = {name for _, main, _ in running for name in [*main.needs, *main.breaks]}
    return {
        "records": sorted(records.values(), key=lambda record: record.display_name.lower()),
        "running": running,
        "sentences": {name: words for name, words in sources.facts.items() if name in named},
        "most": MOST,
    }


def script_files(sources: "Sources", made: Environment, page: "Page") -> Iterator[tuple[str, str]]:
    """(path, text) of the column of every record."""
    cells = made.get_template("compare_cells.html").make_module()
    for record in sources.catalog.records.values():
        column = {
            "name": record.display_name,
            "stage": record.stage,
            "url": page.to(f"papers/{record.id}/"),
            "sections": [
                (HOW, _how(sources, record, cells, page)),
                (MEASURED, _measured(sources.results.get(record.id, []), cells)),
                (REPORTED, _reported(sources, record, cells)),
            ],
            "pairs": _pairs(sources.pairs, record.id),
        }
        text = json.dumps(column, ensure_ascii=False, separators=(",", ":"))
        yield f"{URL}columns/{record.id}.js", f"(window.elviColumns??={{}})[{json.dumps(record.id)}]={text}\n"


def _acts(record: Record, code: Technique) -> list[tuple[str, str, str]]:
    return acts_at([method for part in code.classes for method in part.methods], record.stage)


def _how(sources: "Sources", record: Record, cells: Any, page: "Page") -> list[Row]:
    code = sources.techniques.get(record.id)
    runs = code if code and code.classes and code.stage != RELATED else None
    venue = sources.catalog.venues[record.venue].title
    training = {True: "training-free", False: "trained", None: "not recorded"}[record.training_free]
    rows = {
        "Idea": escape(record.summary),
        "Place": cells.place(record, page),
        "Acts at": cells.acts(_acts(record, runs)) if runs else "does not run here",
        "Needs": cells.chips("needs", runs.needs, sources.facts) if runs else "",
        "Breaks": cells.chips("breaks", runs.breaks, sources.facts) if runs else "",
        "Needs by the paper": cells.paper(record),
        "Training": training,
        "Input": ", ".join(record.modality),
        "Published": escape(f"{venue} {record.year}"),
        "Links": cells.links(record, page),
    }
    return [(head, head, _flat(cell)) for head, cell in rows.items()]


def _measured(results: list[Result], cells: Any) -> list[Row]:
    """A row for each machine, model and protocol: only what agrees in all three stands in one row."""
    found = []
    for result in results:
        if "cells" in result.data:
            same = json.dumps([result.data[part] for part in ("hardware", "model", "protocol")], sort_keys=True)
            key = hashlib.sha1(same.encode(), usedforsecurity=False).hexdigest()[:12]
            found.append((key, _flat(cells.setup(result)), _flat(cells.measured(result))))
    return found


def _reported(sources: "Sources", record: Record, cells: Any) -> list[Row]:
    """A row for each model."""
    found: dict[str, list[Any]] = {}
    for claim in record.claims:
        found.setdefault(claim.model or "", []).append(claim)
    titles = {id_: model.title for id_, model in sources.catalog.models.items()} | {"": "Model not named"}
    return [(id_, str(escape(titles[id_])), _flat(cells.claims(of))) for id_, of in found.items()]


def _flat(html: object) -> str:
    return str(html).strip()


def _pairs(pairs: Pairs | None, id_: str) -> dict[str, list[tuple[str, str, str, str]]] | None:
    """By the other technique, in each order: (which acts first, mark, words, sentence); None for what does not run.

    Pairs that work in each order they can have are left out.
    """
    if pairs is None or id_ not in pairs.techniques:
        return None
    found: dict[str, list[tuple[str, str, str, str]]] = {other: [] for other in pairs.techniques if other != id_}
    for first, second in pairs.ordered():
        if id_ in (first, second):
            together = merged(pairs, first, second)
            where = f" ({', '.join(together.models)})" if together.models else ""
            words = pairs.words(together.sentence, first, second) if together.sentence else ""
            told = (first, CLASSES[together.state], STATES[together.state] + where, words)
            found[second if first == id_ else first].append(told)
    return {other: told for other, told in found.items() if any(mark for _, mark, _, _ in told)}
