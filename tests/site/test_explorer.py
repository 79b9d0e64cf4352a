"""The filter of the papers table: what it shows, counts, keeps in the address, gives out, and how long it takes."""

import csv
import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import bibtexparser
import pytest
import rispy
from browsing import scrolls_sideways, violations
from hypothesis import given, settings
from hypothesis import strategies as st

from elvi_survey.export import FORMATS, PARTS
from elvi_survey.load import load_catalog
from elvi_survey.schema import Catalog
from elvi_survey.site.explorer import facets, script_files, values
from elvi_survey.site.pages import Sources, all_pages
from elvi_survey.site.render import environment, markdown

REPOSITORY = Path(__file__).parents[2]
LOOK = REPOSITORY / "docs/look"
ASKED = ["", "?stage=decode&stage=prefill", "?venue=acl&training=free", "?q=merging&year=2025&has=code", "?here=runs"]

FOLLOW = """pairs => {
    history.replaceState(null, "", "?" + new URLSearchParams(pairs));
    dispatchEvent(new PopStateEvent("popstate"));
    document.querySelector("#papers-q").dispatchEvent(new Event("input"));  // writes the address
}"""
LOAD = """name => new Promise(done => {
    const script = document.createElement("script");
    script.src = `export/${name}.js`;
    script.onload = () => {
        const { head, between, tail, texts } = window.elviExport;
        done(head + Object.values(texts).join(between) + tail);
    };
    document.head.append(script);
})"""
CHANGE = """change => {
    const [key, value] = change.split(":"), q = document.querySelector("#papers-q");
    if (key === "q") { q.value = value; q.dispatchEvent(new Event("input")); }
    else document.querySelectorAll(`#explorer [name=${key}]`)[+value].click();
}"""


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog(REPOSITORY)


def grown(catalog: Catalog, count: int) -> Catalog:
    """A catalog of `count` papers: those of `catalog`, again and again under new ids."""
    records = list(catalog.records.values())
    ids = [f"{records[i % len(records)].id}-{i}" for i in range(count)]
    return replace(
        catalog, records={id_: records[i % len(records)].model_copy(update={"id": id_}) for i, id_ in enumerate(ids)}
    )


def alone(catalog: Catalog, folder: Path) -> str:
    """The papers page of a catalog with its scripts and styles in a folder; returns its file:// address."""
    sources = Sources(catalog, {}, {}, {})
    page = next(page for page in all_pages(sources) if page.url == "papers/")
    body = markdown(environment(sources, "https://example.org/r"), page).split("---\n", 2)[2]
    (folder / "papers").mkdir()
    (folder / "look").symlink_to(LOOK)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Papers</title>'
    text = f'{head}<link rel="stylesheet" href="../look/look.css"><main class="frame">{body}</main></html>'
    (folder / "papers/index.html").write_text(text, encoding="utf-8")
    for name, script in script_files(catalog):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(script, encoding="utf-8")
    return (folder / "papers/index.html").as_uri()


@pytest.fixture(scope="session")
def real(catalog, tmp_path_factory) -> str:
    """The papers page of the real catalog, opened as a file."""
    return alone(catalog, tmp_path_factory.mktemp("papers"))


def shown(page) -> list[str]:
    return page.eval_on_selector_all(".papers tbody tr", "all => all.filter(tr => !tr.hidden).map(tr => tr.id)")


def expected(catalog: Catalog, asked: str) -> set[str]:
    """The slow way to the same papers: one value of every facet that is asked for, and all words somewhere."""
    wanted: dict[str, set[str]] = {}
    for key, value in re.findall(r"[?&](\w+)=([^&]*)", asked):
        wanted.setdefault(key, set()).add(value)
    words = wanted.pop("q", {""}).pop()
    return {
        record.id
        for record in catalog.records.values()
        if all(set(values(record)[key]) & any_of for key, any_of in wanted.items())
        and words in f"{record.name} {record.title} {record.summary} {record.authors}".lower()
    }


# ---- what is shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ASKED)
def test_the_address_gives_the_papers_that_have_one_value_of_every_facet(page, real, catalog, asked):
    page.goto(real + asked)
    assert set(shown(page)) == expected(catalog, asked)
    assert page.locator("#papers-count").inner_text() == str(len(shown(page)))


def test_the_count_beside_a_box_is_what_the_table_shows_when_it_alone_is_chosen_in_its_facet(page, real, catalog):
    base = "?training=free&input=video"
    page.goto(real + base)
    box = "l => [l.control.name, l.control.value, +l.querySelector('b').textContent]"
    counted = page.eval_on_selector_all("#explorer .fc", f"all => all.map({box})")
    assert len(counted) == sum(len(facet.choices) for facet in facets(catalog)) > 60
    for key, value, count in counted:
        others = re.sub(rf"(?<=[?&]){key}=\w+", "", base)
        assert count == len(expected(catalog, f"{others}&{key}={value}")), (key, value)


def test_every_value_of_every_record_has_a_box(catalog):
    boxes = {(facet.key, choice.value): choice.count for facet in facets(catalog) for choice in facet.choices}
    found: dict[tuple[str, str], int] = {}
    for record in catalog.records.values():
        for key, each in values(record).items():
            for value in each:
                found[key, value] = found.get((key, value), 0) + 1
    assert boxes == found


def test_words_are_found_in_authors_and_summaries_without_accents_or_case(page, address):
    page.goto(address + "papers/")
    for words in ("SONS Lukasz", "deeper layers", "attention-guided 2024"):
        page.get_by_role("searchbox").fill(words)
        assert len(shown(page)) == 1, words
    page.get_by_role("searchbox").fill("no such words")
    assert shown(page) == []
    assert page.locator("#papers-none").is_visible()
    assert page.get_by_role("button", name="BibTeX").is_disabled()


def test_papers_stand_in_the_order_that_is_asked_for(page, real, catalog):
    page.goto(real)
    as_written = shown(page)
    page.get_by_label("Sort").select_option("newest")
    posted = [catalog.records[id_].first_posted or str(catalog.records[id_].year) for id_ in shown(page)]
    assert posted == sorted(posted, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text() == "Published"
    page.get_by_label("Sort").select_option("name")
    names = [catalog.records[id_].display_name.lower() for id_ in shown(page)]
    assert [name[0] for name in names] == sorted(name[0] for name in names)
    assert page.evaluate("location.search").endswith("?sort=name")
    page.get_by_label("Sort").select_option("")
    assert shown(page) == as_written


# ---- the address ------------------------------------------------------------------------------------


def test_a_box_is_a_step_that_back_and_forward_undo_and_repeat(page, real, catalog):
    page.goto(real)
    page.get_by_role("checkbox", name="Decoding").first.check()
    decoding = shown(page)
    page.get_by_role("checkbox", name="Runs").check()
    runs = shown(page)
    assert len(runs) < len(decoding) < len(catalog.records)
    page.go_back()
    assert shown(page) == decoding
    page.go_back()
    assert len(shown(page)) == len(catalog.records)
    page.go_forward()
    page.go_forward()
    assert shown(page) == runs
    assert page.evaluate("location.search").endswith("?stage=decode&here=runs")
    page.reload()
    assert shown(page) == runs


def test_what_a_link_asks_for_in_vain_is_named_and_left_out(page, real):
    page.goto(real + "?stage=decode&stage=lunch&colour=red&theme=dark&sort=price")
    notice = page.locator("#papers-notice").inner_text()
    assert "stage=lunch, colour=red, sort=price" in notice
    assert "theme" not in notice
    with_it = shown(page)
    page.goto(real + "?stage=decode")
    assert shown(page) == with_it
    assert not page.locator("#papers-notice").is_visible()


def test_any_order_of_the_same_choices_is_the_same_address(browser, real, catalog):
    context = browser.new_context()
    page = context.new_page()
    page.goto(real)
    boxes = [(facet.key, choice.value) for facet in facets(catalog) for choice in facet.choices]

    @settings(max_examples=15, deadline=None)
    @given(st.permutations(boxes).map(lambda all_: all_[:5]), st.sampled_from(["", "kv & c=1", "ö%"]))
    def same(chosen: list[tuple[str, str]], words: str) -> None:
        def follow(pairs: list[tuple[str, str]]) -> str:
            page.evaluate(FOLLOW, [*pairs, ["q", words]])
            return page.evaluate("location.search")

        assert follow(chosen) == follow(chosen[::-1])
        state = "[...document.querySelectorAll('#explorer input:checked')].map(box => [box.name, box.value])"
        assert {tuple(pair) for pair in page.evaluate(state)} == set(chosen)
        assert page.get_by_role("searchbox").input_value() == words

    same()
    context.close()


def test_pills_repeat_what_is_chosen_and_take_it_back(page, real, catalog):
    page.goto(real + "?stage=decode&venue=acl&q=kv")
    page.get_by_role("button", name="Remove filter Decoding").click()
    assert page.evaluate("location.search").endswith("?venue=acl&q=kv")
    assert page.evaluate("document.activeElement.className") == "pill"
    page.get_by_role("button", name="Clear all").click()
    assert len(shown(page)) == len(catalog.records)
    assert page.evaluate("location.search") == ""


# ---- what is given out ------------------------------------------------------------------------------


def saved(page, title: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=title, exact=True).click()
    return Path(waiting.value.path()).read_bytes().decode("utf-8")


def test_every_format_holds_exactly_the_papers_that_are_shown_in_their_order(page, real):
    page.goto(real + "?stage=serve&sort=newest")
    ids = shown(page)
    assert 1 < len(ids) < 30
    assert [entry.key for entry in bibtexparser.parse_string(saved(page, "BibTeX")).entries] == ids
    assert [entry["id"] for entry in rispy.loads(saved(page, "RIS"))] == ids
    assert [row["id"] for row in csv.DictReader(io.StringIO(saved(page, "CSV"), newline=""))] == ids
    assert [item["id"] for item in json.loads(saved(page, "CSL-JSON"))] == ids


def test_the_whole_table_in_the_order_of_ids_is_the_exported_catalog(page, real, catalog):
    page.goto(real)
    for name in PARTS:
        loaded = page.evaluate(LOAD, name)
        assert loaded == FORMATS[name](catalog)


# ---- keys, no scripts, accessibility -------------------------------------------------------------------


def test_the_keyboard_alone_filters_and_opens_a_paper(page, address):
    page.goto(address + "papers/")
    page.get_by_role("searchbox").focus()
    page.keyboard.type("fastv")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "sort"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip the filters"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.checked")
    assert page.evaluate("location.search").startswith("?stage=")
    page.keyboard.press("Space")
    assert page.evaluate("location.search") == "?q=fastv"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "papers-found"
    page.get_by_role("searchbox").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "FastV"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "papers-q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/fastv/")
    page.go_back()
    assert shown(page) == ["fastv"]


def test_without_scripts_every_paper_of_the_catalog_is_there_and_no_dead_control(browser, real, catalog):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(real)
    assert page.locator(".papers tbody tr:visible").count() == len(catalog.records)
    for control in ("#explorer", "#papers-export", "#papers-clear"):
        assert not page.locator(control).is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_filtered_table_has_no_violation_at_any_width(browser, address, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    for width in (320, 375, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(address + "papers/?stage=decode&venue=acl&stage=lunch&sort=newest")
        page.locator(".facets").evaluate(
            "facets => { for (const d of [facets, ...facets.querySelectorAll('details')]) d.open = true; }"
        )
        assert violations(page) == [], width
        assert not scrolls_sideways(page), width
    context.close()


# ---- weight and time ------------------------------------------------------------------------------------


def test_scripts_and_styles_of_the_first_load_stay_small_and_exports_wait(page, real):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(real, wait_until="networkidle")
    code = {url for url in asked if re.search(r"[.](js|css)$", url)}
    assert {url.rpartition("/")[2] for url in code} == {"look.css", "explorer.css", "explorer.js", "records.js"}
    weight = sum(len(gzip.compress(Path(url.removeprefix("file://")).read_bytes(), mtime=0)) for url in code)
    weight += len(gzip.compress((LOOK / "look.js").read_bytes() + (LOOK / "bridge.css").read_bytes(), mtime=0))
    print(f"\nscripts and styles at first load: {weight / 1000:.1f} KB gzip")
    assert weight < 150_000
    assert all(url.startswith("file:") for url in asked)


@pytest.mark.parametrize(("count", "aim"), [(350, 16), (2000, 50)])
def test_filtering_and_painting_takes_less_than_a_frame_or_three(browser, catalog, tmp_path, count, aim):
    """Time of the page's main thread per change of words or boxes: script, style, layout and paint, 95 of 100.

    It is processor time, yet a busy machine with two threads a core doubles it: the bound is three times the aim.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(alone(grown(catalog, count), tmp_path))
    engine = context.new_cdp_session(page)
    engine.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        metrics = {metric["name"]: metric["value"] for metric in engine.send("Performance.getMetrics")["metrics"]}
        return 1000 * metrics["TaskDuration"]

    def measured(change: str) -> float:
        before = busy()
        page.evaluate(CHANGE, change)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return busy() - before

    changes = [f"q:{'attention'[:n]}" for n in (*range(1, 10), *range(8, -1, -1))]
    changes += [f"{facet.key}:{i}" for facet in facets(catalog) for i in range(min(4, len(facet.choices)))] * 2
    times = quantiles([measured(change) for change in changes], n=20)
    context.close()
    print(f"\n{count} papers, {len(changes)} changes: median {times[9]:.1f} ms, p95 {times[-1]:.1f} ms")
    assert times[-1] < 3 * aim


@pytest.mark.parametrize("width", [320, 375])
def test_the_whole_table_has_no_violation_on_a_phone(page, real, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(real)
    assert violations(page) == []
