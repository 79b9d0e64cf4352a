"""Canonical form: stable, lossless, comments stay with what they speak of."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elvi_survey.fmt import format_files, format_text
from elvi_survey.load import catalog_files
from elvi_survey.marked import MarkedError, read_marked

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


RECORDS = st.fixed_dictionaries(
    {"title": TEXTS, "year": st.integers(1990, 2100), "authors": st.lists(TEXTS, min_size=1, max_size=3)},
    optional={
        "name": TEXTS,
        "month": st.none(),
        "arxiv": st.just("2406.10"),
        "links": st.just([{"kind": "official", "url": "x"}]),
    },
)
COMMENTS = st.lists(st.tuples(st.integers(0, 12), st.text(string.ascii_letters + " :'{}-#é", max_size=15)), max_size=4)


def commented(text: str, comments: list[tuple[int, str]]) -> str:
    """`text` with whole-line comments before some of its top-level keys."""
    lines = text.splitlines(keepends=True)
    tops = [index for index, line in enumerate(lines) if line[0] not in " -"]
    for place, words in sorted(comments, reverse=True):
        lines.insert(tops[place % len(tops)], f"# {words}\n")
    return "".join(lines)


@settings(max_examples=80, deadline=None)
@given(RECORDS, COMMENTS, st.randoms(use_true_random=False))
def test_every_comment_is_kept_and_the_canonical_form_is_a_fixed_point(data: dict, comments: list, rng) -> None:
    """A canonical file comes out byte for byte, whatever its values and comments are and in whatever order it was."""
    keys = list(data)
    rng.shuffle(keys)
    text = yaml.safe_dump({key: data[key] for key in keys}, sort_keys=False, allow_unicode=True, width=4096)
    canonical = format_text(commented(text, comments))
    assert format_text(canonical) == canonical
    assert read_marked(canonical).data == read_marked(text).data
    written = sorted(line.split("#", 1)[1].strip() for line in canonical.splitlines() if line.startswith("#"))
    assert written == sorted(words.strip() for _, words in comments)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("title: x\r\nyear: 2024\r\n", "title: x\nyear: 2024\n"),
        ("year: 2024\n \n\ntitle: x   \n", "title: x\nyear: 2024\n"),
        ("title: x", "title: x\n"),
    ],
)
def test_line_ends_and_blank_lines_are_tidied(text: str, canonical: str) -> None:
    assert format_text(text) == canonical


@pytest.mark.parametrize("text", ["title: x\u2028year: 2024", "title: x\x85year: 2024", "title: x\ryear: 2024"])
def test_a_line_end_that_editors_do_not_show_is_refused(text: str) -> None:
    with pytest.raises(MarkedError, match="unusual character"):
        format_text(text)


def test_a_value_that_would_change_is_refused() -> None:
    with pytest.raises(MarkedError, match="would change a value"):
        format_text("title: x\nyear: 1e9992025\n")
