"""What people type into an issue form becomes a record or a patch, and never anything else."""

from __future__ import annotations

import json
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from elvi_survey.add import AddError
from elvi_survey.check import check
from elvi_survey.cli import main
from elvi_survey.from_issue import ADD, FIX, FIXABLE, IssueError, answers, body_of, diff, from_issue
from elvi_survey.load import read_catalog
from elvi_survey.marked import read_marked

PAPER = """\
### arXiv id, DOI or OpenReview address

https://arxiv.org/abs/2511.00002v1

### Title

NewThing: Fewer   Frames

### Authors

Ada Lovelace
- Alan Turing

### Year

2025

### Venue

_No response_

### Address of the paper

_No response_

### Code

https://github.com/a/newthing

### Place in the taxonomy

prefill/token-compression/attention-guided

### Training-free

yes

### Modality

- [X] image
- [ ] video
- [x] text

### Summary

Drops frames.

### A heading of its own

And says why: it can.
"""
CORRECTION = """\
### Record

fast-thing

### Field

{field}

### New value

{value}

### Source

The proceedings, page 3
"""


def correction(field: str, value: str) -> str:
    return CORRECTION.format(field=field, value=value)


def template(repository: Path, name: str) -> dict:
    return yaml.safe_load((repository / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())


def test_a_paper_becomes_a_record_without_a_problem(tree: Path) -> None:
    file, text = from_issue(PAPER, *read_catalog(tree))
    data = read_marked(text).data
    assert (file, data["title"]) == ("catalog/newthing.yaml", "NewThing: Fewer Frames")
    assert data["authors"] == ["Ada Lovelace", "Alan Turing"]
    assert (data["arxiv"], data["url"], data["venue"]) == ("2511.00002", "https://arxiv.org/abs/2511.00002", "arxiv")
    assert data["placements"] == [
        {"stage": "prefill", "category": "token-compression", "subcategory": "attention-guided", "source": "ours"}
    ]
    assert (data["training_free"], data["modality"]) == (True, ["image", "text"])
    assert data["links"] == [{"kind": "official", "url": "https://github.com/a/newthing"}]
    assert data["summary"] == "Drops frames. ### A heading of its own And says why: it can."
    assert data["provenance"]["authors"] == "issue form"
    assert check(tree, {file: text}) == []


def test_the_patch_of_a_new_record_can_be_applied(tree: Path, capsys, tmp_path_factory) -> None:
    issue = tmp_path_factory.mktemp("issue") / "event.json"
    issue.write_text(json.dumps({"action": "opened", "issue": {"number": 7, "body": PAPER.replace("\n", "\r\n")}}))
    assert main(["--root", str(tree), "from-issue", str(issue)]) == 0
    patch = capsys.readouterr().out
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "apply", "-"], cwd=tree, input=patch, text=True, check=True)
    assert (tree / "catalog/newthing.yaml").read_text() == from_issue(PAPER, *read_catalog_without(tree))[1]


def read_catalog_without(tree: Path):
    (tree / "catalog/newthing.yaml").unlink()
    return read_catalog(tree)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("year", "2025", 2025),
        ("month", "_No response_", None),
        ("training_free", "no", False),
        ("title", "FastThing: *Fewer*\nTokens", "FastThing: *Fewer* Tokens"),
        ("authors", "- Ada Lovelace\n- Grace Hopper", ["Ada Lovelace", "Grace Hopper"]),
        ("modality", "image\nvideo", ["image", "video"]),
        ("doi", "10.1007/978-3-031-1", "10.1007/978-3-031-1"),
        (
            "links",
            "```yaml\n- kind: fork\n  url: https://github.com/c/d\n```",
            [{"kind": "fork", "url": "https://github.com/c/d"}],
        ),
    ],
)
def test_a_correction_changes_one_field_and_notes_its_source(tree: Path, field, value, expected) -> None:
    before = read_marked((tree / "catalog/fast-thing.yaml").read_text()).data
    file, text = from_issue(correction(field, value), *read_catalog(tree))
    after = read_marked(text).data
    assert after == {**before, field: expected, "provenance": {field: "The proceedings, page 3"}}
    assert check(tree, {file: text}) == []


def test_a_correction_keeps_comments_and_touches_few_lines(tree: Path) -> None:
    path = tree / "catalog/fast-thing.yaml"
    path.write_text(path.read_text().replace("year: 2024", "# printed\nyear: 2024"))
    file, text = from_issue(correction("name", "FasterThing"), *read_catalog(tree))
    changed = [line for line in diff(file, path.read_text(), text).splitlines() if line[:1] in "+-"]
    assert changed[2:] == ["-name: FastThing", "+name: FasterThing", "+provenance:", "+  name: The proceedings, page 3"]


def test_a_correction_that_the_catalog_refuses_says_where(tree: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "issue.md").write_text(correction("venue", "ecvc"))
    assert main(["--root", str(tree), "from-issue", str(tmp_path / "issue.md")]) == 1
    out = capsys.readouterr()
    assert "+venue: ecvc" in out.out
    assert "catalog/fast-thing.yaml:9:8 unknown-tag" in out.err
    assert "did you mean eccv?" in out.err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "neither an `Add a paper` nor a `Fix an entry` form"),
        ("just words", "neither an `Add a paper`"),
        ('{"issue": {"number": 3}}', "holds no issue body"),
        ('{"issue": []}', "holds no issue body"),
        ("{" * 100_000, "holds no issue body"),
        (correction("years", "2024"), "'years' is not a field that can be fixed; did you mean year?"),
        (correction("provenance", "x: y"), "is not a field that can be fixed"),
        (correction("links", "- [unclosed"), "The new value of links is not YAML"),
        (correction("year", "1").replace("fast-thing", "../../etc/passwd"), "There is no record '../../etc/passwd'"),
        (correction("year", "1").replace("fast-thing", "fast-thin"), "did you mean fast-thing?"),
        (PAPER.replace("NewThing: Fewer   Frames", "_No response_"), "The form has no title"),
        (PAPER.replace("attention-guided", "atention-guided"), "is no place in the taxonomy; did you mean prefill/"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_used_is_one_sentence(tree: Path, body: str, words: str) -> None:
    with pytest.raises(IssueError) as caught:
        from_issue(body, *read_catalog(tree))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_paper_that_is_there_is_refused(tree: Path) -> None:
    with pytest.raises(AddError, match="is in the catalog"):
        from_issue(PAPER.replace("2511.00002", "2403.06764"), *read_catalog(tree))


def test_what_an_answer_says_cannot_set_another_field(tree: Path) -> None:
    body = PAPER.replace("Drops frames.", 'x"\nimplementation: {status: runnable}\n### Title\n\nAnother\n\x1b[31m')
    data = read_marked(from_issue(body, *read_catalog(tree))[1]).data
    assert data["title"] == "NewThing: Fewer Frames"
    assert data["implementation"]["status"] == "none"
    assert "\x1b" not in data["summary"]


def test_the_forms_ask_for_what_is_read(repository: Path) -> None:
    for name, labels in (("add-paper", ADD), ("fix-entry", FIX)):
        asked = [
            item["attributes"]["label"] for item in template(repository, name)["body"] if item["type"] != "markdown"
        ]
        assert asked == list(labels.values())


def test_the_choices_of_the_forms_are_those_of_the_schema(repository: Path) -> None:
    def options(name: str, id_: str) -> list:
        [item] = [item for item in template(repository, name)["body"] if item.get("id") == id_]
        return item["attributes"]["options"]

    assert options("fix-entry", "field") == FIXABLE
    assert [option["label"] for option in options("add-paper", "modality")] == ["text", "image", "video", "streaming"]


@pytest.mark.parametrize(
    ("file", "schema"),
    [("add-paper", "github-issue-forms"), ("fix-entry", "github-issue-forms"), ("config", "github-issue-config")],
)
def test_github_accepts_the_forms(repository: Path, file: str, schema: str) -> None:
    vendored = resources.files("check_jsonschema").joinpath(f"builtin_schemas/vendor/{schema}.json")
    errors = Draft7Validator(json.loads(vendored.read_text())).iter_errors(template(repository, file))
    assert [error.message for error in errors] == []


def test_a_pull_request_asks_for_at_most_five_boxes(repository: Path) -> None:
    assert 1 <= (repository / ".github/PULL_REQUEST_TEMPLATE.md").read_text().count("- [ ]") <= 5


def test_only_taxonomy_and_workflows_have_owners(repository: Path) -> None:
    lines = (repository / ".github/CODEOWNERS").read_text().splitlines()
    assert [line.split()[0] for line in lines if not line.startswith("#")] == ["/taxonomy/", "/.github/", "/.ci/"]


def test_answers_are_found_by_their_labels() -> None:
    found = answers(body_of(PAPER))
    assert (found["Title"], found["Venue"]) == ("NewThing: Fewer   Frames", "")
    assert set(found) == set(ADD.values())
