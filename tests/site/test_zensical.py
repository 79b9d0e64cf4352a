"""The successor of the builder makes the same pages, so what other tests find in them holds for both."""

import re
from pathlib import Path

import pytest

from elvi_survey.site.build import build
from elvi_survey.site.errors import SiteError

SPELLINGS = {"&#x27;": "&#39;", "&#x2f;": "/", "&quot;": "&#34;"}


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def page(html: str) -> str:
    """A page without blanks between its tags, its addresses in their shortest form, and one way of escaping."""
    for theirs, ours in SPELLINGS.items():
        html = html.replace(theirs, ours)
    html = re.sub(r'(href|src)="(?:\./)+', r'\1="', html)
    html = re.sub(r'href="(/elvi/)?\.?"', r'href="\1"', html)
    return re.sub(r"\s*(<[^>]*>)\s*", r"\1", html)


def test_zensical_makes_the_pages_that_mkdocs_makes(site, scratch_root):
    pytest.importorskip("zensical", reason="zensical is not installed: run `make zensical`")
    build(scratch_root, scratch_root / "build/site", "zensical")
    ours, theirs = pages(site), pages(scratch_root / "build/site")
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert (scratch_root / "build/site/pagefind/pagefind.js").is_file()


def test_a_builder_that_is_missing_is_named(scratch_root, monkeypatch):
    monkeypatch.setattr("elvi_survey.site.build.find_spec", lambda name: None)
    with pytest.raises(SiteError, match="zensical was asked to build the site but is not installed: run `make"):
        build(scratch_root, scratch_root / "build/site", "zensical")
