"""The page of a related system: its tables, how it is run and trained, and nothing about plans."""

import html5lib
import pytest
from commands import commands

from elvi_survey.site.build import collect
from elvi_survey.site.pages import all_pages
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import load_results

HTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture
def page(site):
    return html5lib.parse((site / "papers/beside/index.html").read_text(encoding="utf-8"))


def test_every_cell_leads_back_to_its_value(page, root):
    [result] = load_results(root / "results")["beside"]
    figure = next(each for each in page.iter(HTML + "figure") if "measured" in each.get("class", ""))
    cells = {
        part.get("data-result-id").split("#")[1]: "".join(part.itertext())
        for part in figure.iter()
        if part.get("data-result-id")
    }
    row = [cells[f"tables/0/rows/0/{column}"] for column in range(4)]
    assert row == ["plain <b>", "0.8125", "1,234,567", "12.35"]
    assert cells["tables/0/rows/1/3"] == "–"
    assert result.value("tables/0/rows/1/3") is None


def test_it_says_how_to_run_and_to_train(page):
    commands = ["".join(part.itertext()) for part in page.iter(HTML + "pre")]
    assert commands[:2] == ["$ elvi run beside", "$ elvi train beside --out DIR"]


def test_a_text_to_try_is_shown_where_the_system_reads_one(scratch_root):
    path = scratch_root / "impls/elvi/related/beside/__init__.py"
    path.write_text(path.read_text().replace("    threshold", '    prompt: ClassVar = "Is it?"\n    threshold', 1))
    sources = collect(scratch_root)
    shown = next(each for each in all_pages(sources) if each.url == "papers/beside/")
    text = markdown(environment(sources, "https://example.org/r"), shown)
    assert commands(text)[:2] == ["elvi run beside", 'elvi run beside --prompt "Is it?"']


def test_it_has_fields_and_no_composition(page):
    headings = ["".join(part.itertext()) for part in page.iter(HTML + "h2")]
    assert "Fields and defaults" in headings
    assert "Composition" not in headings
