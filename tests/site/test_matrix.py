"""The matrix of pairs says what the file says, in cells, in lists and in words, with and without scripts."""

import re
from pathlib import Path

import html5lib
import pytest
from browsing import scrolls_sideways

from elvi import pairs
from elvi_survey.site.build import collect
from elvi_survey.site.matrix import STATES, Reason, Together, merged
from elvi_survey.site.pages import all_pages
from elvi_survey.site.render import environment, markdown

HTML = "{http://www.w3.org/1999/xhtml}"
REPOSITORY = Path(__file__).parents[2]
MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def real() -> tuple[pairs.Pairs, str]:
    """The shipped verdicts, and their page as it is written."""
    sources = collect(REPOSITORY)
    page = next(page for page in all_pages(sources) if page.url == "compose/")
    return sources.pairs, markdown(environment(sources, "https://example.org/r"), page)


def words(element) -> str:
    return " ".join("".join(element.itertext()).split())


def expected(found: pairs.Pairs, acting: set[tuple[str, str]], row: str, column: str) -> str:
    """The slow way to the words of a cell: every verdict of every model on the pair in the order in which it acts."""
    if row == column:
        return ""
    pair = (row, column) if (row, column) in acting else (column, row)
    kinds = {found.verdict(model, *pair).kind for model in found.models} - {"unfit"}
    return STATES[kinds.pop() if len(kinds) == 1 else "model" if kinds else "unfit"]


def test_every_cell_says_what_the_file_says(real):
    found, text = real
    rows = {
        row.get("id"): [words(cell) for cell in row.iter(f"{HTML}td")]
        for row in html5lib.parse(text).iter(f"{HTML}tr")
        if row.get("id")
    }
    assert set(rows) == set(found.techniques)
    acting = set(found.ordered())
    assert rows == {row: [expected(found, acting, row, column) for column in rows] for row in rows}


def test_the_lists_below_hold_every_pair_that_does_not_simply_work_once(real):
    found, text = real
    ids = {record: id_ for id_, record in shown_names(text).items()}
    listed = []
    for line in re.findall(r"<li>(.*?, then .*?)</li>", text):
        firsts, seconds = (re.split(", | or ", re.sub("<.*?>", "", part)) for part in line.split(", then "))
        listed += [(ids[first], ids[second]) for first in firsts for second in seconds]
    assert len(listed) == len(set(listed)) > 400
    assert set(listed) == {pair for pair in found.ordered() if merged(found, *pair).state != "works"}


def shown_names(text: str) -> dict[str, str]:
    return dict(re.findall(r'<tr id="([^"]+)"><th scope="row".*?<a href[^>]*>(.*?)</a>', text))


def test_the_page_stays_lean(real):
    print(f"\n{len(real[0].techniques)} techniques, {len(real[0].ordered())} pairs, {len(real[1].encode())} bytes")
    assert len(real[1].encode()) < MOST_BYTES


def test_a_model_that_one_of_the_two_does_not_fit_has_no_say():
    said = {"{second} is not for this model": {"a": ["b"]}}
    models = {"m": {"unfit": said}, "n": {"refused": {"{first} goes against {second}": {"a": ["c"]}}}}
    techniques = {id_: {"name": id_.upper(), "seam": [n]} for n, id_ in enumerate("abc")}
    found = pairs.Pairs({"techniques": techniques, "models": models})
    assert merged(found, "a", "b") == Together("works")
    assert merged(found, "a", "c") == Together("model", "{first} goes against {second}", ("n",))
    assert merged(pairs.Pairs({"techniques": techniques, "models": {"m": models["m"]}}), "a", "b").state == "unfit"


def test_pairs_of_one_reason_stand_under_the_side_with_fewer_names():
    reason = Reason("refused", "{first} and {second}", (), [("a", "z"), ("b", "z"), ("c", "z")])
    assert (reason.leads, reason.lines) == (False, [("z", ["a", "b", "c"])])
    assert reason.words == "The first and the second"


def test_a_technique_leads_to_its_row(page, address):
    page.goto(address + "papers/narrow/")
    page.get_by_role("link", name="Every pair").click()
    assert page.url == address + "compose/#narrow"
    assert page.locator("tr:target th").inner_text() == "Narrow"


def test_one_tab_stop_and_arrow_keys_reach_every_cell_and_say_its_verdict(page, address, root):
    found = pairs.load(root / pairs.FILE)
    page.goto(address + "compose/")
    assert page.locator("#matrix td[tabindex='0']").count() == 1
    page.locator("#matrix td[tabindex='0']").focus()
    page.keyboard.press("Control+Home")
    ids = page.eval_on_selector_all("#matrix tr[id]", "all => all.map(tr => tr.id)")
    for row in ids:
        page.keyboard.press("Home")
        for column in ids:
            told = page.locator("#pair").inner_text()
            pair = (row, column) if (row, column) in found.ordered() else (column, row)
            if row != column:
                together, names = merged(found, *pair), [shown(page, id_) for id_ in pair]
                assert told.startswith(f"{names[0]}, then {names[1]}: {STATES[together.state]}")
                assert (found.words(together.sentence, *pair) if together.sentence else "elvi run ") in told
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    assert page.locator("#matrix td[tabindex='0']").count() == 1


def shown(page, id_: str) -> str:
    return page.locator(f"[id='{id_}'] th").inner_text()


def test_what_needs_a_third_names_it_in_the_command(page, address):
    page.goto(address + "compose/")
    page.locator("#fastv td").nth(3).click()
    assert page.locator("#pair code").inner_text() == "elvi run deep:keep_ratio=0.25 fastv waiting"
    assert page.get_by_role("status").get_by_role("link").get_attribute("href").startswith("#reason-")


def test_without_scripts_every_reason_can_be_read(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + "compose/")
    assert not page.locator("#pair").is_visible()
    assert page.get_by_role(
        "heading", name=re.compile("same number of tokens in the cache, which the first")
    ).is_visible()
    assert page.get_by_text("FastV, then Narrow").is_visible()
    context.close()


def test_headers_stay_in_sight_on_a_phone_while_the_table_scrolls_inside_of_its_region(browser, address):
    context = browser.new_context(viewport={"width": 320, "height": 500})
    page = context.new_page()
    page.goto(address + "compose/")
    page.locator(".mx-scroll").evaluate("region => { region.style.maxHeight = '240px'; region.style.width = '160px'; }")
    page.locator(".mx-scroll").evaluate("region => region.scrollTo(60, 60)")
    region, corner = page.locator(".mx-scroll").bounding_box(), page.locator("#waiting th").bounding_box()
    names = page.locator("#matrix thead").bounding_box()
    assert corner["x"] == pytest.approx(region["x"], abs=1)
    assert names["y"] == pytest.approx(region["y"], abs=2)
    assert not scrolls_sideways(page)
    context.close()
