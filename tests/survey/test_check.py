"""Every seeded defect is reported once, at its place, and nothing else is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from elvi_survey.check import check
from elvi_survey.codefacts import read_techniques
from elvi_survey.load import load_catalog
from elvi_survey.problems import CatalogError

FAST = "catalog/fast-thing.yaml"
# (what the record says, what it is changed to, line:column code that must come out, a word of the fix)
DEFECTS = {
    "unclosed quote": ("source: Table 1", 'source: "Table 1', "36:11 yaml-syntax", "quotes"),
    "tabs": ("- Ada", "\t- Ada", "4:1 yaml-syntax", "indentation"),
    "missing colon": ("year: 2024", "year 2024", "6:1 yaml-syntax", "colons"),
    "duplicate key": ("year: 2024", "year: 2024\nyear: 2025", "7:1 duplicate-key", "delete"),
    "anchor": ("year: 2024", "year: &y 2024", "6:7 yaml-alias", "write"),
    "alias": ("month: null", "month: *y", "7:8 yaml-alias", "write"),
    "tag": ("year: 2024", "year: !!int '2024'", "6:7 yaml-tag", "delete"),
    "document marker": ("name:", "---\nname:", "1:1 yaml-document", "delete"),
    "control character": ("Half", "Ha\x07lf", "2:1 yaml-character", "remove"),
    "text turned round": ("Half", "Ha\u202elf", "2:22 yaml-character", "remove"),
    "text turned round by an escape": ("name: FastThing", 'name: "Fast\\u202eThing"', "1:7 yaml-character", "remove"),
    "unquoted id": ('"2403.06764"', "2403.06764", "11:8 unquoted-id", '"2403.06764" in quotes'),
    "unquoted id that would lose a digit": ('"2403.06764"', "2403.10", "11:8 unquoted-id", '"2403.10" in quotes'),
    "malformed arXiv id": ('"2403.06764"', '"2413.06764"', "11:8 bad-id", "YYMM"),
    "arXiv version": ('"2403.06764"', '"2403.06764v2"', "11:8 bad-id", "without version"),
    "DOI with resolver": ('"10.1007', '"https://doi.org/10.1007', "12:6 bad-id", "without https"),
    "date": ('"2024-03"', '"2024-3"', "8:15 bad-date", "YYYY-MM"),
    "thirteenth month": ('"2024-03"', '"2024-13"', "8:15 bad-date", "YYYY-MM"),
    "date against id": ('"2024-03"', '"2024-04"', "8:15 bad-date", "2024-03"),
    "year as text": ("year: 2024", "year: '2024'", "6:7 wrong-type", "correct"),
    "year out of range": ("year: 2024", "year: 20244", "6:7 wrong-value", "correct"),
    "URL without scheme": ("url: https://arxiv", "url: arxiv", "14:6 bad-url", "https://"),
    "URL that runs code": ("https://github.com/a/b", "javascript:alert(1)", "17:8 bad-url", "https://"),
    "URL with a space": ("https://github.com/a/b", "https://github.com/a b", "17:8 bad-url", "https://"),
    "unknown field": ("in_survey:", "in_survay:", "26:1 unknown-field", "in_survey"),
    "missing field": ("summary: Drops half of the tokens.\n", "", "1:1 missing-field", "summary"),
    "unknown nested field": ("  url: https://github", "  uri: https://github", "17:3 unknown-field", "url"),
    "no authors": ("authors:\n- Ada Lovelace\n- Alan Turing", "authors: []", "3:10 wrong-value", "correct"),
    "number as author": ("- Alan Turing", "- 1912", "5:3 wrong-type", "quotes"),
    "no as a word": ("training_free: true", "training_free: no", "23:16 wrong-type", "correct"),
    "unknown kind": ("official", "oficial", "16:9 unknown-tag", "official"),
    "unknown modality": ("- image", "- imgae", "25:3 unknown-tag", "image"),
    "unknown stage": ("stage: prefill", "stage: prefil", "19:10 unknown-tag", "did you mean prefill?"),
    "unknown category": ("category: token-comp", "category: tokn-comp", "20:13 unknown-tag", "token-compression"),
    "unknown subcategory": ("attention-guided", "attention-guide", "21:16 unknown-tag", "attention-guided"),
    "unknown venue": ("venue: eccv", "venue: ecvc", "9:8 unknown-tag", "eccv"),
    "venue of another type": ("venue: eccv", "venue: arxiv", "10:13 wrong-value", "preprint"),
    "claim on unknown model": ("model: llava", "model: lava", "34:10 unknown-tag", "llava"),
    "claim that is no number": ("number: 57", "number: .nan", "31:11 wrong-type", "correct"),
    "planned without reason": ("status: runnable", "status: planned", "28:1 missing-reason", "reason"),
    "id in the file": ("name: FastThing", "id: fast-thing", "1:1 unknown-field", "delete"),
    "provenance of nothing": ("claims:", "provenance:\n  venu: x\nclaims:", "31:3 unknown-tag", "venue"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_reported_once_at_its_place(tree: Path, name: str) -> None:
    before, after, expected, fix = DEFECTS[name]
    path = tree / FAST
    text = path.read_text()
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1))
    [problem] = check(tree)
    assert str(problem).startswith(f"{FAST}:{expected} ")
    assert fix in problem.fix


def test_a_clean_tree_has_no_problem(tree: Path) -> None:
    assert check(tree) == []


def test_three_defects_of_one_run_are_all_reported_in_order(tree: Path) -> None:
    (tree / "catalog/other.yaml").write_text("title: [\n")
    path = tree / FAST
    path.write_text(path.read_text().replace("year: 2024", "year: x").replace("venue: eccv", "venues: eccv"))
    places = [(problem.file, problem.line, problem.code) for problem in check(tree)]
    fast = [(FAST, 6, "wrong-type"), (FAST, 9, "unknown-field")]
    assert places == [*fast, ("catalog/other.yaml", 2, "yaml-syntax")]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("arxiv", '"2403.06764"', "duplicate-arxiv"),
        ("doi", '"10.1007/978-3-031"', "duplicate-doi"),
        ("title", "fastthing half THE tokens", "duplicate-title"),
    ],
)
def test_two_records_of_one_paper_are_reported_at_the_second(tree: Path, field: str, value: str, code: str) -> None:
    path = tree / "catalog/other.yaml"
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{field}:")]
    path.write_text(f"{field}: {value}\n{''.join(lines)}")
    [problem] = check(tree)
    assert str(problem).startswith(f"catalog/other.yaml:1:{len(field) + 3} {code} {field} is the same as in {FAST}")


@pytest.mark.parametrize(
    ("gone", "code"),
    [("impls/elvi/prefill/fast_thing.py", "module-missing"), ("tests/prefill/test_fast_thing.py", "test-missing")],
)
def test_a_runnable_record_without_its_file_is_reported_at_its_status(tree: Path, gone: str, code: str) -> None:
    (tree / gone).unlink()
    [problem] = check(tree)
    assert str(problem).startswith(f"{FAST}:29:11 {code} {gone} does not exist")


def test_a_planned_record_with_a_module_is_stale(tree: Path) -> None:
    path = tree / FAST
    path.write_text(path.read_text().replace("status: runnable", "status: planned\n  reason: Later."))
    [problem] = check(tree)
    assert (problem.line, problem.column, problem.code) == (29, 11, "status-stale")


def test_a_module_without_a_record_is_reported(tree: Path, put) -> None:
    put({"impls/elvi/decode/lone_thing.py": (tree / "impls/elvi/prefill/fast_thing.py").read_text()})
    [problem] = check(tree)
    assert str(problem).startswith("impls/elvi/decode/lone_thing.py:1:1 record-missing catalog/lone-thing.yaml")


SYSTEM = '''"""Lone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lone:
    """A system."""

    size: int = 1

    def bench(self, tick):
        """Measure."""
'''


def test_a_related_technique_is_a_package(tree: Path, put) -> None:
    put({"impls/elvi/related/lone_thing/__init__.py": SYSTEM})
    [problem] = check(tree)
    assert (problem.file, problem.code) == ("impls/elvi/related/lone_thing/__init__.py", "record-missing")


def test_the_lines_of_a_related_technique_are_those_of_its_whole_package(tree: Path, put) -> None:
    put(
        {
            "impls/elvi/related/lone_thing/__init__.py": SYSTEM,
            "impls/elvi/related/lone_thing/model.py": "a = 1\nb = 2\n",
        }
    )
    assert read_techniques(tree)["lone-thing"].lines == len(SYSTEM.splitlines()) + 2


def test_a_related_package_without_a_system_breaks_the_contract(tree: Path, put) -> None:
    put({"impls/elvi/related/lone_thing/__init__.py": '"""Lone."""\n'})
    assert {problem.code for problem in check(tree)} == {"record-missing", "code-contract"}


@pytest.mark.parametrize(("folder", "codes"), [("related", []), ("tiny", ["results-misfiled"])])
def test_tables_stand_in_the_folder_of_related_systems(tree: Path, put, folder: str, codes: list[str]) -> None:
    tables = {key: value for key, value in GOOD_RESULT.items() if key != "model"} | {"tables": []}
    put({f"results/cpu-a/{folder}/fast-thing.json": json.dumps(tables)})
    assert [problem.code for problem in check(tree)] == codes


def test_a_module_in_the_wrong_stage_is_reported(tree: Path) -> None:
    (tree / "impls/elvi/decode").mkdir()
    (tree / "impls/elvi/prefill/fast_thing.py").rename(tree / "impls/elvi/decode/fast_thing.py")
    assert {problem.code for problem in check(tree)} == {"module-missing", "stage-mismatch"}


@pytest.mark.parametrize(
    ("before", "after", "line", "code"),
    [
        ("def reduce", "def reduce(", 23, "code-contract"),
        ('"""Drops half of the tokens.\n\nWhere we differ: nowhere.\n"""', "", 1, "code-contract"),
        ("(frozen=True)", "", 1, "code-contract"),
        ("{Fact.GRID}", "{Fact.GIRD}", 13, "unknown-fact"),
    ],
)
def test_a_module_that_breaks_the_contract_is_reported(tree: Path, before, after, line, code) -> None:
    path = tree / "impls/elvi/prefill/fast_thing.py"
    path.write_text(path.read_text().replace(before, after))
    [problem] = check(tree)
    assert (problem.file, problem.line, problem.code) == ("impls/elvi/prefill/fast_thing.py", line, code)


GOOD_RESULT = {"schema": 1, "technique": "fast-thing", "hardware": {"id": "cpu-a"}, "model": {"name": "tiny"}}


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("fast-thing", "{", "results-syntax"),
        ("fast-thing", "[" * 100_000, "results-syntax"),
        ("fast-thing", "[]", "results-schema"),
        ("fast-thing", json.dumps(GOOD_RESULT | {"schema": 2}), "results-schema"),
        ("fast-thing", json.dumps(GOOD_RESULT | {"hardware": {"id": "gpu"}}), "results-misfiled"),
        ("fast-thing", json.dumps(GOOD_RESULT | {"model": {"name": "big"}}), "results-misfiled"),
        ("fast-thin", json.dumps(GOOD_RESULT | {"technique": "fast-thin"}), "results-unknown"),
        ("other", json.dumps(GOOD_RESULT | {"technique": "other"}), "results-unknown"),
    ],
)
def test_a_results_file_that_cannot_be_used_is_reported(tree: Path, put, name, text, code) -> None:
    put({f"results/cpu-a/tiny/{name}.json": text})
    [problem] = check(tree)
    assert (problem.file, problem.code) == (f"results/cpu-a/tiny/{name}.json", code)


def test_verdicts_on_pairs_are_no_results_of_a_technique_and_stand_in_one_place(tree: Path, put) -> None:
    put({"results/compositions.json": "{}", "results/cpu-a/compositions.json": "{}"})
    assert [problem.file for problem in check(tree)] == ["results/cpu-a/compositions.json"]


def test_a_good_results_file_is_accepted(tree: Path, put) -> None:
    put({"results/cpu-a/tiny/fast-thing.json": json.dumps(GOOD_RESULT)})
    assert check(tree) == []


@pytest.mark.parametrize("name", ["Fast-Thing.yaml", "fast_thing.yaml", "more.yml", "below/more.yaml", "README.md"])
def test_a_file_that_is_no_record_is_reported(tree: Path, put, name: str) -> None:
    put({f"catalog/{name}": "title: x\n"})
    [problem] = check(tree)
    assert (problem.file, problem.code) == (f"catalog/{name}", "bad-id")


def test_a_symbolic_link_is_not_followed(tree: Path) -> None:
    (tree / "catalog/link.yaml").symlink_to("/etc/hostname")
    [problem] = check(tree)
    assert (problem.file, problem.code) == ("catalog/link.yaml", "file-link")


def test_a_large_file_is_not_read(tree: Path, put) -> None:
    put({"catalog/large.yaml": "#" * 300_000})
    assert [problem.code for problem in check(tree)] == ["file-size"]


def test_bytes_that_are_not_utf8_are_reported_at_their_line(tree: Path) -> None:
    (tree / "catalog/latin.yaml").write_bytes(b"title: x\nname: caf\xe9\n")
    [problem] = check(tree)
    assert (problem.line, problem.code) == (2, "file-encoding")


def test_a_broken_vocabulary_does_not_cascade_into_records(tree: Path) -> None:
    path = tree / "taxonomy/stages.yaml"
    path.write_text(
        path.read_text().replace("    token-compression:\n      title", "    token-compression:\n      titel")
    )
    places = [(problem.file, problem.line, problem.code) for problem in check(tree)]
    assert places == [("taxonomy/stages.yaml", 12, "unknown-field")]


def test_load_catalog_raises_with_every_problem(tree: Path) -> None:
    path = tree / FAST
    path.write_text(path.read_text().replace("venue: eccv", "venue: ecvc"))
    with pytest.raises(CatalogError, match=r"1 problem: catalog/fast-thing.yaml:9:8 unknown-tag") as caught:
        load_catalog(tree)
    assert len(caught.value.problems) == 1


def test_350_records_are_checked_in_less_than_a_second_of_cpu_time(tree: Path, put) -> None:
    record = (tree / FAST).read_text().replace("status: runnable", "status: planned\n  reason: Later.")
    record = "".join(
        line for line in record.splitlines(keepends=True) if not line.startswith(("arxiv", "doi", "first"))
    )
    put({f"catalog/r{i}.yaml": record.replace("FastThing: Half", f"Number {i}") for i in range(350)})
    start = time.process_time()
    assert check(tree) == []
    assert time.process_time() - start < 1
