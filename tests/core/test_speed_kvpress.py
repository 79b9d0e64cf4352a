import json
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from elvi.bench import kvpress_rival
from elvi.bench.ratios import common, kvpress
from elvi.errors import ElviError

STANDIN = """
import json, pathlib, shutil, sys
arguments = json.loads(sys.argv[1])
asked = {key: value for key, value in arguments.items() if key not in ("folder", "threads")}
assert asked == {"compression_ratio": 0.75, "window_size": 32, "kernel_size": 5}, asked
prepared = pathlib.Path(__file__).with_name("kept.safetensors")
shutil.copy(prepared, arguments["folder"])
print(json.dumps({"versions": {"kvpress": "0", "torch": "1"}, "token": TOKEN}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"seconds": 4.0}), flush=True)
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(kvpress, "LENGTH", 256)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setattr(kvpress, "LLAMA", kvpress.LLAMA | sizes)
    monkeypatch.setattr(common, "REPEATS", 2)


@pytest.fixture
def standin(small, tmp_path, monkeypatch):
    """A rival that this Python runs; returns the function that sets what it does."""
    monkeypatch.setattr(kvpress, "PYTHON", kvpress.Path(sys.executable))
    script = tmp_path / "rival.py"
    monkeypatch.setattr(kvpress_rival, "__file__", str(script))
    return script.write_text


def test_without_its_environment_the_ratio_is_left_out_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(kvpress, "PYTHON", tmp_path / "python")
    told = []
    assert list(kvpress.measured(None, told.append)) == []
    assert len(told) == 1
    assert "`make kvpress`" in told[0]


def test_prompt_has_the_length_that_was_asked_for_and_both_sides_get_the_same(small, tmp_path):
    family, question = kvpress.prepare(tmp_path)
    ids = json.loads((tmp_path / "ids.json").read_text())
    assert ids == family.template(question, None)
    assert len(ids) == 256
    keys, token = kvpress.read(family, question)
    assert [each.shape for each in keys] == [(2, 64, 16)] * 2
    assert token == int(family.model(torch.tensor([ids])).logits[0, -1].argmax())


def test_seconds_are_compared_when_both_sides_kept_the_same_rows(standin, tmp_path, monkeypatch):
    keys, token = kvpress.read(*kvpress.prepare(tmp_path))
    save_file({str(i): each.flip(1).contiguous() for i, each in enumerate(keys)}, tmp_path / "kept.safetensors")
    standin(STANDIN.replace("TOKEN", str(token)))
    monkeypatch.setattr(common, "clocked", lambda work: (3.0, work()))
    (found,) = kvpress.measured(None, print)
    assert found.value == {"median": 0.75, "q1": 0.75, "q3": 0.75, "n": 2}
    assert (found.low, found.high, found.met) == (None, 0.8, True)
    assert "/ kvpress 0, torch 1; SnapKV(keep_ratio=0.25, window=32, kernel=5), 100.0% of the kept rows" in found.what


def test_another_method_is_not_compared(standin, tmp_path):
    keys, token = kvpress.read(*kvpress.prepare(tmp_path))
    save_file({str(i): torch.zeros_like(each) for i, each in enumerate(keys)}, tmp_path / "kept.safetensors")
    standin(STANDIN.replace("TOKEN", str(token)))
    with pytest.raises(AssertionError, match=r"only 0.0% of the kept rows are the same"):
        kvpress.prefill_and_selection()


@pytest.mark.parametrize("hello", ["", "print('{}', flush=True); "])
def test_a_rival_that_stops_is_told_in_one_sentence(standin, tmp_path, hello):
    def ask_when_it_has_stopped():
        with kvpress.Rival(tmp_path) as rival:
            rival.process.wait()
            rival.seconds()

    standin(f"{hello}raise SystemExit('no such press')")
    with pytest.raises(ElviError, match=r"kvpress stopped \(no such press\): delete .venv-kvpress and run"):
        ask_when_it_has_stopped()


def test_a_rival_that_stops_does_not_end_the_measurement_of_other_themes(standin):
    standin("raise SystemExit('no such press')")
    told = []
    assert list(kvpress.measured(None, told.append)) == []
    assert told[0].startswith("left out: kvpress stopped (no such press)")


def test_rows_are_found_in_any_order_and_missed_where_they_are_not():
    keys = [torch.randn(2, 8, 4)]
    others = keys[0][:, torch.randperm(8)].clone()
    assert kvpress.rows_in_common(keys, {"0": others}) == 1.0
    others[0] += 1.0
    assert kvpress.rows_in_common(keys, {"0": others}) == 0.5


@pytest.mark.slow
@pytest.mark.skipif(not kvpress.PYTHON.is_file(), reason="needs `make kvpress`")
def test_kvpress_keeps_the_same_rows_of_the_same_model(small):
    (found,) = kvpress.measured(None, print)
    assert re.search(r" / kvpress [\d.]+, transformers 5\.[0-2]\.", found.what)
    assert found.value["n"] == 2
