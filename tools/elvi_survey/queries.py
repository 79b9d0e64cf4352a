"""What arXiv is asked for: taxonomy/queries.yaml, a list of alternatives for each category."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from elvi.errors import ElviError
from elvi_survey.load import read_text
from elvi_survey.marked import MarkedError, read_marked
from elvi_survey.problems import Problem, suggest
from elvi_survey.schema import Catalog

QUERIES = "taxonomy/queries.yaml"
SUBJECTS = ("cs.CV", "cs.CL", "cs.LG", "cs.AI", "cs.MM", "cs.DC")


def read_queries(root: Path) -> dict[str, list[str]]:
    """Place -> alternatives; raises ElviError when the file has a problem."""
    for problem in query_problems(root, None):
        raise ElviError(f"{problem}.")
    return read_marked(read_text(root / QUERIES)).data if (root / QUERIES).exists() else {}


def query_problems(root: Path, catalog: Catalog | None) -> Iterator[Problem]:
    """What is wrong with the file of queries; places are looked up where there is a catalog."""
    if not (root / QUERIES).exists():
        return
    try:
        marked = read_marked(read_text(root / QUERIES))
    except MarkedError as error:
        yield Problem(QUERIES, error.line, error.column, error.code, error.message, error.fix)
        return
    places = (
        {f"{stage.id}/{id_}" for stage in catalog.stages.values() for id_ in stage.categories} if catalog else set()
    )
    for place, queries in marked.data.items() if isinstance(marked.data, dict) else [("", None)]:
        mark = marked.nearest((place,))
        if not isinstance(queries, list) or not all(isinstance(query, str) and _words(query) for query in queries):
            fix = "write a list like `- '\"visual token pruning\"'`"
            yield Problem(
                QUERIES, mark.line, mark.column, "bad-query", f"{place}: this is no list of quoted words", fix
            )
        elif places and place not in places:
            message = f"{place!r} is no category"
            yield Problem(QUERIES, mark.key_line, mark.key_column, "unknown-tag", message, suggest(place, places))


def _words(query: str) -> list[str]:
    """The words in quotes; empty when anything else stands there."""
    return re.findall(r'"([^"]+)"', query) if re.fullmatch(r'\s*("[\w .:/+-]+"\s*)+', query) else []


def search_terms(queries: list[str]) -> str:
    """One query in arXiv's language for all alternatives of a category."""
    either = " OR ".join(
        "(" + " AND ".join(f'(ti:"{words}" OR abs:"{words}")' for words in _words(query)) + ")" for query in queries
    )
    return f"({either}) AND ({' OR '.join(f'cat:{subject}' for subject in SUBJECTS)})"
