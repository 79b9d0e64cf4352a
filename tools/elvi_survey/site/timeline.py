"""When the papers of each stage appeared: a mark for each, month by month, and the same as a table.

Time runs downwards, so that the figure keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape

from elvi_survey.schema import Catalog, Record
from elvi_survey.site.figures import BAR, GLYPHS
from elvi_survey.site.pages import Page
from elvi_survey.vocabulary import Stage

URL = "timeline/"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WIDTH, LEFT, RIGHT, HEAD = 340, 60, 28, 92
MARK, ACROSS, ROW = 7, 4, 24  # a mark with the space after it, marks side by side, the least height of a row


@dataclass(frozen=True)
class Month:
    """The papers of one month, or of a year whose month is not known, by stage; stages without one are left out."""

    key: str
    title: str
    groups: tuple[tuple[Stage, tuple[Record, ...]], ...]

    @property
    def count(self) -> int:
        return sum(len(records) for _, records in self.groups)


def appeared(record: Record) -> str:
    """YYYY-MM of the first posting, else of the publication, or YYYY where neither month is known."""
    return record.first_posted or (f"{record.year}-{record.month:02}" if record.month else str(record.year))


def months(catalog: Catalog) -> list[Month]:
    """Newest first; a year alone stands after its months."""
    found: dict[str, list[Record]] = {}
    for record in catalog.records.values():
        found.setdefault(appeared(record), []).append(record)
    return [_month(catalog, key, found[key]) for key in sorted(found, reverse=True)]


def _month(catalog: Catalog, key: str, records: list[Record]) -> Month:
    year, _, month = key.partition("-")
    title = f"{MONTHS[int(month) - 1]} {year}" if month else f"{year}, month not known"
    grouped = [(stage, tuple(r for r in records if r.stage == stage.id)) for stage in catalog.stages.values()]
    return Month(key, title, tuple(group for group in grouped if group[1]))


def pages(catalog: Catalog) -> Iterator[Page]:
    """The one page, unless the catalog is empty."""
    if found := months(catalog):
        used = {stage.id for month in found for stage, _ in month.groups}
        stages = [stage for id_, stage in catalog.stages.items() if id_ in used]
        words = "The papers of the catalog by the month in which they were first posted, and by the stage they act on."
        yield Page(URL, "timeline.html", "Timeline", words, {"months": found, "figure": figure(found, stages)})


def _counts(month: Month) -> Iterator[tuple[Stage, int]]:
    return ((stage, len(records)) for stage, records in month.groups)


def figure(found: list[Month], stages: list[Stage]) -> Markup:
    """A row for each month, linked to its row in the table; a column for each stage, a mark for each paper."""
    lane = (WIDTH - LEFT - RIGHT) / len(stages)
    defs = "".join(
        f'<path id="at-{stage.id}" transform="scale(.5)" d="{GLYPHS.get(stage.id, BAR)}"/>' for stage in stages
    )
    places = {stage.id: LEFT + lane * i for i, stage in enumerate(stages)}
    heads = "".join(
        f'<g data-stage="{stage.id}"><text class="t-s" transform="translate({places[stage.id] + lane / 2:.1f} '
        f'{HEAD - 8}) rotate(-58)">{escape(stage.title)}</text></g>'
        for stage in stages
    )
    rows, y = [], HEAD
    for month in found:
        row, height = _row(month, places, y)
        rows.append(row)
        y += height
    label = "Papers by month and stage; each row leads to its row in the table"
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {y + 1}" role="group" aria-label="{label}"><defs>{defs}</defs>{heads}'
        + "".join(rows)
        + "</svg>"
    )


def _row(month: Month, places: dict[str, float], y: int) -> tuple[str, int]:
    """The row that begins at height y, and how high it is."""
    lines = max(-(-n // ACROSS) for _, n in _counts(month))
    height = max(ROW, lines * MARK + 6)
    top = y + (height - lines * MARK) / 2 + 0.5
    drawn = []
    for stage, n in _counts(month):
        x = places[stage.id] + 1
        marks = (
            f'<use href="#at-{stage.id}" x="{x + MARK * (i % ACROSS):.1f}" y="{top + MARK * (i // ACROSS):g}"/>'
            for i in range(n)
        )
        drawn.append(f'<g class="f-mark" data-stage="{stage.id}">{"".join(marks)}</g>')
    told = ", ".join(f"{n} in {stage.title}" for stage, n in _counts(month))
    short = month.title.partition(",")[0]
    return (
        f'<a href="#m-{month.key}" aria-label="{short}: {escape(told)}">'
        f'<rect class="hit" y="{y}" width="{WIDTH}" height="{height}"/><path class="l-rule" d="M0,{y + 0.5}H{WIDTH}"/>'
        f'<text y="{y + height / 2 + 4:g}">{short}</text>{"".join(drawn)}</a>',
        height,
    )
