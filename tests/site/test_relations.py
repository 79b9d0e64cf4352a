"""The figures of relations draw what their tables list, and both what the records state."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import html5lib
import pytest

from elvi_survey.load import load_catalog
from elvi_survey.site.build import collect
from elvi_survey.site.pages import Sources
from elvi_survey.site.relations import ROW, half, layout, pages, ties
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.timeline import appeared

REPOSITORY = Path(__file__).parents[2]
HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"

MEASURE = """all => all.map(a => {
  const text = a.querySelector("text").getBBox(), room = a.querySelector("rect").getBBox();
  return [a.textContent, room.x + room.width - text.x - text.width];
})"""


@pytest.fixture(scope="module")
def catalog():
    return load_catalog(REPOSITORY)


def written(catalog) -> str:
    (page,) = pages(catalog)
    return markdown(environment(Sources(catalog, {}, {}, {}), "https://example.org/r"), page)


@pytest.fixture(scope="module")
def sections(catalog):
    """The section of each kind on the page of the real catalog."""
    tree = html5lib.parse(written(catalog))
    return {next(part.iter(f"{HTML}h2")).get("id"): part for part in tree.iter(f"{HTML}section")}


def stated(catalog, kind: str) -> list[tuple[str, str]]:
    return sorted((r.id, tie.to) for r in catalog.records.values() for tie in r.relations if tie.kind == kind)


def test_figure_and_table_hold_every_relation_of_the_catalog_once(catalog, sections):
    assert set(sections) == {tie.kind for record in catalog.records.values() for tie in record.relations}
    for kind, section in sections.items():
        lines = [(path.get("data-from"), path.get("data-to")) for path in section.iter(f"{SVG}path")]
        rows = [[link.get("href") for link in row.iter(f"{HTML}a")] for row in section.iter(f"{HTML}tr")]
        listed = [tuple(href.split("/")[-2] for href in row) for row in rows if row]
        assert sorted(line for line in lines if line[0]) == sorted(listed) == stated(catalog, kind)


def test_every_paper_of_a_figure_is_named_and_linked_once(catalog, sections):
    for kind, section in sections.items():
        names = [(a.get("href").split("/")[-2], "".join(a.itertext())) for a in section.iter(f"{SVG}a")]
        papers = {id_ for pair in stated(catalog, kind) for id_ in pair}
        assert sorted(names) == sorted((id_, catalog.records[id_].display_name) for id_ in papers)


def test_arrows_stand_where_a_relation_holds_one_way_only(catalog, sections):
    for kind, section in sections.items():
        arrows = [path.get("marker-end") for path in section.iter(f"{SVG}path") if path.get("data-from")]
        assert set(arrows) == {None if catalog.relations[kind].mutual else f"url(#to-{kind})"}


def test_later_papers_stand_further_right_stages_in_lanes_and_no_name_on_another(catalog):
    for kind in catalog.relations:
        made = layout(catalog, ties(catalog, kind))
        spots = [(catalog.records[id_], spot) for id_, spot in made.spots.items()]
        for (one, here), (other, there) in combinations(spots, 2):
            if half(one) < half(other):
                assert here.end < there.x
            if one.stage == other.stage and half(one) == half(other):
                assert abs(here.y - there.y) >= ROW
            if list(catalog.stages).index(one.stage) < list(catalog.stages).index(other.stage):
                assert here.y < there.y
        assert all(spot.x >= 0 and spot.end <= made.width and spot.y < made.height for _, spot in spots)


def test_the_page_follows_from_the_records_whatever_order_they_are_read_in(catalog):
    turned = dict(reversed(catalog.records.items()))
    assert written(replace(catalog, records=turned)) == written(catalog)


def test_a_half_year_ends_with_june(catalog):
    paper = next(record for record in catalog.records.values() if appeared(record).startswith("2025-06"))
    assert half(paper) == "2025 H1"
    assert half(paper.model_copy(update={"first_posted": "2025-07"})) == "2025 H2"
    assert half(paper.model_copy(update={"first_posted": None, "month": None})) == "2025"


def test_a_catalog_without_relations_has_no_such_page(root):
    catalog = collect(root).catalog
    bare = {id_: record.model_copy(update={"relations": []}) for id_, record in catalog.records.items()}
    assert list(pages(replace(catalog, records=bare))) == []


def test_names_fit_the_room_that_lines_leave_them(catalog, page, tmp_path):
    """Measured in a browser, with the fonts of the look."""
    look = (REPOSITORY / "docs/look/look.css").as_uri()
    body = written(catalog).split("---\n", 2)[2]
    (tmp_path / "page.html").write_text(f'<!doctype html><link rel="stylesheet" href="{look}">{body}', encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate("document.fonts.ready")
    names = page.eval_on_selector_all("svg a", MEASURE)
    assert len(names) > 100
    assert [(name, room) for name, room in names if not 0 <= room <= 30] == []
