"""New papers on arXiv for each category that has a query, as a list to review; a cursor remembers what was listed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from elvi.errors import ElviError
from elvi_survey.load import Reading
from elvi_survey.queries import read_queries, search_terms
from elvi_survey.schema import Catalog
from elvi_survey.similar import duplicate
from elvi_survey.sources import Paper, search_arxiv
from elvi_survey.web import Web, WebError

FIRST_DAYS = 30  # how far the first run looks back
OVERLAP_DAYS = 7  # arXiv lists a paper some days after the date that it carries
PAGE, MOST = 50, 200
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~$@-])")


@dataclass
class Cursor:
    """Last day asked for, by category, and the ids listed since then (with their days)."""

    asked: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Cursor:
        """The cursor in `path`, a new one when there is no such file; raises ElviError when it is something else."""
        if not path.exists():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            days = [*data["asked"].values(), *data["listed"].values()]
            if all(date.fromisoformat(day) for day in days):
                return cls(dict(data["asked"]), dict(data["listed"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        raise ElviError(f"{path} is not a cursor of discover; delete it to look back {FIRST_DAYS} days.")

    def write(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"asked": self.asked, "listed": self.listed}, indent=1, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ElviError(f"{path} cannot be written ({error.strerror}); name another file with --cursor.") from None


def discover(
    web: Web, catalog: Catalog, reading: Reading, cursor: Cursor, today: date
) -> tuple[dict[str, list[Paper]], list[str]]:
    """New papers by place, none twice, and a sentence for each category that could not be asked.

    `cursor` moves on for the categories that could.
    """
    found: dict[str, list[Paper]] = {}
    failed = []
    for place, queries in read_queries(catalog.root).items():
        since = date.fromisoformat(cursor.asked.get(place, str(today - timedelta(FIRST_DAYS))))
        try:
            papers = list(_newer(web, search_terms(queries), str(since - timedelta(OVERLAP_DAYS))))
        except WebError as error:
            failed.append(f"{place}: {error}")
            continue
        if len(papers) >= MOST:
            failed.append(f"{place}: only the newest {MOST} papers are listed; narrow its query.")
        new = [paper for paper in papers if paper.arxiv not in cursor.listed and not duplicate(paper, reading)]
        cursor.listed |= {str(paper.arxiv): str(paper.posted) for paper in new}
        cursor.asked[place] = str(today)
        if new:
            found[place] = new
    oldest = min(cursor.asked.values(), default=str(today))
    kept = str(date.fromisoformat(oldest) - timedelta(OVERLAP_DAYS + 1))
    cursor.listed = {id_: day for id_, day in cursor.listed.items() if day >= kept}
    return found, failed


def _newer(web: Web, query: str, since: str) -> Iterator[Paper]:
    for start in range(0, MOST, PAGE):
        page = search_arxiv(web, query, start, PAGE)
        for paper in page:
            if str(paper.posted) < since:
                return
            if paper.arxiv:
                yield paper
        if len(page) < PAGE:
            return


def markdown(found: dict[str, list[Paper]], failed: list[str], catalog: Catalog) -> str:
    """The list for review: one box per paper, with the command that adds it."""
    count = sum(map(len, found.values()))
    lines = [f"# {count} new paper{'' if count == 1 else 's'} to review", ""]
    for place, papers in found.items():
        stage, category = place.split("/")
        title = catalog.stages[stage].categories[category].title if stage in catalog.stages else category
        lines += [f"## {plain(title)} ({place})", ""]
        for paper in papers:
            names = ", ".join(paper.authors[:3]) + (" and others" if len(paper.authors) > 3 else "")
            lines.append(
                f"- [ ] [{plain(paper.title)}](https://arxiv.org/abs/{paper.arxiv}), {plain(names)}, {paper.posted}"
            )
            lines.append(f"  `elvi-survey add {paper.arxiv} --place {place}`")
        lines.append("")
    if failed:
        lines += ["## Not asked", "", *(f"- {plain(sentence)}" for sentence in failed), ""]
    return "\n".join(lines)


def plain(words: str) -> str:
    """Words that Markdown and GitHub show as they are: no markup, no mention, no link of their own."""
    return _MARKUP.sub(r"\\\1", words).replace("&", "&amp;").replace("://", ":\u200b//")
