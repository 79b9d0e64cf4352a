"""The commands of related systems, on a made-up one."""

import json
import sys

import pytest

from elvi import cli, discover
from elvi.related import Table, shown

SOURCE = '''"""Counts letters."""

from __future__ import annotations

from dataclasses import dataclass

from elvi.errors import ElviError
from elvi.related import Table


@dataclass(frozen=True)
class Counter:
    start: int = 0

    def run(self, prompt):
        return [Table("letters", ("of", "count"), [(prompt or "default", self.start + len(prompt or "default"))])]

    def bench(self, tick):
        tick(1, 1)
        return [Table("measured", ("what", "share"), [("all", 0.25)], "One run.")]

    def train(self, out, data, *, resume, tick):
        if data and data.read_text() == "bad":
            raise ElviError("Bad data: give better.")
        (out / "weights").write_text(f"{data and data.read_text()} {resume}")
        tick(1, 1)
'''


@pytest.fixture(autouse=True)
def stages(tmp_path, monkeypatch):
    """The stage folders hold a technique and the systems `counter` and `counter-two`."""
    (tmp_path / "prefill").mkdir()
    (tmp_path / "prefill/fastv.py").write_text('"""Drops."""\n')
    for name in ("counter", "counter_two"):
        (tmp_path / "related" / name).mkdir(parents=True)
        (tmp_path / "related" / name / "__init__.py").write_text(SOURCE)
        monkeypatch.delitem(sys.modules, f"elvi.related.{name}", raising=False)
    monkeypatch.setattr(discover, "_HERE", tmp_path)
    monkeypatch.setattr("elvi.related.__path__", [*sys.modules["elvi.related"].__path__, str(tmp_path / "related")])
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("counter", "counter_two"):
        sys.modules.pop(f"elvi.related.{name}", None)


def run(capsys, *arguments):
    return cli.main(arguments), *capsys.readouterr()


def refused(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def test_no_plan_sees_a_system_and_the_list_does(capsys):
    assert discover.list_techniques() == ["fastv"]
    rows = json.loads(run(capsys, "list", "--json")[1])
    assert [(row["id"], row["stage"]) for row in rows][1:] == [("counter", "related"), ("counter-two", "related")]


def test_show_gives_fields_and_a_command(capsys):
    out = run(capsys, "show", "counter-two")[1]
    assert "start  int   0" in out
    assert out.endswith("elvi run counter-two\n")


def test_run_sets_fields_and_hands_on_the_prompt(capsys):
    _, out, _ = run(capsys, "run", "counter:start=2", "--prompt", "abc", "--json")
    tables = [{"title": "letters", "columns": ["of", "count"], "rows": [["abc", 5]], "note": ""}]
    assert json.loads(out) == {"technique": "counter", "tables": tables}
    assert "default      7" in run(capsys, "run", "counter")[1]


def test_bench_writes_tables_with_their_provenance(capsys, tmp_path):
    code, out, _ = run(capsys, "bench", "counter", "--out", "results")
    [path] = tmp_path.glob("results/*/related/counter.json")
    data = json.loads(path.read_text())
    assert (code, data["schema"], data["technique"]) == (0, 1, "counter")
    assert data["command"] == "elvi bench counter --out results"
    assert data["hardware"]["id"] == path.parts[-3]
    assert data["tables"][0]["rows"] == [["all", 0.25]]
    assert "One run." in out


def test_train_hands_on_folder_data_and_resume(capsys, tmp_path):
    (tmp_path / "data.txt").write_text("words")
    assert run(capsys, "train", "counter", "--out", "made", "--data", "data.txt", "--resume")[0] == 0
    assert (tmp_path / "made/weights").read_text() == "words True"
    assert run(capsys, "train", "counter")[0] == 0
    assert (tmp_path / "build/counter/weights").read_text() == "None False"


def test_what_a_system_refuses_before_its_first_part_is_one_sentence(capsys, tmp_path):
    (tmp_path / "bad.txt").write_text("bad")
    assert refused(capsys, "train", "counter", "--data", "bad.txt") == "elvi: Bad data: give better.\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("run", "counter", "fastv"), "cannot be used together with techniques"),
        (("bench", "fastv", "counter"), "cannot be used together with techniques"),
        (("run", "counter", "counter-two"), "nothing to run in common"),
        (("run", "counter", "--sample", "3"), "to which --sample says nothing"),
        (("bench", "counter", "--resume"), "to which --resume says nothing"),
        (("run", "countr"), "did you mean counter"),
        (("run", "counter:stop=1"), "no field 'stop'"),
        (("train", "fastv"), "nothing to train"),
        (("train", "counter", "--data", "absent.txt"), "no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(capsys, command, words):
    assert words in refused(capsys, *command)


def test_a_table_whose_row_has_other_columns_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", ("a", "b"), [(1, 2), (1,)])


def test_values_are_shown_to_four_digits():
    assert [shown(value) for value in (None, "a", 12345, 12345.6, 0.123456, 2.0)] == [
        "–", "a", "12,345", "12,346", "0.1235", "2",
    ]  # fmt: skip
