"""The same problems in every format."""

from __future__ import annotations

import json

import pytest

from elvi_survey.problems import Problem
from elvi_survey.report import REPORTS

PROBLEMS = [
    Problem("catalog/a b.yaml", 3, 7, "bad-url", "url: 'x' is not a web address", "write the full https:// address"),
    Problem("catalog/c.yaml", 1, 1, "missing-field", "`title` is missing", "add `title:`"),
    Problem("catalog/c.yaml", 2, 1, "bad-url", "50%\n::error::x", "no"),
]


def test_text_is_a_line_per_problem() -> None:
    lines = REPORTS["text"](PROBLEMS).splitlines()
    assert lines[1] == "catalog/c.yaml:1:1 missing-field `title` is missing — add `title:`"
    assert len(lines) == 3


def test_sarif_names_each_rule_once_and_each_problem_with_its_place() -> None:
    log = json.loads(REPORTS["sarif"](PROBLEMS))
    [run] = log["runs"]
    assert log["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["bad-url", "missing-field"]
    assert [result["ruleId"] for result in run["results"]] == ["bad-url", "missing-field", "bad-url"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "catalog/a%20b.yaml"}
    assert place["region"] == {"startLine": 3, "startColumn": 7}
    assert run["results"][1]["message"]["text"] == "`title` is missing — add `title:`"


def test_a_workflow_command_stays_one_command() -> None:
    commands = REPORTS["github"](PROBLEMS).splitlines()
    assert len(commands) == 3
    assert commands[2].endswith("::50%25%0A::error::x — no")


@pytest.mark.parametrize("name", REPORTS)
def test_no_problem_is_reported_as_nothing_or_as_an_empty_list(name: str) -> None:
    out = REPORTS[name]([])
    empty = {"text": "", "github": "", "json": "[]\n"}
    assert out == empty[name] if name in empty else json.loads(out)["runs"][0]["results"] == []
