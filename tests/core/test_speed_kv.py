from types import SimpleNamespace

import pytest
import torch
from support import random_family

from elvi import discover
from elvi.bench.ratios import common, kv
from elvi.decode.snapkv import SnapKV


def report(**costs):
    return SimpleNamespace(visual_tokens={"encoded": 4096.0}, attention="sdpa", **costs)


@pytest.fixture
def family():
    return random_family("qwen2_5_vl")


def test_step_weights_are_the_parameters_that_a_step_of_decoding_uses(family):
    used = set()
    modules = [module for module in family.model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(lambda module, *_: used.update(module.parameters())) for module in modules]
    with torch.inference_mode():
        hidden = family.head(family.model.model.language_model(input_ids=torch.tensor([[1]])).last_hidden_state[0])
    for hook in hooks:
        hook.remove()
    table = family.text.embed_tokens.weight
    if table is not family.model.get_output_embeddings().weight:
        used.discard(table)
    assert hidden.shape[-1] == table.shape[0]
    assert kv.step_weights(family) == sum(parameter.numel() * parameter.element_size() for parameter in used)


def test_tpot_is_compared_with_the_bytes_of_weights_and_cache(family, monkeypatch):
    monkeypatch.setattr(kv, "step_weights", lambda family: 100)
    full = report(tpot_s=4.0, kv_read_bytes=300)
    found = kv.token_time(family, [{kv.FULL: full, kv.SNAPKV: report(tpot_s=2.4, kv_read_bytes=60)}])
    assert found.value["median"] == pytest.approx((2.4 / 4.0) / (160 / 400))
    assert (found.low, found.high) == (0.8, 1.2)
    assert "full cache (75% of the bytes), 4,096 visual tokens, 3 layers of width 192, 6 query and 2 key" in found.what


def test_selection_is_a_share_of_the_time_to_first_token(family):
    setting = ("mm-shiftkv", 0.1)
    rounds = [{kv.FULL: report(), setting: report(select_s=1.0, ttft_s=ttft)} for ttft in (10.0, 20.0, 40.0)]
    found = kv.selection(setting, family, rounds)
    assert (found.name, found.value["median"], found.high) == ("selection-mm-shiftkv", 0.05, 0.05)
    assert found.met


def test_hybridkv_reads_are_compared_with_the_full_cache_of_the_same_round(family):
    full, hybrid = report(kv_read_bytes=800.0), report(kv_read_bytes=100.0)
    found = kv.hybrid_read(family, [{kv.FULL: full, kv.HYBRID_10: hybrid}])
    assert (found.value["median"], found.high, found.met) == (0.125, 1 / 7.9, True)


def test_pilot_stands_next_to_what_the_survey_reports_without_a_bar(family):
    full, hybrid = report(kv_read_bytes=800.0, tpot_s=2.0), report(kv_read_bytes=160.0, tpot_s=1.0)
    memory, times = kv.pilot(kv.HYBRID_20, family, [{kv.FULL: full, kv.HYBRID_20: hybrid}])
    assert (memory.name, memory.value["median"], times.name, times.value["median"]) == (
        "pilot-memory-0.2",
        0.2,
        "pilot-tpot-0.2",
        0.5,
    )
    assert "the survey reports 0.40 / 1.73 GB = 0.231" in memory.what
    assert "the survey reports 42.08 / 58.94 ms = 0.714" in times.what
    assert {memory.low, memory.high, times.low, times.high} == {None}


@pytest.fixture
def small(monkeypatch):
    """Two time steps, a model to match, one round; SnapKV stands in for every technique."""
    monkeypatch.setattr(discover, "technique", lambda name: SnapKV)
    monkeypatch.setattr(kv, "VISUAL", 512)
    monkeypatch.setattr(kv, "TOKENS", 3)
    monkeypatch.setattr(kv, "WIDE", {"layers": 2, "width": 64, "inner": 64, "key_value_heads": 1})
    monkeypatch.setattr(kv, "REAL", {**kv.WIDE, "head_dim": 32})
    monkeypatch.setattr(common, "WIDE_REPEATS", 1)


def test_techniques_that_are_not_there_are_left_out_and_that_is_told(small, monkeypatch, family):
    monkeypatch.setattr(discover, "list_techniques", lambda: ["snapkv"])
    told = []
    names = [found.name for found in kv.measured(family, told.append)]
    assert names == ["snapkv-bytes", "kv-tpot", "selection-snapkv"]
    assert [sentence.split("'")[1] for sentence in told] == ["mm-shiftkv", "hybridkv", "hybridkv"]


def test_every_technique_that_is_there_is_measured(small, monkeypatch, family):
    monkeypatch.setattr(discover, "list_techniques", lambda: ["snapkv", "mm-shiftkv", "hybridkv"])
    told = []
    found = {each.name: each for each in kv.measured(family, told.append)}
    pilot = ["pilot-memory-0.2", "pilot-tpot-0.2", "pilot-memory-0.1", "pilot-tpot-0.1"]
    chosen = ["selection-snapkv", "selection-mm-shiftkv"]
    assert [*found] == ["snapkv-bytes", "kv-tpot", *chosen, "hybridkv-read", *pilot]
    assert told == []
    rows = 512 + len(family.template("what color is the star ?", common.noise(512))) - 1
    read = (round(rows / 10) + 1.5) / (rows + 1.5)  # two steps: one row more, then two
    assert found["hybridkv-read"].value["median"] == pytest.approx(read)


def test_wide_model_shares_no_keys_and_its_cache_is_half_of_what_a_step_reads():
    family = common.wide(**kv.WIDE)
    cache = kv.VISUAL * family.num_layers * family.config.num_key_value_heads * family.head_dim * 2 * 4
    assert family.config.num_key_value_heads == family.config.num_attention_heads
    assert 0.4 < cache / (cache + kv.step_weights(family)) < 0.6
