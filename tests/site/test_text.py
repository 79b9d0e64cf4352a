"""Words of the catalog come out as words; docstrings keep their code and mathematics."""

from pathlib import Path

import html5lib
import pytest
import yaml
from markdown import markdown

from elvi_survey.site.text import beyond_markdown, inline, one_line, prose

HTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="session")
def hostile(root: Path) -> dict:
    return yaml.safe_load((root / "catalog/hostile.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def page(site: Path):
    return html5lib.parse((site / "papers/hostile/index.html").read_text(encoding="utf-8"))


def texts(page, name: str) -> list[str]:
    return [one_line("".join(element.itertext())) for element in page.iter(HTML + name)]


def test_each_hostile_field_is_shown_as_it_was_written(page, hostile):
    shown = texts(page, "p")
    assert texts(page, "h1") == [hostile["name"]]
    assert one_line(hostile["title"]) in shown
    assert one_line(hostile["summary"]) in shown
    assert one_line(hostile["note"]) in shown
    assert one_line(", ".join(hostile["authors"])) in shown
    assert any(hostile["implementation"]["reason"] in words for words in shown)
    assert hostile["claims"][0]["what"] in texts(page, "th")
    assert hostile["claims"][0]["setting"] in texts(page, "td")


def test_no_hostile_field_becomes_an_element(page):
    assert not [name for name in ("img", "em", "i", "h4") if texts(page, name)]
    assert not [element for element in page.iter() if any(name.startswith("on") for name in element.attrib)]
    assert "owned" not in texts(page, "h1")
    assert not [style for style in texts(page, "style") if "display:none" in style]
    assert not [script for script in texts(page, "script") if "alert" in script]


def test_the_head_of_a_hostile_page_is_escaped_too(page, hostile):
    assert texts(page, "title") == [f"{hostile['name']} - ELVI"]
    description = next(meta.get("content") for meta in page.iter(HTML + "meta") if meta.get("name") == "description")
    assert description == one_line(hostile["summary"])


@pytest.mark.parametrize("url", ["", "papers/", "decode/", "decode/speculative-decoding/"])
def test_lists_escape_the_record_as_well(site, url):
    parsed = html5lib.parse((site / url / "index.html").read_text(encoding="utf-8"))
    assert '<script>alert("name")</script>' in texts(parsed, "a")
    assert not [script for script in texts(parsed, "script") if "alert" in script]


def test_a_docstring_keeps_paragraphs_bullets_code_and_mathematics():
    html = prose("First `a < b` line\nof two.\n\n- one ``x``\n- two\n\n    y = 1\n\nMass $m_i$ & more.")
    assert '<p class="prose">First <code>a &lt; b</code> line of two.</p>' in html
    assert "<li>one <code>x</code></li><li>two</li>" in html
    assert "<code>y = 1</code></pre>" in html
    assert "<msub><mi>m</mi><mi>i</mi></msub>" in html
    assert "&amp; more." in html


def test_numbered_steps_are_a_list_of_their_own():
    html = prose("Three stages:\n\n1. Classify by\n   mass.\n2. Share out 1.5 rows.\n\nEnd.")
    assert '<ol class="prose dots"><li>Classify by mass.</li><li>Share out 1.5 rows.</li></ol>' in html
    assert prose("A sum of 1. 5 is not one") == '<p class="prose">A sum of 1. 5 is not one</p>'


def test_prices_are_not_mathematics():
    assert inline("costs 5 $ a day") == "costs 5 $ a day"


FENCES = ["\n```\ncode\n```\n", "\n~~~\ncode\n~~~\n"]


@pytest.mark.parametrize("inside", [*FENCES, "\n\n# head\n\n", "\n\n    indented\n\n", "\x02stx\x03", "[a](b)"])
def test_markdown_leaves_generated_html_alone(inside):
    html = f'<div class="page"><p>{inside}</p></div>'
    extensions = ["pymdownx.superfences", "pymdownx.highlight", "tables", "toc"]
    parsed = html5lib.parseFragment(markdown(beyond_markdown(html), extensions=extensions))
    assert [element.tag for element in parsed.iter()] == ["DOCUMENT_FRAGMENT", f"{HTML}div", f"{HTML}p"]
    assert one_line("".join(parsed.itertext())) == one_line(inside)
