from dataclasses import replace

import pytest
import torch
from support import clip_for, random_family
from trained import trained

from elvi.bench.ratios import common, generation, kv, pruning, sparse
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.spread import farthest, similarity
from elvi.encode.aks import AKS
from elvi.prefill.divprune import DivPrune
from elvi.tiny.data import HELD_OUT, sample


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(common, "REPEATS", 1)
    monkeypatch.setattr(generation, "TOKENS", 4)


def test_plain_loop_chooses_what_the_kernel_chooses():
    torch.manual_seed(1)
    cosine = similarity(torch.randn(96, 8))
    assert pruning.plain_loop(cosine, 24).tolist() == farthest(cosine, 24).tolist()


@pytest.fixture
def report():
    """The report of a plan on a small model."""
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl")
    return lambda *techniques: generate(family, clip, plan=Plan(*techniques), max_new_tokens=1).report


def test_selection_is_set_against_what_fewer_tokens_save_without_it(report):
    plain = replace(report(), ttft_s=10.0, frames_s=0.0, select_s=0.1, flops=100.0)
    ours = replace(report(DivPrune(0.25)), ttft_s=6.0, frames_s=0.2, select_s=0.9, flops=50.0)
    overhead, ttft = pruning.ratios("divprune", random_family("qwen2_5_vl"), [{"": plain, "divprune": ours}])
    assert (overhead.name, ttft.name) == ("overhead-divprune", "ttft-divprune")
    assert overhead.value["median"] == pytest.approx(1.0 / 5.0)
    assert ttft.value["median"] == pytest.approx(1.2)
    assert (overhead.met, ttft.met) == (False, False)
    assert "DivPrune(keep_ratio=0.25), 108 visual tokens of which 25% are left" in overhead.what


def test_what_saves_nothing_has_a_high_and_finite_overhead(report):
    plain = replace(report(), ttft_s=1.0, frames_s=0.0, select_s=0.0)
    ours = replace(plain, ttft_s=3.0, select_s=1.0)
    [overhead, _] = pruning.ratios("slow", random_family("qwen2_5_vl"), [{"": plain, "slow": ours}])
    assert overhead.value["median"] == 100.0


def test_what_leaves_fewer_tokens_is_found_and_set_to_a_quarter_of_them(monkeypatch):
    names = ["aks", "llava-prumerge", "divprune", "snapkv"]
    monkeypatch.setattr(pruning.discover, "list_techniques", lambda: names)
    told, family = [], trained("tiny-qwen")
    found = dict(pruning.reducers(family, family, sample(HELD_OUT, "caption", 8), told.append))
    assert {name: plan.techniques[0] for name, plan in found.items()} == {
        "aks": AKS(num_frames=2), "divprune": DivPrune(keep_ratio=0.25)
    }  # fmt: skip
    assert len(told) == 1  # of the one that needs a class token
    assert told[0].startswith("left out: LLaVAPruMerge was asked of tiny-qwen")


def test_all_of_it_is_measured_in_one_go(monkeypatch, few):
    monkeypatch.setattr(pruning.discover, "list_techniques", lambda: ["divprune"])
    monkeypatch.setattr(pruning, "WIDE", {"width": 64, "inner": 64, "key_value_heads": 1, "blocks": 4})
    monkeypatch.setattr(pruning, "SECONDS", 2)
    monkeypatch.setattr(common, "WIDE_REPEATS", 1)
    found = {ratio.name: ratio for ratio in pruning.measured(trained("tiny-qwen"), print)}
    assert [*found] == ["overhead-divprune", "ttft-divprune", "divprune-kernel", "spread-spread-kernel"]
    assert "512 visual tokens of which 25% are left, 12 layers of width 64" in found["ttft-divprune"].what
    assert "arguments 512 x 512, 0" in found["spread-spread-kernel"].what


def test_snapkv_allocates_what_its_budget_says():
    assert set(kv.snapkv_bytes(random_family("qwen2_5_vl")).value.values()) == {1.0, 4}


def test_times_of_model_and_elvi_are_compared_on_equal_work(few):
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl")
    for measured in (generation.token_time(family, clip, None), generation.prefill_time(family, clip)):
        assert 0.1 < measured.value["median"] < 10


def test_unmodified_copy_leaves_the_family_as_it_is():
    family = random_family("qwen2_5_vl")
    plain = common.unmodified(family)
    assert plain.config.get_text_config()._attn_implementation == family.attention_kernel
    assert family.model.config.get_text_config()._attn_implementation == "elvi"


def test_noise_becomes_as_many_visual_tokens_as_were_asked_for():
    family = common.wide(layers=1, width=64, inner=64, key_value_heads=1)
    assert len(family.encode(common.noise(512)).tokens) == 512


def test_a_quarter_of_the_blocks_is_read_in_the_ratio_of_sparse_attention(few, monkeypatch):
    monkeypatch.setattr(sparse, "TOKENS", 2048)
    [ratio] = sparse.measured(random_family("qwen2_5_vl"), print)
    share = float(ratio.what.partition("with ")[2].partition("%")[0])
    assert 24 <= share <= 36  # short prompts have more of them on the diagonal
    assert ratio.value["median"] > 0
