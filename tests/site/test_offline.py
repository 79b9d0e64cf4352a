"""The packed site opens without a server, and the summary of a change names its pages."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from urllib.parse import unquote

import html5lib
import pytest

from elvi_survey.changed import changed_pages, report
from elvi_survey.pack import pack, search_script, with_file_names

HTML = "{http://www.w3.org/1999/xhtml}"


def unpacked(site: Path, folder: Path) -> Path:
    pack(site, folder / "site.zip", offline=True)
    with zipfile.ZipFile(folder / "site.zip") as archive:
        archive.extractall(folder)
    return folder / "site"


def test_every_link_of_the_packed_site_is_a_file_in_it(site: Path, tmp_path: Path) -> None:
    root, looked = unpacked(site, tmp_path), 0
    for page in root.rglob("*.html"):
        if page.name == "404.html":  # its addresses start at the server's root
            continue
        for element in html5lib.parse(page.read_text("utf-8")).iter():
            target = element.get("href") or element.get("src")
            if target and not re.match(r"[a-z]+:|#|//", target):
                file = page.parent / unquote(re.split("[?#]", target)[0])
                assert file.is_file(), (page, target)
                looked += 1
    assert looked > 300


def test_the_same_site_gives_the_same_zip(site: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert pack(site, tmp_path / name / "site.zip") > 20
    assert (tmp_path / "a/site.zip").read_bytes() == (tmp_path / "b/site.zip").read_bytes()


@pytest.mark.parametrize(
    ("link", "packed"),
    [
        ("../papers/", "../papers/index.html"),
        ("./", "./index.html"),
        (".", "./index.html"),
        ("../..", "../../index.html"),
        ("../papers/#x", "../papers/index.html#x"),
        ("papers/?stage=decode#x", "papers/index.html?stage=decode#x"),
        ("#x", "#x"),
        ("look/look.css", "look/look.css"),
        ("https://example.org/", "https://example.org/"),
        ("//example.org/", "//example.org/"),
    ],
)
def test_only_links_to_folders_of_the_site_change(link: str, packed: str) -> None:
    assert with_file_names(f'<a href="{link}">') == f'<a href="{packed}">'


def test_a_change_of_one_record_names_the_pages_that_show_it(root: Path, scratch_root: Path) -> None:
    assert changed_pages(root, scratch_root) == "No page changes.\n"
    path = scratch_root / "catalog/fastv.yaml"
    path.write_text(re.sub("(?m)^summary: .*$", "summary: Says ```this``` now.", path.read_text("utf-8")), "utf-8")
    said = changed_pages(root, scratch_root)
    assert "<code>papers/fastv/index.md</code>" in said
    assert "<code>papers/hostile/index.md</code>" not in said
    assert re.match(r"0 added, \d+ changed, 0 removed\n", said)


def test_a_base_with_problems_is_said_and_not_raised(root: Path, scratch_root: Path) -> None:
    (scratch_root / "catalog/fastv.yaml").write_text("title: [")
    assert changed_pages(scratch_root, root).startswith("The pages cannot be compared: the base has problems")


def test_a_page_cannot_end_the_block_that_shows_it_and_long_ones_are_cut() -> None:
    said = report({"a.md": "x\n"}, {"a.md": "x\n````\n</details>\n" + "line\n" * 90, "b.md": "new\n"})
    assert said.startswith("1 added, 1 changed, 0 removed\n")
    assert "\n```````diff\n" in said
    assert "... 54 more lines" in said


def test_search_and_filter_work_when_the_packed_site_is_opened_as_files(browser, site: Path, tmp_path: Path) -> None:
    root, errors = unpacked(site, tmp_path), []
    assert not (root / "pagefind").exists()
    context = browser.new_context()
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((root / "search/index.html").as_uri())
    page.get_by_role("searchbox").fill("fastv")
    page.locator("#search-results a").first.click()
    assert page.url == (root / "papers/fastv/index.html").as_uri()
    page.get_by_role("link", name="Papers", exact=True).click()
    page.get_by_role("searchbox").fill("fastv")
    assert page.locator(".papers tbody tr:visible").count() == 1
    with page.expect_download() as waiting:
        page.get_by_role("button", name="BibTeX").click()
    assert Path(waiting.value.path()).read_text("utf-8").startswith("@inproceedings{fastv,")
    assert errors == []
    context.close()


def test_the_words_of_a_page_are_what_it_shows_and_hostile_ones_stay_words(site: Path) -> None:
    name = "papers/hostile/index.html"
    script = search_script({name: (site / name).read_text("utf-8"), "bare.html": "<p>no index</p>"})
    [[address, title, words]] = json.loads(script.removeprefix("window.elviPages="))
    assert (address, title) == (name, '<script>alert("name")</script>')
    assert "<h1>owned</h1>" in words
    assert "On this page" not in words
