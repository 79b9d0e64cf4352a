"""Frontiers, models, years and venues have pages that hold all of their papers; feeds are valid and repeatable."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import html5lib
import pytest

from elvi_survey.site import browse
from elvi_survey.site.build import collect
from elvi_survey.site.feeds import ATOM, feed, feed_files, updated
from elvi_survey.site.pages import record_url

HTML, NS = "{http://www.w3.org/1999/xhtml}", {"a": ATOM}
SITE = "https://example.org/"


def links(page) -> set[str]:
    tree = html5lib.parse(page.read_text(encoding="utf-8"))
    main = next(e for e in tree.iter() if e.get("id") == "main")
    return {e.get("href") for e in main.iter(f"{HTML}a")}


def papers(page) -> set[str]:
    return {found[1] for link in links(page) if (found := re.search(r"\.\./papers/([\w-]+)/$", link))}


@pytest.fixture(scope="module")
def catalog(root):
    return collect(root).catalog


def test_a_year_and_a_venue_hold_all_of_their_papers_and_no_other(catalog, site):
    for kind, of in (("years", lambda r: str(r.year)), ("venues", lambda r: r.venue)):
        held = {of(record) for record in catalog.records.values()}
        assert {page.name for page in (site / kind).iterdir() if page.is_dir()} == held
        for name in held:
            here = {id_ for id_, record in catalog.records.items() if of(record) == name}
            assert papers(site / kind / name / "index.html") == here


def test_a_frontier_links_what_runs_and_its_comparisons(catalog, site):
    page = site / "frontiers/streaming/index.html"
    assert papers(page) == set(catalog.frontiers["streaming"].records)
    text = page.read_text(encoding="utf-8")
    runs, others = text.split('id="papers"')
    assert "papers/narrow/" in runs
    assert "papers/hostile/" in others
    assert "../../decode/kv-cache-compression/compared/" in links(page)
    assert "What to keep is not known" in text


def test_a_model_page_gives_bytes_of_its_cache_and_a_link_to_the_calculator(site):
    page = site / "models/qwen2-5-vl-72b/index.html"
    assert "327,680 bytes" in page.read_text(encoding="utf-8")
    assert "../../roofline/?model=qwen2-5-vl-72b" in links(page)


def test_a_record_links_its_venue_year_and_frontier(site):
    assert {"../../venues/eccv/", "../../years/2024/", "../../frontiers/streaming/"} <= links(
        site / "papers/fastv/index.html"
    )


def test_the_sitemap_names_every_page_once(site):
    tree = ET.parse(site / "sitemap.xml")
    named = [e.text.removeprefix("https://elvi-survey.github.io/elvi/") for e in tree.iter() if e.tag.endswith("loc")]
    there = {page.parent.relative_to(site).as_posix() for page in site.rglob("index.html")}
    assert len(named) == len(set(named))
    assert {name.strip("/") or "." for name in named} == there
    assert {"frontiers/streaming", "models/qwen2-5-vl-7b", "years/2024", "venues/eccv", "roofline"} <= there


def test_every_feed_is_atom_with_the_papers_of_its_stage(catalog, site):
    for name in ["all", *catalog.stages]:
        root = ET.parse(site / f"feeds/{name}.xml").getroot()
        assert root.tag == f"{{{ATOM}}}feed"
        for element in [root, *root.findall("a:entry", NS)]:
            for needed in ("id", "title", "updated"):
                assert len(element.findall(f"a:{needed}", NS)) == 1
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", element.findtext("a:updated", None, NS))
        ids = [entry.findtext("a:id", None, NS) for entry in root.findall("a:entry", NS)]
        held = catalog.records.values() if name == "all" else catalog.in_path(name)
        assert sorted(ids) == sorted(f"tag:elvi-survey.github.io,2026:paper/{record.id}" for record in held)
        days = [entry.findtext("a:updated", None, NS) for entry in root.findall("a:entry", NS)]
        assert days == sorted(days, reverse=True)
        assert root.findtext("a:updated", None, NS) == max(days, default="2026-01-01T00:00:00Z")


def test_a_feed_survives_hostile_words(catalog):
    record = catalog.records["hostile"].model_copy(update={"title": "<b>&\x00]]> \x1b", "summary": '"</summary>'})
    root = ET.fromstring(feed("all", "t", [record], SITE).encode())
    assert root.find("a:entry", NS).findtext("a:summary", None, NS) == '"</summary>'
    assert root.find("a:entry/a:link", NS).get("href") == SITE + record_url(record)


def test_ids_do_not_depend_on_where_the_site_stands(catalog):
    here, there = (dict(feed_files(catalog, site))["feeds/all.xml"] for site in (SITE, "https://other.example/"))
    assert re.findall("<id>.*?</id>", here) == re.findall("<id>.*?</id>", there)
    assert here != there


def test_a_record_without_a_day_takes_that_of_its_paper(catalog):
    record = catalog.records["fastv"]
    assert updated(record.model_copy(update={"added": "2026-11-22"})) == "2026-11-22T00:00:00Z"
    assert updated(record.model_copy(update={"added": None, "first_posted": "2024-03"})) == "2024-03-01T00:00:00Z"
    later = {"added": None, "first_posted": None, "year": 2023}
    assert updated(record.model_copy(update=later)) == "2023-01-01T00:00:00Z"


def test_every_page_announces_the_feed_and_stages_their_own(catalog, site):
    for page, expected in (
        ("index.html", ["feeds/all.xml"]), ("papers/fastv/index.html", ["../../feeds/all.xml"]),
        ("prefill/index.html", ["../feeds/all.xml", "../feeds/prefill.xml"]),
        ("prefill/token-compression/index.html", ["../../feeds/all.xml", "../../feeds/prefill.xml"]),
    ):  # fmt: skip
        tree = html5lib.parse((site / page).read_text(encoding="utf-8"))
        atom = [e.get("href") for e in tree.iter(f"{HTML}link") if e.get("type") == "application/atom+xml"]
        assert [link.removeprefix("./") for link in atom] == expected


def test_indexes_count_and_venues_begin_with_the_fullest(root):
    pages = {page.url: page for page in browse.pages(collect(root))}
    counts = [entry.count for entry in pages["venues/"].context["entries"]]
    assert all(a >= b for a, b in pairwise(counts))
    assert sum(counts) == sum(entry.count for entry in pages["years/"].context["entries"])
