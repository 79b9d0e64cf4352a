"""The command line: exit 0 clean, 1 problems, 2 misuse in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from elvi_survey.cli import main


@pytest.fixture
def run(tree: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["--root", str(tree), *arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def break_venue(tree: Path) -> None:
    path = tree / "catalog/fast-thing.yaml"
    path.write_text(path.read_text().replace("venue: eccv", "venue: ecvc"))


def test_check_of_a_clean_tree_exits_0(run) -> None:
    assert run("check") == (0, "", "2 records, 0 problems\n")


def test_check_prints_one_line_per_problem(run, tree: Path) -> None:
    break_venue(tree)
    line = "catalog/fast-thing.yaml:9:8 unknown-tag venue: 'ecvc' is not known — did you mean eccv?\n"
    assert run("check") == (1, line, "2 records, 1 problems\n")


def test_check_as_json(run, tree: Path) -> None:
    break_venue(tree)
    code, out, _ = run("check", "--format", "json")
    assert code == 1
    assert json.loads(out) == [
        {"file": "catalog/fast-thing.yaml", "line": 9, "column": 8, "code": "unknown-tag",
         "message": "venue: 'ecvc' is not known", "fix": "did you mean eccv?"}
    ]  # fmt: skip


def test_check_for_github_cannot_be_made_to_say_a_second_command(run, tree: Path) -> None:
    path = tree / "catalog/fast-thing.yaml"
    path.write_text(path.read_text().replace("venue: eccv", 'venue: "a\\n::error::b%"'))
    code, out, _ = run("check", "--format", "github")
    assert code == 1
    assert out.startswith("::error file=catalog/fast-thing.yaml,line=9,col=8,title=bad-id::")
    assert out.count("\n") == 1


def test_fmt_check_names_the_file_and_fmt_rewrites_it(run, tree: Path) -> None:
    path = tree / "catalog/other.yaml"
    path.write_text(path.read_text() + "month:\n")
    assert run("fmt", "--check") == (1, "would change catalog/other.yaml\n", "")
    assert run("fmt") == (0, "changed catalog/other.yaml\n", "")
    assert run("fmt", "--check") == (0, "", "")


def test_export_writes_the_file_it_is_given(run, tmp_path: Path) -> None:
    target = tmp_path / "out.bib"
    assert run("export", "--format", "bibtex", "-o", str(target)) == (0, "", "")
    assert target.read_text().startswith("@inproceedings{fast-thing,\n  title = {{FastThing: Half the Tokens}},")


def test_export_of_a_broken_catalog_prints_its_problems(run, tree: Path) -> None:
    break_venue(tree)
    code, out, err = run("export", "--format", "csv")
    assert (code, out) == (1, "")
    assert err.startswith("catalog/fast-thing.yaml:9:8 unknown-tag")


def test_stats_count_records_by_place(run) -> None:
    code, out, _ = run("stats")
    assert code == 0
    assert out == (
        "2 records: 1 planned, 1 runnable\n"
        "Prefilling: 1 (1 runnable)\n  Token compression: 1 (1 runnable)\n"
        "Decoding: 1\n  KV cache: 1\nServing: 0\n  Staged: 0\nYears: 2024 1, 2025 1\n"
    )


def test_stats_as_json_hold_the_same_counts(run) -> None:
    code, out, _ = run("stats", "--json")
    counts = json.loads(out)
    assert (code, counts["records"], counts["years"]) == (0, 2, {"2024": 1, "2025": 1})
    assert counts["implementation"] == {"planned": 1, "runnable": 1}
    assert counts["stages"]["prefill"]["categories"] == {
        "token-compression": {"title": "Token compression", "records": 1, "runnable": 1}
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chek"], "Argument COMMAND: invalid choice: 'chek'"),
        (["export"], "The following arguments are required: --format"),
        (["export", "--format", "csv", "-o", "/no/such/folder/x"], "/no/such/folder/x cannot be written"),
        (["check", "--format", "xml"], "Argument --format: invalid choice: 'xml'"),
    ],
)
def test_misuse_exits_2_with_one_sentence(run, arguments: list[str], sentence: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"elvi-survey: {sentence}")
    assert err.count("\n") == 1


def test_a_folder_without_a_catalog_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "check"]) == 2
    assert "There is no catalog and taxonomy folder in" in capsys.readouterr().err


def test_the_root_is_found_from_below(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "catalog")
    assert main(["check"]) == 0


def test_checking_and_exporting_never_imports_torch(repository: Path) -> None:
    program = (
        "import sys; from elvi_survey.cli import main; main(['check']); main(['stats']);"
        "main(['export', '--format', 'json', '-o', '/dev/null']); import elvi_survey.codefacts;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    environment = {"PYTHONPATH": f"{repository / 'impls'}:{repository / 'tools'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
