"""The figure of the timeline shows what its table lists, and both what the catalog holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import html5lib
import pytest

from elvi_survey.load import load_catalog
from elvi_survey.site.build import collect
from elvi_survey.site.pages import record_url
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.timeline import appeared, figure, months, pages

REPOSITORY = Path(__file__).parents[2]
HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def catalog():
    return load_catalog(REPOSITORY)


@pytest.fixture(scope="module")
def tree(root, catalog):
    """The page of the real catalog, as it is written."""
    (page,) = pages(catalog)
    return html5lib.parse(markdown(environment(collect(root), "https://example.org/r"), page))


def expected(catalog) -> Counter:
    """(month, stage) of every paper."""
    return Counter((appeared(record), record.stage) for record in catalog.records.values())


def drawn(tree) -> Counter:
    """(month, stage) of every mark of the figure."""
    rows = [link for link in tree.iter(f"{SVG}a") if (link.get("href") or "").startswith("#m-")]
    groups = [(row.get("href").removeprefix("#m-"), group) for row in rows for group in row.iter(f"{SVG}g")]
    return Counter((month, group.get("data-stage")) for month, group in groups for _ in group.iter(f"{SVG}use"))


def listed(tree) -> list[tuple[str, str, str, int]]:
    """(month, stage, address of a paper, number in its row) of the table."""
    bodies = [body for body in tree.iter(f"{HTML}tbody") if (body.get("id") or "").startswith("m-")]
    rows = [(body.get("id").removeprefix("m-"), row) for body in bodies for row in body.iter(f"{HTML}tr")]
    found = []
    for month, row in rows:
        number, which = row.findall(f"{HTML}td")[1:]
        papers = [link.get("href") for link in which.iter(f"{HTML}a")]
        found += [(month, row.get("data-stage"), paper, int(number.text)) for paper in papers]
    return found


def test_figure_and_table_hold_every_paper_once_in_its_month_and_stage(catalog, tree):
    rows = listed(tree)
    assert Counter((month, stage) for month, stage, _, _ in rows) == drawn(tree) == expected(catalog)
    assert sorted(paper for _, _, paper, _ in rows) == sorted(f"../{record_url(r)}" for r in catalog.records.values())
    assert all(number == expected(catalog)[month, stage] for month, stage, _, number in rows)


def test_every_row_of_the_figure_says_in_words_what_it_shows(catalog, tree):
    labels = {a.get("href"): a.get("aria-label") for a in tree.iter(f"{SVG}a")}
    for (month, stage), count in expected(catalog).items():
        assert f"{count} in {catalog.stages[stage].title}" in labels[f"#m-{month}"]


def test_the_newest_month_comes_first_and_a_year_alone_after_its_months(catalog):
    keys = [month.key for month in months(catalog)]
    assert keys == sorted(set(keys), reverse=True)
    assert keys.index("2025") > keys.index("2025-01")


def test_a_paper_stands_where_it_was_first_posted_else_published_else_in_its_year(catalog):
    paper = next(r for r in catalog.records.values() if r.first_posted and r.month is None)
    dated = paper.model_copy(update={"month": 7, "year": 2024})
    assert appeared(dated) == paper.first_posted
    assert appeared(dated.model_copy(update={"first_posted": None})) == "2024-07"
    assert appeared(paper.model_copy(update={"first_posted": None, "year": 2024})) == "2024"


def test_marks_stay_inside_their_lane_and_row(catalog):
    stages = [stage for stage in catalog.stages.values() if catalog.in_path(stage.id)]
    svg = html5lib.parse(str(figure(months(catalog), stages)))
    for row in svg.iter(f"{SVG}a"):
        box = next(row.iter(f"{SVG}rect"))
        top, height = float(box.get("y")), float(box.get("height"))
        marks = [(float(use.get("x")), float(use.get("y"))) for use in row.iter(f"{SVG}use")]
        assert len(marks) == len(set(marks))
        assert all(top < y and y + 6 < top + height and x >= 60 and x + 6 <= 340 for x, y in marks)
