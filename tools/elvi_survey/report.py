"""The problems of one run, as people, scripts, workflows and code-scanning tools want to read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

from elvi_survey.problems import Problem

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text(problems: list[Problem]) -> str:
    """`file:line:col code message — fix`, one line each."""
    return "".join(f"{problem}\n" for problem in problems)


def as_json(problems: list[Problem]) -> str:
    """A list of objects with file, line, column, code, message and fix."""
    return _dump([problem.to_dict() for problem in problems])


def github(problems: list[Problem]) -> str:
    """Workflow commands, which show each problem at its line of a pull request."""
    return "".join(f"{_command(problem)}\n" for problem in problems)


def sarif(problems: list[Problem]) -> str:
    """SARIF 2.1.0: one run, one rule per code, one result per problem."""
    rules = [{"id": code} for code in sorted({problem.code for problem in problems})]
    driver = {"name": "elvi-survey", "rules": rules}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": list(map(_result, problems))}
    return _dump({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


REPORTS: dict[str, Callable[[list[Problem]], str]] = {
    "text": text, "json": as_json, "github": github, "sarif": sarif,
}  # fmt: skip


def _command(problem: Problem) -> str:
    """The message cannot end the command early or start another."""
    file = _escape(problem.file).replace(":", "%3A").replace(",", "%2C")
    place = f"file={file},line={problem.line},col={problem.column},title={problem.code}"
    return f"::error {place}::{_escape(f'{problem.message} — {problem.fix}')}"


def _escape(words: str) -> str:
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _result(problem: Problem) -> dict[str, object]:
    region = {"startLine": problem.line, "startColumn": problem.column}
    place = {"artifactLocation": {"uri": quote(problem.file)}, "region": region}
    message = {"text": f"{problem.message} — {problem.fix}"}
    return {
        "ruleId": problem.code,
        "level": "error",
        "message": message,
        "locations": [{"physicalLocation": place}],
    }


def _dump(data: object) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
