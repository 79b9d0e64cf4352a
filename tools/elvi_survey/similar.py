"""Whether a paper is in the catalog already: by identifier, or by a title that says almost the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from elvi_survey.load import Reading
from elvi_survey.sources import Paper

SAME_TITLE = 0.93


def normalised(title: str) -> str:
    """Lower-case words without accents and punctuation."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode() or title
    return " ".join(re.findall(r"\w+", plain.lower()))


def likeness(one: str, other: str) -> float:
    """0 to 1 for two normalised titles (Ratcliff/Obershelp), 0 where a cheap bound is below SAME_TITLE already."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    if matcher.real_quick_ratio() < SAME_TITLE or matcher.quick_ratio() < SAME_TITLE:
        return 0.0
    return matcher.ratio()


def duplicate(paper: Paper, reading: Reading) -> str | None:
    """`<file> has the same <what>` for the first record of the same paper; records with problems count as well."""
    title = normalised(paper.title)
    ids = {"arxiv": paper.arxiv, "doi": paper.doi and paper.doi.lower(), "openreview": paper.openreview}
    for file, data in records(reading):
        for name, value in ids.items():
            if value and str(data.get(name)).lower() == value.lower():
                return f"{file} has the same {name}, {value}"
        other = data.get("title")
        if isinstance(other, str) and likeness(title, normalised(other)) >= SAME_TITLE:
            return f"{file} has the title {other!r}"
    return None


def records(reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and raw data of every record that could be read as YAML."""
    return ((file, marked.data) for file, marked in reading.marked.items() if file.startswith("catalog/"))
