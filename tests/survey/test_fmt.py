"""Canonical form: stable, lossless, comments stay with what they speak of."""

from __future__ import annotations

import string
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elvi_survey.fmt import format_files, format_text
from elvi_survey.load import catalog_files
from elvi_survey.marked import read_marked

UNTIDY = """\
# about the file

# why 2024
year: 2024 # printed date
note: "x: y"
title:   'abc'
arxiv: 2406.10
month:
links:
  - url: http://a.b
    # seen in March
    kind: official
"""
TIDY = """\
# about the file

title: 'abc'
# why 2024
year: 2024 # printed date
month: null
arxiv: "2406.10"
links:
- kind: official
  url: http://a.b
    # seen in March
note: "x: y"
"""


def test_shipped_records_are_canonical_already(repository: Path) -> None:
    for path in catalog_files(repository):
        assert format_text(path.read_text(encoding="utf-8")) == path.read_text(encoding="utf-8")


def test_keys_are_sorted_ids_quoted_and_comments_kept() -> None:
    assert format_text(UNTIDY) == TIDY


def test_formatting_twice_changes_nothing() -> None:
    assert format_text(TIDY) == TIDY


FIELDS = st.sampled_from(["title", "note", "year", "arxiv", "summary", "month", "extra", "name"])
TEXTS = st.text(string.ascii_letters + string.digits + " .:#'\"-[]{}é—%&*!|>", max_size=20)
VALUES = st.one_of(TEXTS, st.integers(-9, 9999), st.booleans(), st.none(), st.lists(TEXTS, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(FIELDS, VALUES, min_size=1), st.booleans())
def test_formatting_keeps_every_value_and_is_idempotent(data: dict, flow: bool) -> None:
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=30)
    before = read_marked(text).data
    once = format_text(text)
    if isinstance(before.get("arxiv"), int | float):
        before["arxiv"] = read_marked(text).marks[("arxiv",)].raw
    assert read_marked(once).data == before
    assert format_text(once) == once


def test_only_untidy_files_are_rewritten(tree: Path, put) -> None:
    text = (tree / "catalog/other.yaml").read_text()
    head, rest = text.split("\n", 1)
    put({"catalog/other.yaml": f"{rest}{head}\n"})
    assert format_files(tree, write=False) == [tree / "catalog/other.yaml"]
    assert (tree / "catalog/other.yaml").read_text() != text
    format_files(tree, write=True)
    assert (tree / "catalog/other.yaml").read_text() == text
    assert format_files(tree, write=True) == []
