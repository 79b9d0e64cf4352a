import pytest
import torch
from support import clip_for, random_family

from elvi.bench.ratios import common, generation, kv, pruning, sparse
from elvi.core.spread import farthest, similarity


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(common, "REPEATS", 1)
    monkeypatch.setattr(generation, "TOKENS", 4)


def test_plain_loop_chooses_what_the_kernel_chooses():
    torch.manual_seed(1)
    cosine = similarity(torch.randn(96, 8))
    assert pruning.plain_loop(cosine, 24).tolist() == farthest(cosine, 24).tolist()


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
