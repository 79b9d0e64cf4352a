"""Verdicts on pairs: what is computed, what the file keeps, and what the command writes."""

import json
import subprocess
import sys

import pytest
from support import random_family

from elvi import cli, discover, pairs
from elvi.errors import ElviError
from elvi.pairs import Verdict

FEW = ["folder", "trim", "snapkv", "specvlm", "lvspec", "llava-prumerge"]


@pytest.fixture(scope="module")
def family():
    return random_family("qwen2_5_vl")


@pytest.fixture
def found(family, monkeypatch):
    monkeypatch.setattr(discover, "list_techniques", lambda: FEW)
    return pairs.Pairs(pairs.compute([family]))


def test_a_pair_has_both_orders_only_where_the_two_act_at_one_seam():
    seams = {"a": (1, 1), "b": (1, 1), "c": (0, 0)}
    assert set(pairs.ordered(seams)) == {("a", "b"), ("b", "a"), ("c", "a"), ("c", "b")}


def test_what_a_technique_cannot_act_without_stands_beside_unless_another_acts_there():
    def names(*ids):
        return [type(each).__name__ for each in pairs.together(*ids).techniques]

    assert names("snapkv", "lvspec") == ["SnapKV", "SpecVLM", "LVSpec"]
    assert names("lvspec", "speculative-sampling") == ["SpeculativeSampling", "LVSpec"]
    assert names("lvspec", "random-relaxation").count("SpecVLM") == 1


def test_each_kind_of_verdict_comes_with_the_sentence_of_the_error(found, family):
    [model] = found.models
    assert found.verdict(model, "trim", "snapkv") == Verdict("works")
    assert found.verdict(model, "folder", "trim").kind == "refused"
    assert "grid, which FOLDER (acting before it) ends" in found.verdict(model, "folder", "trim").sentence
    assert found.verdict(model, "snapkv", "lvspec").kind == "needs"
    assert "add a drafter" in found.verdict(model, "snapkv", "lvspec").sentence
    assert found.verdict(model, "llava-prumerge", "snapkv").kind == "unfit"
    assert family.name in found.verdict(model, "llava-prumerge", "snapkv").sentence


def test_the_file_gives_back_every_verdict_and_the_same_bytes(found, family, tmp_path):
    data = pairs.compute([family])
    for name in ("a.json", "b.json"):
        pairs.write(data, tmp_path / name)
    again = pairs.load(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == data
    for pair in found.ordered():
        assert again.verdict(family.name, *pair) == pairs.verdict(family, *pair)


def test_a_name_inside_of_a_longer_one_is_left_alone(found):
    found.techniques |= {"a": {"name": "ToMe"}, "b": {"name": "ToMe2"}}
    assert found.words("{second} needs what {first} ends", "a", "b") == "ToMe2 needs what ToMe ends"


def test_a_file_of_another_schema_is_refused_with_the_command(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ElviError, match="elvi pairs --write results/"):
        pairs.load(tmp_path / "old.json")


def test_the_command_counts_every_pair_once_and_writes_the_file(family, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(discover, "list_techniques", lambda: FEW)
    monkeypatch.setattr("elvi.families.load.load", lambda name: family)
    assert cli.main(["pairs", "--write", str(tmp_path / "out.json")]) == 0
    counts = [int(number) for number in capsys.readouterr().out.splitlines()[1].split()[1:]]
    assert sum(counts) == len(pairs.load(tmp_path / "out.json").ordered()) == 15 + 3  # three act at one seam
    assert all(counts)


def test_reading_the_file_needs_no_torch():
    code = "import sys; from elvi import pairs; pairs.load(pairs.FILE); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
