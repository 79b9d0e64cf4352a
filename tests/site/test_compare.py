"""Papers side by side: what stands in which row, what the address keeps, and how it works without server or scripts."""

import json
import re
import zipfile
from itertools import combinations
from pathlib import Path

import pytest
from browsing import scrolls_sideways

from elvi import pairs
from elvi_survey.pack import pack
from elvi_survey.site.build import collect
from elvi_survey.site.compare import script_files
from elvi_survey.site.pages import compare_page
from elvi_survey.site.render import environment

REPOSITORY = Path(__file__).parents[2]
MOST_BYTES = 25_000


@pytest.fixture(scope="module")
def columns() -> dict[str, dict]:
    """The columns of the shipped catalog by id."""
    sources = collect(REPOSITORY)
    made = script_files(sources, environment(sources, "https://example.org/r"), compare_page(sources))
    return {Path(path).stem: json.loads(text.partition("]=")[2]) for path, text in made}


def cells(page, head: str) -> list[str]:
    """What stands in the row of the comparison with this head, without the names that lead on a phone."""
    row = page.locator(".cmp tbody tr").filter(has=page.locator(f"th:text-is('{head}')")).first
    parts = row.locator("td").evaluate_all(
        "all => all.map(td => [...td.childNodes].slice(1).map(node => node.textContent).join(' '))"
    )
    return [" ".join(part.split()) for part in parts]


def heads(page) -> list[str]:
    page.wait_for_function("!document.querySelector('.pill') === !document.querySelector('.cmp')")
    return page.locator(".cmp thead th").all_inner_texts()


def test_the_address_chooses_the_columns_and_their_order(page, address):
    page.goto(address + "compare/?ids=narrow,fastv")
    page.locator(".cmp").wait_for()
    assert heads(page) == ["Narrow", "FastV"]
    assert page.title().startswith("Narrow, FastV: Compare")
    assert cells(page, "Training") == ["training-free", "training-free"]
    assert ["QUESTION_KNOWN" in cell for cell in cells(page, "Needs")] == [True, True]
    assert "keep chooses which rows stay" in cells(page, "Acts at")[0]


def test_what_works_together_is_what_the_file_of_pairs_says(page, address, root):
    found = pairs.load(root / pairs.FILE)
    page.goto(address + "compare/?ids=fastv,narrow,deep,waiting,hostile")
    page.locator(".cmp").wait_for()
    told = cells(page, "With the others")
    sentence = found.verdict("tiny-qwen", "fastv", "narrow").sentence
    assert f"with Narrow: refused on one model (tiny-qwen){sentence}" in told[0]
    assert f"with FastV: refused on one model (tiny-qwen){sentence}" in told[1]
    assert "with Deep: works" in told[0]
    assert "with Waiting: works with a third" in told[0]
    assert "before Deep: refused" in told[1]
    assert "after Deep: works" in told[1]
    assert "does not run here" in told[0]
    assert told[4] == "–"


def test_no_row_of_measurements_mixes_machines_models_or_prompts(columns):
    groups: dict[str, set[str]] = {}
    for column in columns.values():
        for key, _, cell in column["sections"][1][1]:
            for result in set(re.findall(r'data-result-id="([^"#]+)#', cell)):
                data = json.loads((REPOSITORY / f"results/{result}.json").read_text(encoding="utf-8"))
                same = json.dumps([data[part] for part in ("hardware", "model", "protocol")], sort_keys=True)
                groups.setdefault(key, set()).add(same)
    assert len(groups) > 1
    assert {len(found) for found in groups.values()} == {1}
    assert all(one != other for one, other in combinations(groups.values(), 2))


def test_columns_stay_small(columns):
    weights = {id_: len(json.dumps(column, ensure_ascii=False).encode()) for id_, column in columns.items()}
    heaviest = max(weights, key=weights.__getitem__)
    print(f"\n{len(weights)} columns, {sum(weights.values())} bytes, the heaviest is {heaviest}, {weights[heaviest]}")
    assert not {id_: weight for id_, weight in weights.items() if weight > MOST_BYTES}


def test_measured_and_reported_numbers_stand_apart(page, address):
    page.goto(address + "compare/?ids=fastv,narrow")
    page.locator(".cmp").wait_for()
    groups = page.locator(".cmp .grp").all_inner_texts()
    assert groups[0] == "How it works"
    assert ["measured" in group for group in groups] == [False, True, False]
    assert ["reported" in group for group in groups] == [False, False, True]


def test_names_are_added_by_keyboard_and_back_takes_them_away(page, address):
    page.goto(address + "compare/")
    page.get_by_label("Add", exact=True).first.focus()
    for typed, shown in (("fastv", ["FastV"]), ("Nar", ["FastV", "Narrow"])):
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
        page.wait_for_function("n => document.querySelectorAll('.cmp thead th').length === n", arg=len(shown))
        assert heads(page) == shown
    assert page.url == address + "compare/?ids=fastv,narrow"
    page.go_back()
    page.wait_for_function("document.querySelectorAll('.cmp thead th').length === 1")
    assert heads(page) == ["FastV"]
    page.get_by_role("button", name="Add Deep").click()
    page.get_by_role("button", name="Remove FastV").click()
    page.wait_for_function("document.querySelector('.cmp thead').textContent === 'Deep'")
    assert page.url == address + "compare/?ids=deep"
    assert page.evaluate("document.activeElement.textContent") == "Deep"


def test_what_cannot_be_shown_is_named(page, address):
    page.goto(address + "compare/?ids=fastv,nowhere,fastv,narrow,deep,waiting,beside,hostile,efficient-lvlm-survey")
    page.locator(".cmp").wait_for()
    assert len(heads(page)) == 6
    notice = page.locator("#compare-notice").inner_text()
    assert "nowhere, which is not in the catalog" in notice
    assert "Only the first 6 stand here; left out: " in notice
    page.get_by_label("Add", exact=True).first.fill("no such paper")
    page.keyboard.press("Enter")
    assert "No paper has the name no such paper" in page.locator("#compare-notice").inner_text()


def test_hostile_words_of_a_record_stay_words(page, address):
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.goto(address + "compare/?ids=hostile,fastv")
    page.locator(".cmp").wait_for()
    assert heads(page)[0] == '<script>alert("name")</script>'
    assert page.locator(".cmp script, .cmp img, .cmp h1").count() == 0
    assert dialogs == []


def test_papers_that_the_filter_leaves_are_compared(page, address):
    page.goto(address + "papers/?q=narrow")
    assert not page.locator("#papers-compare").is_visible()
    page.goto(address + "papers/?here=runs")
    shown = page.eval_on_selector_all(".papers tbody tr", "all => all.filter(tr => !tr.hidden).map(tr => tr.id)")
    assert 2 <= len(shown) <= 6
    page.get_by_role("link", name="Compare these").click()
    assert page.url == f"{address}compare/?ids={','.join(shown)}"


def test_the_packed_page_works_as_files(browser, site, tmp_path):
    pack(site, tmp_path / "site.zip", offline=True)
    with zipfile.ZipFile(tmp_path / "site.zip") as archive:
        archive.extractall(tmp_path)
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "site/compare/index.html").as_uri() + "?ids=fastv")
    page.get_by_role("button", name="Add Narrow").click()
    page.wait_for_function("document.querySelectorAll('.cmp thead th').length === 2")
    links = page.eval_on_selector_all(".cmp a", "all => all.map(a => a.href).filter(to => to.startsWith('file:'))")
    assert len(links) > 5
    assert all(Path(re.sub("^file://|#.*", "", link)).is_file() for link in links)
    context.close()


def test_without_scripts_a_table_has_all_that_runs_here(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + "compare/")
    assert page.locator(".cmp-all tbody tr:visible").count() == 4  # a related system has no contract
    assert not page.locator("#compare").is_visible()
    context.close()


def test_on_a_phone_every_value_is_led_by_its_name(browser, address):
    context = browser.new_context(viewport={"width": 320, "height": 700})
    page = context.new_page()
    page.goto(address + "compare/?ids=fastv,narrow")
    page.locator(".cmp").wait_for()
    assert not scrolls_sideways(page)
    idea = page.locator(".cmp tbody tr").nth(1)
    assert idea.locator("td .lb").all_inner_texts() == ["FastV", "Narrow"]
    assert page.locator(".cmp td").first.is_hidden()
    context.close()
