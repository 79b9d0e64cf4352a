"""More seeded defects, in every kind of file that a pull request may touch: each is reported once, at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from elvi_survey.check import check

FAST, OTHER = "catalog/fast-thing.yaml", "catalog/other.yaml"
STAGES, VENUES, MODELS = "taxonomy/stages.yaml", "taxonomy/venues.yaml", "taxonomy/models.yaml"
HARDWARE, BENCHMARKS, QUERIES = "taxonomy/hardware.yaml", "taxonomy/benchmarks.yaml", "taxonomy/queries.yaml"
MODULE, FACTS = "impls/elvi/prefill/fast_thing.py", "impls/elvi/core/facts.py"
# (file, what it says, what it is changed to, line:column code that must come out, a word of the fix)
DEFECTS = {
    "title as a number": (FAST, "title: 'FastThing: Half the Tokens'", "title: 2024", "2:8 wrong-type", "quotes"),
    "empty title": (FAST, "title: 'FastThing: Half the Tokens'", "title: ''", "2:8 wrong-value", "correct"),
    "title with white space at its end": (FAST, "Tokens'", "Tokens '", "2:8 wrong-value", "white space"),
    "authors in one string": (FAST, "- Ada Lovelace\n- Alan Turing", "  Ada Lovelace", "4:3 wrong-type", "correct"),
    "nested author": (FAST, "- Alan Turing", "- name: Alan Turing", "5:3 wrong-type", "correct"),
    "thirteenth month of a year": (FAST, "month: null", "month: 13", "7:8 wrong-value", "correct"),
    "month as a word": (FAST, "month: null", "month: March", "7:8 wrong-type", "correct"),
    "date with a day": (FAST, '"2024-03"', '"2024-03-12"', "8:15 bad-date", "YYYY-MM"),
    "venue in capitals": (FAST, "venue: eccv", "venue: ECCV", "9:8 bad-id", "lower-case"),
    "unknown type of venue": (FAST, "type: conf", "type: comf", "10:13 unknown-tag", "conference"),
    "arXiv id with its prefix": (FAST, '"2403.06764"', '"arXiv:2403.06764"', "11:8 bad-id", "YYMM"),
    "DOI with a space": (FAST, '"10.1007/978-3-031"', '"10.1007/978 3"', "12:6 bad-id", "10.1234"),
    "malformed OpenReview id": (FAST, "openreview: null", 'openreview: "a b"', "13:13 bad-id", "?id="),
    "address without a path to trust": (FAST, "url: https://arxiv", "url: ftp://arxiv", "14:6 bad-url", "https://"),
    "address with a user": (FAST, "https://github.com/a/b", "https://me@github.com/a", "17:8 bad-url", "https://"),
    "address with a quote": (FAST, "github.com/a/b", 'github.com/a"b', "17:8 bad-url", "https://"),
    "link without address": (FAST, "  url: https://github.com/a/b\n", "", "16:3 missing-field", "url"),
    "placement without source": (FAST, "  source: figure3\n", "", "19:3 missing-field", "source"),
    "placement with an unknown source": (FAST, "figure3", "figure33", "22:11 unknown-tag", "figure3"),
    "placements left empty": (FAST, "placements:\n- stage: prefill\n  category: token-compression\n  "
                              "subcategory: attention-guided\n  source: figure3", "placements: []",
                              "18:13 wrong-value", "correct"),
    "path instead of a stage": (FAST, "stage: prefill", "stage: ../prefill", "19:10 bad-id", "lower-case"),
    "path in the implementation": (FAST, "  status: runnable", "  status: runnable\n  path: ../../etc/passwd",
                                   "30:3 unknown-field", "delete"),
    "unknown status": (FAST, "status: runnable", "status: runable", "29:11 unknown-tag", "runnable"),
    "truth as a number": (FAST, "in_survey: true", "in_survey: 1", "26:12 wrong-type", "correct"),
    "claim without number": (FAST, "- number: 57\n  unit", "- unit", "31:3 missing-field", "number"),
    "claim in words": (FAST, "number: 57", "number: about 57", "31:11 wrong-type", "correct"),
    "claim without unit": (FAST, "unit: '%'", "unit: null", "32:9 wrong-type", "correct"),
    "unit in a flow that is not closed": (FAST, "unit: '%'", "unit: [", "32:9 yaml-syntax", "quotes"),
    "summary left to do": (OTHER, "summary: Something else.", "summary: TODO", "15:10 to-do", "paper"),
    "stage left to do": (OTHER, "stage: decode", "stage: TODO", "9:10 to-do", "stages.yaml"),
    "venue left to do": (OTHER, "venue: arxiv", "venue: TODO", "5:8 to-do", "venues.yaml"),
    "reason without words": (OTHER, "reason: Not written yet.", "reason: ''", "18:11 wrong-value", "correct"),
    "second document": (OTHER, "modality:", "---\nmodality:", "12:1 yaml-document", "delete"),
    "merge key": (OTHER, "year: 2025", "year: 2025\n<<: {month: 1}", "5:1 unknown-field", "delete"),
    "stage without title": (STAGES, "  title: Prefilling\n", "", "1:1 missing-field", "title"),
    "stage without question": (STAGES, "  test: Does it change the prompt?\n", "", "1:1 missing-field", "test"),
    "stage key in capitals": (STAGES, "decode:\n", "Decode:\n", "21:1 bad-id", "lower-case"),
    "category key with a blank": (STAGES, "    token-compression:", "    token compression:", "11:5 bad-id", "hyphens"),
    "category that repeats its id": (STAGES, "    token-compression:\n", "    token-compression:\n      id: x\n",
                                     "12:7 unknown-field", "delete"),
    "venue of an unknown type": (VENUES, "type: preprint", "type: preprints", "2:29 unknown-tag", "preprint"),
    "venue set twice": (VENUES, "arxiv:", "eccv: {title: E, type: web}\narxiv:", "2:1 duplicate-key", "delete"),
    "model without layers": (MODELS, "  layers: 32\n", "", "1:1 missing-field", "layers"),
    "model with half a head": (MODELS, "heads: 32", "heads: 0.5", "6:10 wrong-type", "correct"),
    "hardware without bandwidth": (HARDWARE, "bandwidth_gb_s: 2039, ", "", "1:1 missing-field", "bandwidth_gb_s"),
    "hardware of negative speed": (HARDWARE, "peak_tflops: 312", "peak_tflops: -1", "1:34 wrong-value", "correct"),
    "benchmark on smells": (BENCHMARKS, "[image]", "[smell]", "1:30 unknown-tag", "use one of"),
    "query for no category": (QUERIES, "prefill/token-compression", "prefill/token-compresion", "1:1 unknown-tag",
                              "prefill/token-compression"),
    "query without quotes": (QUERIES, "'\"token pruning\"'", "token pruning", "2:1 bad-query", "list"),
    "query in arXiv's own language": (QUERIES, "'\"token pruning\"'", "'all:x OR all:y'", "2:1 bad-query", "list"),
    "module that is no Python": (MODULE, "def reduce", "def reduce(", "23:1 code-contract", "syntax"),
    "facts that are no Python": (FACTS, "class Fact", "class class", "4:1 code-facts", "syntax"),
}  # fmt: skip


@pytest.fixture
def seeded(tree: Path, put) -> Path:
    put({QUERIES: "prefill/token-compression:\n- '\"token pruning\"'\n"})
    return tree


def test_the_tree_is_clean_before_a_defect_is_seeded(seeded: Path) -> None:
    assert check(seeded) == []


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_reported_once_at_its_place(seeded: Path, name: str) -> None:
    file, before, after, expected, fix = DEFECTS[name]
    path = seeded / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    [problem] = check(seeded)
    assert str(problem).startswith(f"{file}:{expected} ")
    assert fix in problem.fix


def test_every_defect_of_one_file_is_reported_in_one_run(seeded: Path) -> None:
    """As many defects of the schema as lines allow, seeded together: each at its line, none for another."""
    together = [
        *("month as a word", "venue in capitals", "arXiv id with its prefix", "DOI with a space", "unknown status"),
        *("address with a user", "truth as a number", "claim without unit", "path instead of a stage"),
    ]
    path = seeded / FAST
    text = path.read_text()
    for name in together:
        _, before, after, _, _ = DEFECTS[name]
        text = text.replace(before, after, 1)
    path.write_text(text)
    found = [f"{problem.line}:{problem.column} {problem.code}" for problem in check(seeded)]
    assert sorted(found) == sorted(str(DEFECTS[name][3]) for name in together)


def test_a_link_to_a_folder_is_refused_in_one_sentence(seeded: Path, tmp_path_factory) -> None:
    (seeded / "taxonomy").rename(elsewhere := tmp_path_factory.mktemp("elsewhere") / "taxonomy")
    (seeded / "taxonomy").symlink_to(elsewhere)
    assert [str(problem) for problem in check(seeded)] == [
        "taxonomy:1:1 file-link the folder is a symbolic link — put a folder there"
    ]


def test_a_module_behind_a_link_is_not_read(seeded: Path, tmp_path_factory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.py"
    secret.write_text("password = 'hunter2'\n")
    (seeded / MODULE).unlink()
    (seeded / MODULE).symlink_to(secret)
    [problem] = check(seeded)
    assert str(problem).startswith(f"{MODULE}:1:1 code-contract the file is reached through a symbolic link")


@pytest.mark.parametrize(
    "source",
    ["x = " + "(" * 5000, "x = " + "-" * 100_000 + "1", "\0", "'''" + "x" * 400_000 + "'''", "\ufeff\x00"],
    ids=["parentheses", "minus", "nul", "large", "mark"],
)
def test_a_hostile_module_is_one_problem(seeded: Path, source: str) -> None:
    (seeded / MODULE).write_text(source)
    [problem] = check(seeded)
    assert (problem.file, problem.code) == (MODULE, "code-contract")


def test_a_module_that_is_not_utf8_is_reported_at_its_line(seeded: Path) -> None:
    (seeded / MODULE).write_bytes(b"x = 1\ny = '\xe9'\n")
    assert [(problem.file, problem.line) for problem in check(seeded)] == [(MODULE, 2)]


def test_a_record_of_50_mb_is_refused_without_reading_it(seeded: Path) -> None:
    path = seeded / "catalog/large.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    [problem] = check(seeded)
    assert str(problem) == ("catalog/large.yaml:1:1 file-size the file has 50000000 bytes — stay below 262144 bytes")


def test_a_bomb_of_aliases_is_refused_in_one_sentence(seeded: Path) -> None:
    layers = "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")
    )
    (seeded / "catalog/bomb.yaml").write_text(f"a: &a [lol, lol]\n{layers}")
    assert [str(problem) for problem in check(seeded)] == [
        "catalog/bomb.yaml:1:4 yaml-alias anchors and aliases are not read — write the value out"
    ]


def test_a_result_of_50_mb_is_refused(seeded: Path, put) -> None:
    put({"results/cpu-a/tiny/fast-thing.json": " " * 10})
    with (seeded / "results/cpu-a/tiny/fast-thing.json").open("wb") as file:
        file.truncate(50_000_000)
    assert [problem.code for problem in check(seeded)] == ["file-size"]
