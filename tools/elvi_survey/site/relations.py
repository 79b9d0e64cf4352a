"""How papers stand to one another: a figure and a table for each kind of relation.

Time runs to the right in half years, stages lie in lanes below one another, and a line joins two papers. Places follow
from dates, stages and names alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape

from elvi_survey.schema import Catalog, Record, Relation
from elvi_survey.site.figures import BAR, GLYPHS
from elvi_survey.site.pages import Page, record_url
from elvi_survey.site.timeline import appeared
from elvi_survey.vocabulary import RelationKind

URL = "relations/"
HEAD, ROW, LANE, GAP, GLYPH = 24, 26, 30, 48, 16  # heights of head, paper and lane's title; widths between papers
WIDE, MEAN, NARROW = 8.0, 6.2, 3.8  # a letter's width at 12 px, generously


@dataclass(frozen=True)
class Tie:
    """`one` says of `other` what the kind of `relation` is."""

    one: Record
    other: Record
    relation: Relation


@dataclass(frozen=True)
class Spot:
    """Where a paper stands: the left edge, the width and the middle line of its name, and its column."""

    x: float
    width: float
    y: float
    column: int

    @property
    def end(self) -> float:
        return self.x + self.width


@dataclass(frozen=True)
class Layout:
    """Spots by id, (x, words) of columns, (y, stage) of lanes, and the size of the whole."""

    spots: dict[str, Spot]
    heads: list[tuple[float, str]]
    lanes: list[tuple[float, str]]
    width: float
    height: float


def pages(catalog: Catalog) -> Iterator[Page]:
    """The one page, where the catalog has relations."""
    groups = [(kind, ties(catalog, kind.id)) for kind in catalog.relations.values()]
    if groups := [group for group in groups if group[1]]:
        words = "What builds on what, what is measured against what, what goes together and what is denied, as stated."
        yield (page := Page(URL, "relations.html", "Relations", words, {"groups": groups}))
        page.context["figure"] = lambda kind, found: figure(catalog, kind, found, page)


def ties(catalog: Catalog, kind: str) -> list[Tie]:
    """All relations of one kind, by the names of both ends."""
    records = catalog.records
    found = [Tie(r, records[tie.to], tie) for r in records.values() for tie in r.relations if tie.kind == kind]
    return sorted(found, key=lambda tie: (tie.one.display_name.lower(), tie.other.display_name.lower(), tie.one.id))


def half(record: Record) -> str:
    """The half year in which a paper appeared, or its year where the month is not known."""
    year, _, month = appeared(record).partition("-")
    return f"{year} H{1 if int(month) < 7 else 2}" if month else year


def layout(catalog: Catalog, found: list[Tie]) -> Layout:
    """Columns are the half years and lanes the stages that occur; papers of both stand below one another by name."""
    papers = {record.id: record for tie in found for record in (tie.one, tie.other)}
    columns = sorted({half(record) for record in papers.values()})
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(papers.values(), key=lambda record: (record.display_name.lower(), record.id)):
        cells.setdefault((record.stage, half(record)), []).append(record)
    lefts, x = [], 0.0
    for column in columns:
        names = [record.display_name for record in papers.values() if half(record) == column]
        lefts.append(x)
        x += max(map(_width, [*names, column])) + GAP
    spots, lanes, y = {}, [], float(HEAD)
    for stage in catalog.stages:
        here = {column: cells[stage, name] for column, name in enumerate(columns) if (stage, name) in cells}
        if here:
            lanes.append((y, stage))
            for column, records in here.items():
                for row, record in enumerate(records):
                    middle = y + LANE + ROW * row + ROW / 2
                    spots[record.id] = Spot(lefts[column], _width(record.display_name), middle, column)
            y += LANE + ROW * max(map(len, here.values())) + 6
    return Layout(spots, list(zip(lefts, columns, strict=True)), lanes, x - GAP / 2, y)


def _width(words: str) -> float:
    """Of a name with its glyph."""
    letters = (WIDE if each.isupper() or each in "mw&" else NARROW if each in "fijlrt -.,'" else MEAN for each in words)
    return GLYPH + sum(letters)


def figure(catalog: Catalog, kind: RelationKind, found: list[Tie], page: Page) -> Markup:
    """Lines first, then names over them; an arrow leads to what is said something of, unless it holds both ways."""
    made = layout(catalog, found)
    papers = {record.id: record for tie in found for record in (tie.one, tie.other)}
    drawn = [
        f'<text x="{x:.0f}" y="14">{escape(words)}</text><path class="l-rule" d="M{x:.0f},{HEAD}V{made.height:.0f}"/>'
        for x, words in made.heads
    ]
    drawn += [
        f'<g data-stage="{stage}"><path class="l-rule" d="M0,{y:.0f}H{made.width:.0f}"/>'
        f'<text class="t-s halo" x="0" y="{y + 18:.0f}">{escape(catalog.stages[stage].title)}</text></g>'
        for y, stage in made.lanes
    ]
    drawn += [_line(kind, tie, made.spots) for tie in found]
    drawn += [_name(papers[id_], spot, page.to(record_url(papers[id_]))) for id_, spot in made.spots.items()]
    arrow = "" if kind.mutual else (
        f'<defs><marker id="to-{kind.id}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path class="f-soft" d="M0,0L8,4L0,8z"/></marker></defs>'
    )  # fmt: skip
    size = f'width="{made.width:.0f}" height="{made.height:.0f}"'
    label = f"Papers in time and stage; a line: the one {kind.title} the other"
    return Markup(f'<svg {size} role="group" aria-label="{escape(label)}">{arrow}' + "".join(drawn) + "</svg>")


def _line(kind: RelationKind, tie: Tie, spots: dict[str, Spot]) -> str:
    """Between facing edges of two columns, over names that stand between them in a row, or around the right of one."""
    one, other = spots[tie.one.id], spots[tie.other.id]
    start, end = (one.x, other.end) if one.column > other.column else (one.end, other.x)
    bend = (end - start) / 2
    first, second = start + bend, end - bend
    rise = 0.7 * ROW if one.y == other.y and abs(one.column - other.column) > 1 else 0.0
    if one.column == other.column:
        start, end = one.end, other.end
        first = second = max(start, end) + GAP / 2
    route = [(first, one.y - rise), (second, other.y - rise), (end, other.y)]
    curve = " ".join(f"{x:.0f},{y:.0f}" for x, y in route)
    arrow = "" if kind.mutual else f' marker-end="url(#to-{kind.id})"'
    ends = f'data-from="{tie.one.id}" data-to="{tie.other.id}"'
    return f'<path class="l-edge" {ends}{arrow} d="M{start:.0f},{one.y:.0f}C{curve}"/>'


def _name(record: Record, spot: Spot, href: str) -> str:
    return (
        f'<a href="{escape(href)}" data-stage="{record.stage}">'
        f'<rect class="hit" x="{spot.x:.0f}" y="{spot.y - ROW / 2:.0f}" width="{spot.width:.0f}" height="{ROW}"/>'
        f'<path class="f-mark" transform="translate({spot.x:.0f} {spot.y - 5:.0f}) scale(.8)" '
        f'd="{GLYPHS.get(record.stage, BAR)}"/><text class="halo" x="{spot.x + 14:.0f}" y="{spot.y + 4:.0f}">'
        f"{escape(record.display_name)}</text></a>"
    )
