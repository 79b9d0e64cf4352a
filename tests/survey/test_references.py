"""What points elsewhere must point at something; both ends are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from elvi_survey.check import check
from elvi_survey.load import load_catalog

FAST = "catalog/fast-thing.yaml"
TIE = "relations:\n- {kind: builds-on, to: other, source: section 2}\n"
BAD = [("build-on", "other"), ("builds-on", "fast-thing"), ("builds-on", "other"), ("builds-on", "gone")]
# (file, what stands there, what it is changed to, the code and the words that must come out, a word of the fix)
DANGLING = {
    "need": (FAST, "claims:", "needs: [qestion]\nclaims:", "unknown-tag needs.0: 'qestion'", "question"),
    "relation": (
        FAST,
        "claims:",
        TIE.replace("other", "othr") + "claims:",
        "unknown-record fast-thing builds-on 'othr', but catalog/othr.yaml does not exist",
        "other",
    ),
    "relation to nothing like it": (
        FAST,
        "claims:",
        TIE.replace("other", "zzz") + "claims:",
        "unknown-record fast-thing builds-on 'zzz'",
        "add that record",
    ),
    "kind of relation": (FAST, "claims:", TIE.replace("builds", "build") + "claims:", "unknown-tag", "builds-on"),
    "relation to itself": (
        FAST,
        "claims:",
        TIE.replace("other", "fast-thing") + "claims:",
        "wrong-value relations.0: the record is related to itself",
        "delete",
    ),
    "relation said twice": (
        FAST,
        "claims:",
        TIE + TIE.split("\n", 1)[1] + "claims:",
        "wrong-value relations.1: builds-on is said twice of other",
        "delete",
    ),
    "day": (FAST, "in_survey:", 'added: "2026-11-32"\nin_survey:', "bad-date added: '2026-11-32'", "YYYY-MM-DD"),
    "metric": ("taxonomy/stages.yaml", "metric: ttft", "metric: tftt", "unknown-tag prefill.metric", "ttft"),
    "formula": ("taxonomy/stages.yaml", "formula: time", "formula: tim", "unknown-tag prefill.formula", "time"),
    "axis": ("taxonomy/stages.yaml", "axis: fewer", "axis: less", "unknown-tag prefill.categories", "fewer"),
    "source of nothing": (
        "taxonomy/stages.yaml",
        "{metric: Table",
        "{metrik: Table",
        "unknown-tag prefill.sources.metrik",
        "metric",
    ),
    "category without a test": (
        "taxonomy/stages.yaml",
        "      test: Do bytes go?\n",
        "",
        "missing-field `decode.categories.kv-cache.test`",
        "test",
    ),
    "paradigm": ("taxonomy/serving.yaml", "staged", "stagd", "unknown-tag sys.paradigm", "staged"),
    "served record": ("taxonomy/serving.yaml", "other", "othr", "unknown-tag sys.record", "other"),
    "record of a frontier": ("taxonomy/frontiers.yaml", "[other]", "[othr]", "unknown-tag next.records.0", "other"),
}


def test_what_is_wrong_with_a_relation_is_reported_in_its_line(tree: Path) -> None:
    path = tree / FAST
    before = len(path.read_text().splitlines())
    more = "".join(f"- {{kind: {kind}, to: {to}, source: x}}\n" for kind, to in BAD)
    path.write_text(f"{path.read_text()}{TIE}{more}")
    found = {problem.line: problem.code for problem in check(tree)}
    assert found == {
        before + 3: "unknown-tag",
        before + 4: "wrong-value",
        before + 5: "wrong-value",
        before + 6: "unknown-record",
    }


def test_no_paper_builds_on_one_that_was_posted_later(tree: Path) -> None:
    path, other = tree / FAST, tree / "catalog/other.yaml"
    path.write_text(path.read_text() + TIE)
    text = other.read_text()
    for month, count in (("2024-02", 0), ("2024-03", 0), ("2024-04", 1)):
        other.write_text(f'{text}first_posted: "{month}"\n')
        problems = check(tree)
        assert [problem.message for problem in problems] == count * [
            "relations.0: other was first posted in 2024-04, after 2024-03"
        ]


@pytest.mark.parametrize("name", DANGLING)
def test_a_word_that_names_nothing_is_reported_once(tree: Path, name: str) -> None:
    file, before, after, expected, fix = DANGLING[name]
    path = tree / file
    path.write_text(path.read_text().replace(before, after, 1))
    problems = [problem for problem in check(tree) if problem.file == file]
    assert len(problems) == 1
    assert f"{problems[0].code} {problems[0].message}".startswith(expected)
    assert fix in problems[0].fix


def test_needs_conflicts_relations_and_the_day_are_read(tree: Path) -> None:
    path = tree / FAST
    more = f'added: "2026-11-27"\nneeds: [question]\nconflicts: [It reads what others drop.]\n{TIE}'
    path.write_text(path.read_text() + more)
    record = load_catalog(tree).records["fast-thing"]
    assert (record.added, record.needs, record.conflicts) == (
        "2026-11-27",
        ["question"],
        ["It reads what others drop."],
    )
    assert [(tie.kind, tie.to, tie.source) for tie in record.relations] == [("builds-on", "other", "section 2")]


def test_a_relation_to_a_record_with_a_problem_of_its_own_is_no_second_problem(tree: Path) -> None:
    path = tree / FAST
    path.write_text(path.read_text() + TIE)
    other = tree / "catalog/other.yaml"
    other.write_text(other.read_text().replace("year: 2025", "year: x"))
    assert [(problem.file, problem.code) for problem in check(tree)] == [("catalog/other.yaml", "wrong-type")]
