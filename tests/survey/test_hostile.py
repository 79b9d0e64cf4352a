"""Whatever stands in a file, the answer is a list of problems, soon."""

from __future__ import annotations

import random
import string
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elvi_survey.add import record_text
from elvi_survey.check import check
from elvi_survey.export import FORMATS
from elvi_survey.fmt import format_text
from elvi_survey.load import read_catalog
from elvi_survey.marked import MarkedError, read_marked
from elvi_survey.readbib import BibError, parse_bibtex

PIECES = [
    *(
        "&a ",
        "*a",
        "!!python/object:os.system ",
        "<<: ",
        "? ",
        "---\n",
        "...",
        "%YAML 1.2\n",
        "\t",
        "\0",
        "\x85",
        "\u2028",
    ),
    *(
        "{",
        "[",
        "]",
        "}",
        "|\n",
        ">-\n",
        "'",
        '"',
        ": ",
        "- ",
        "#",
        "9" * 30,
        "1e999",
        ".inf",
        "2001-13-45",
        "0o9",
        "-1",
    ),
    *("\ud7ff", "\U0001f600", "null", "title: x\n", "id: y\n", "true", "\\", "\r", "\n"),
]


def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(text) + 1), rng.choice([0, 0, 1, 5, 40])
        piece = rng.choice([*PIECES, rng.choice(string.printable), text[place : place + 60] * 2])
        text = text[:place] + piece + text[place + length :]
    return text


def checked_and_formatted(tree: Path, path: Path, text: str) -> bool:
    """Put `text` there, ask everything that reads it, put the old text back; whether a problem was found."""
    original = path.read_bytes()
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    problems = check(tree)
    assert all(problem.line >= 1 and problem.column >= 1 and "\n" not in str(problem) for problem in problems)
    catalog, reading = read_catalog(tree)
    if not reading.problems:
        assert all(FORMATS[name](catalog) for name in ("bibtex", "ris", "csl", "csv", "json", "cff"))
    with suppress(MarkedError):
        once = format_text(text)
        assert format_text(once) == once
    path.write_bytes(original)
    return bool(problems)


def mutated_yaml(tree: Path, count: int, seed: int) -> int:
    """How many of `count` mutated records, vocabularies and queries were found to have a problem."""
    rng = random.Random(seed)
    (tree / "taxonomy/queries.yaml").write_text("prefill/token-compression:\n- '\"token pruning\"'\n")
    names = ["catalog/fast-thing.yaml", "taxonomy/stages.yaml", "taxonomy/venues.yaml", "taxonomy/queries.yaml"]
    refused = 0
    for _ in range(count):
        path = tree / rng.choice(names)
        refused += checked_and_formatted(tree, path, mutate(path.read_text(encoding="utf-8"), rng))
    return refused


BIBTEX = r"""
@string{eccv = "European Conference on Computer Vision"}
@inproceedings{key2024,
  title = {{NewThing}: An {\'E}tude on 50\% of $\mathcal{O}(n)$ Tokens},
  author = {Lovelace, Ada and Alan {van der} Turing and {Team A and B} and others},
  booktitle = eccv # " 2024", year = 2024, month = oct, url = {https://example.org/a%20b\_c},
  doi = {10.1007/123}, eprint = {2403.06764}, archiveprefix = {arXiv},
}
"""
BIB_PIECES = [
    "@",
    "@article{",
    "@comment{",
    "@string{",
    "{",
    "}",
    '"',
    "#",
    "=",
    ",",
    " and ",
    "\\",
    "\\'",
    "$",
    "%",
    "\\url{",
    "\\begin{a}",
]


def mutated_bibtex(tree: Path, count: int, seed: int) -> int:
    """How many of `count` mutated entries were refused; what was not is a record that can be written and read."""
    rng, refused = random.Random(seed), 0
    catalog = read_catalog(tree)[0]
    for _ in range(count):
        text = mutate(BIBTEX, rng)
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(BIB_PIECES) + text[place + rng.choice([0, 1, 9]) :]
        try:
            record = record_text(parse_bibtex(text, "x.bib"), catalog, {})
        except BibError as error:
            refused += str(error).count("\n") == 0
        else:
            assert read_marked(record).data["title"]
            assert format_text(record) == record
            assert {problem.code for problem in check(tree, {"catalog/new.yaml": record})} <= LEFT
    return refused


LEFT = {"to-do", "duplicate-arxiv", "duplicate-doi", "duplicate-openreview", "duplicate-title"}


def test_400_mutated_records_and_vocabularies_end_in_problems_not_in_tracebacks(tree: Path) -> None:
    assert 200 < mutated_yaml(tree, 400, seed=7) < 400


def test_100_mutated_bibtex_files_end_in_a_record_or_in_a_sentence(tree: Path) -> None:
    assert 5 < mutated_bibtex(tree, 100, seed=7) < 95


@pytest.mark.slow
def test_10000_mutated_files_never_give_a_traceback(tree: Path) -> None:
    assert 4000 < mutated_yaml(tree, 7000, seed=1) < 7000
    assert 150 < mutated_bibtex(tree, 3000, seed=2) < 2850


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab:- []{}#&*!|>'\"%@`,?\n\t0.1"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(MarkedError):
        assert () in read_marked(text).marks


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "a: " * 50_000,
        "- " * 100_000,
        "{a: " * 60_000,
        "'" + "x" * 200_000,
        "a: " + "9" * 200_000,
        "? " * 90_000,
    ],
    ids=["flow", "inline", "dashes", "braces", "quote", "digits", "question"],
)
def test_deep_or_long_text_is_answered_within_two_seconds(text: str) -> None:
    start = time.monotonic()
    with suppress(MarkedError):
        read_marked(text)
    assert time.monotonic() - start < 2


def test_a_problem_is_one_line_without_terminal_codes(tree: Path) -> None:
    path = tree / "catalog/other.yaml"
    path.write_text(path.read_text() + '"a\\e[31m\\nb": 1\n')
    [problem] = check(tree)
    assert str(problem) == "catalog/other.yaml:19:1 unknown-field `a?[31m?b` is not a field — delete it"


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(MarkedError, match="anchors and aliases") as caught:
        read_marked(bomb)
    assert (caught.value.line, caught.value.column) == (1, 4)


@pytest.mark.parametrize(
    ("raw", "value"),
    [("no", "no"), ("12:30", "12:30"), ("012", 12), ("1_000", "1_000"), ("0x1F", "0x1F"), ("2024-01-02", "2024-01-02"),
     ("~", None), ("True", True), ("yes", "yes"), ("-3", -3), ("2.50", 2.5), (".inf", ".inf"), ("1e3", 1000.0)],
)  # fmt: skip
def test_scalars_follow_the_core_schema(raw: str, value: object) -> None:
    read = read_marked(f"a: {raw}").data["a"]
    assert (read, type(read)) == (value, type(value))
