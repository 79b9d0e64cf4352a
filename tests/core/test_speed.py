import json

import pytest
import torch
from support import clip_for, random_family

from elvi.bench import speed
from elvi.bench.measure import spread
from elvi.prefill import divprune


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "TOKENS", 4)


def ratio(value, low=None, high=None):
    return speed.Ratio("name", "what", spread([value]), low, high)


@pytest.mark.parametrize(
    ("value", "low", "high", "met"),
    [(1.0, None, 1.0, True), (1.01, None, 1.0, False), (1.5, 1.5, None, True), (0.84, 0.85, 1.15, False)],
)
def test_a_bar_is_met_up_to_its_limits(value, low, high, met):
    assert ratio(value, low, high).met is met


def test_missed_bars_say_so():
    assert str(ratio(1.2, None, 1.0)).startswith("MISSED    1.200")


def test_plain_loop_chooses_what_the_kernel_chooses():
    torch.manual_seed(1)
    cosine = divprune.similarity(torch.randn(96, 8))
    assert speed.plain_loop(cosine, 24).tolist() == divprune.spread(cosine.numpy(), 24).tolist()


def test_snapkv_allocates_what_its_budget_says():
    assert set(speed.snapkv_bytes(random_family("qwen2_5_vl")).value.values()) == {1.0, 4}


def test_times_of_model_and_elvi_are_compared_on_equal_work(few):
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl")
    for measured in (speed.token_time(family, clip, None), speed.prefill_time(family, clip)):
        assert 0.1 < measured.value["median"] < 10


def test_unmodified_copy_leaves_the_family_as_it_is():
    family = random_family("qwen2_5_vl")
    plain = speed.unmodified(family)
    assert plain.config.get_text_config()._attn_implementation == family.attention_kernel
    assert family.model.config.get_text_config()._attn_implementation == "elvi"


def test_run_saves_provenance_with_the_ratios(tmp_path, monkeypatch):
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(speed, "load", lambda name: family)
    monkeypatch.setattr(speed, "measured", lambda family, tell: iter([ratio(0.9, None, 1.0)]))
    said = []
    path = speed.run(tmp_path, command="elvi bench --speed", tell=said.append)
    data = json.loads(path.read_text())
    assert path.name == "speed.json"
    assert said == [str(ratio(0.9, None, 1.0))]
    assert data["ratios"][0]["met"] is True
    assert {"hardware", "versions", "commit", "date", "command", "model"} <= set(data)
