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

from elvi_survey.check import check
from elvi_survey.export import FORMATS
from elvi_survey.fmt import format_text
from elvi_survey.load import read_catalog
from elvi_survey.marked import MarkedError, read_marked

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


def test_ten_seconds_of_mutated_records_and_vocabularies_end_in_problems_not_in_tracebacks(tree: Path) -> None:
    rng, end, rounds, refused = random.Random(7), time.monotonic() + 10, 0, 0
    paths = [tree / "catalog/fast-thing.yaml", tree / "taxonomy/stages.yaml", tree / "taxonomy/venues.yaml"]
    originals = {path: path.read_text(encoding="utf-8") for path in paths}
    while time.monotonic() < end:
        path = rng.choice(paths)
        text = mutate(originals[path], rng)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        problems = check(tree)
        refused += bool(problems)
        assert all(problem.line >= 1 and problem.column >= 1 and "\n" not in str(problem) for problem in problems)
        catalog, reading = read_catalog(tree)
        if not reading.problems:
            assert all(export(catalog) for export in FORMATS.values())
        with suppress(MarkedError):
            format_text(text)
        path.write_text(originals[path], encoding="utf-8")
        rounds += 1
    assert rounds > 50
    assert refused > rounds / 2


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
