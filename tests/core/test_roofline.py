import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from math import isclose

import pytest
import torch
from support import random_family
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from elvi import cli, roofline
from elvi.dimensions import Machine, Model, Request, Vision, entry, machine_from, model_from, vocabulary
from elvi.roofline import estimate

A100 = Machine(312, 2039, 80)
TOY = Model(layers=2, hidden=6, heads=2, kv_heads=1, head_dim=4, intermediate=10, vocab=20)
TOWER = Vision(layers=2, hidden=4, intermediate=8, patch=2, spatial_merge=2, adapter="mlp")


def model(name: str) -> Model:
    return model_from(entry("models", name))


def stages(*arguments, machine=A100):
    return {stage.name: stage for stage in estimate(arguments[0], machine, arguments[1]).stages}


def counted(run) -> int:
    """What torch counts while `run` runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


# ---- against hand-computed numbers ---------------------------------------------------------


def test_a_token_of_qwen2_5_vl_72b_holds_327680_bytes_and_the_footnote_of_the_survey_follows():
    found = [estimate(model("qwen2-5-vl-72b"), A100, Request(visual=n, text=0, new=1)) for n in (40_000, 50_000)]
    assert {each.kv_bytes_per_token for each in found} == {80 * 2 * 8 * 128 * 2} == {327_680}
    assert [each.kv_bytes for each in found] == [13_107_200_000, 16_384_000_000]  # "13 GB" and "16 GB"


def test_a_head_is_as_wide_as_the_model_says_and_not_hidden_size_over_heads():
    found = estimate(model("qwen3-vl-4b"), A100, Request())
    assert found.kv_bytes_per_token == 36 * 2 * 8 * 128 * 2 == 147_456
    assert found.kv_bytes_per_token != 2 * 36 * 2560 * (8 / 32) * 2  # equation (5) of the survey


def test_prefill_of_a_toy_is_what_one_counts_by_hand():
    # q, o: 6 x 8 each, k, v: 6 x 4 each, gate, up, down: 6 x 10 each -> 324 weights a layer; head 6 x 20 = 120
    # 5 rows see 1 + 2 + 3 + 4 + 5 = 15 rows, for 4 x 8 FLOPs each
    found = stages(TOY, Request(visual=3, text=2, new=1))["prefill"]
    assert found.flops == 2 * (2 * 5 * 324 + 32 * 15) + 2 * 120 == 7_680
    # a row moves 4 x 6 + 4 x 8 + 2 x 10 = 76 elements a layer, the head 6 + 20; a cached row is 2 x 4 x 2 = 16 bytes
    assert found.bytes == 2 * (2 * 324 + 120) + 2 * (2 * 5 * 76 + 26) + 2 * (2 * 5 * 16) == 3_428


def test_decoding_of_a_toy_is_what_one_counts_by_hand():
    # 2 steps after the first token; they see 5 + 1 and 5 + 2 rows
    found = stages(TOY, Request(visual=3, text=2, new=3))["decode"]
    assert found.flops == 2 * 2 * (2 * 324 + 120) + 2 * 32 * (6 + 7) == 3_904
    assert found.bytes == 2 * 2 * (2 * 324 + 120) + 2 * 2 * (2 * 76 + 26) + 2 * (6 + 7 + 2) * 16 == 4_264


def test_encoding_of_a_toy_is_what_one_counts_by_hand():
    # 8 x 4 px are 4 x 2 patches and 2 tokens a frame; a patch has 12 numbers; a layer 4 x 16 + 2 x 32 = 128 weights
    found = stages(replace(TOY, vision=TOWER), Request(frames=3, height=8, width=4))
    assert found["encode"].flops == 2 * 24 * (12 * 4 + 2 * 128) + 2 * 3 * (4 * 4 * 8 * 8) == 20_736
    assert found["encode"].bytes == 2 * (12 * 4 + 2 * 128) + 2 * 24 * (12 + 4 + 2 * (48 + 16)) == 7_520
    assert found["adapter"].flops == 2 * 6 * (16 * 6 + 6 * 6) == 1_584
    assert found["adapter"].bytes == 2 * (16 * 6 + 6 * 6) + 2 * 6 * (16 + 6 + 6 + 6) == 672


def test_windows_cut_the_pairs_of_their_layers_only_and_edges_are_smaller():
    # 5 x 3 patches in windows of 2 x 2: pieces of 2, 2, 1 and 2, 1 patches
    cells = [(y // 2, x // 2) for y in range(5) for x in range(3)]
    pairs = sum(a == b for a in cells for b in cells)
    tower = replace(TOWER, spatial_merge=1, window=4, full_layers=(1,))
    grid = roofline.grid_of(tower, Request(frames=1, height=10, width=6))
    assert (grid.rows, grid.columns) == (5, 3)
    flops, _ = roofline.encode(tower, grid, Request())
    assert flops == 2 * 15 * roofline.tower(tower) + 4 * 4 * (15 * 15 + pairs)


@pytest.mark.parametrize(("name", "request_", "tokens"), [
    ("qwen2-5-vl-7b", Request(frames=8), 4 * 16 * 16), ("qwen2-5-vl-7b", Request(frames=7), 4 * 16 * 16),
    ("qwen2-5-vl-7b", Request(images=20, height=1260, width=1260), 20 * 45 * 45),
    ("qwen3-vl-8b", Request(frames=2, height=1280, width=720), 40 * 23), ("llava-1-5-7b", Request(images=1), 576),
    ("llava-onevision-7b", Request(frames=32), 32 * 196), ("llava-onevision-7b", Request(images=1), 729),
    ("internvl3-8b", Request(frames=3), 3 * 256), ("smolvlm2-500m", Request(frames=1), 64),
    ("smolvlm2-2-2b", Request(frames=1), 81),
])  # fmt: skip
def test_pictures_become_as_many_tokens_as_the_models_make(name, request_, tokens):
    assert estimate(model(name), A100, request_).visual[0] == tokens


# ---- against torch's own counter -----------------------------------------------------------


def test_flops_of_a_vision_tower_and_adapter_are_what_torch_counts():
    whole = deepcopy(random_family("qwen2_5_vl").model)  # other tests share it, with its kernel
    whole.set_attn_implementation("eager")
    visual, config = whole.model.visual, whole.config.vision_config
    tower = Vision(
        config.depth, config.hidden_size, config.intermediate_size, config.patch_size, config.spatial_merge_size,
        "merger", None, config.temporal_patch_size, True, config.window_size, tuple(config.fullatt_block_indexes),
    )  # fmt: skip
    shape = replace(TOY, hidden=config.out_hidden_size, vision=tower)
    request = Request(frames=4, height=12 * config.patch_size, width=6 * config.patch_size)
    pixels = torch.randn(2 * 12 * 6, 3 * config.temporal_patch_size * config.patch_size**2)
    ours = stages(shape, request)
    theirs = counted(lambda: visual(pixels, grid_thw=torch.tensor([[2, 12, 6]])))
    assert ours["encode"].flops + ours["adapter"].flops == theirs


def test_flops_of_prefill_and_decoding_are_what_torch_counts():
    shape = Model(layers=3, hidden=16, heads=4, kv_heads=2, head_dim=8, intermediate=24, vocab=40)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=24, vocab_size=40, attn_implementation="eager",
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    ours = stages(shape, Request(visual=0, text=7, new=2))
    with torch.no_grad():
        before = llama(torch.arange(7)[None], use_cache=True, logits_to_keep=1)
    whole = counted(lambda: llama(torch.arange(7)[None], logits_to_keep=1))
    step = counted(lambda: llama(torch.tensor([[1]]), past_key_values=before.past_key_values))
    unseen = 3 * 4 * 32 * (7 * 6 / 2)  # the eager kernel computes scores of later rows too, and masks them
    assert ours["prefill"].flops + unseen == whole
    assert ours["decode"].flops == step


# ---- laws ----------------------------------------------------------------------------------


def test_intensity_of_decoding_is_about_the_batch_and_not_always_one():
    found = {n: stages(model("qwen2-5-vl-7b"), Request(visual=16, text=16, batch=n))["decode"] for n in (1, 8, 64)}
    assert [round(each.intensity) for each in found.values()] == [1, 8, 62]


def test_prefill_crosses_the_ridge_of_an_a100_between_155_and_170_tokens():
    # a 7B multi-head model: about n / (1 + 2 n / d) = 153 at d = 4096, and not 160 at 512 tokens
    intensity = [stages(model("llava-1-5-7b"), Request(visual=n, text=0))["prefill"].intensity for n in range(1, 600)]
    crossing = next(n for n, found in enumerate(intensity, 1) if found > 312e3 / 2039)
    assert 155 < crossing < 170
    assert 400 < intensity[511] < 450


def test_fewer_bits_and_fewer_rows_make_decoding_lighter_and_leave_encoding_alone():
    shape = model("qwen2-5-vl-7b")
    plain = stages(shape, Request())
    for lighter in (Request(kv_bits=4), Request(cache_keep=0.25), Request(layer=2, layer_keep=0.5), Request(keep=0.5)):
        found = stages(shape, lighter)
        assert found["decode"].bytes < plain["decode"].bytes
        assert found["encode"] == plain["encode"]
    assert stages(shape, Request(cache_keep=0.25))["prefill"] == plain["prefill"]


def test_pruning_from_layer_k_is_k_layers_of_all_and_the_rest_of_few():
    shape, full, few = model("qwen2-5-vl-7b"), Request(new=1), Request(new=1, keep=0.25)
    cut = stages(shape, Request(new=1, layer=7, layer_keep=0.25))["prefill"].flops
    head = 2 * shape.hidden * shape.vocab
    share = [(stages(shape, each)["prefill"].flops - head) / 28 for each in (full, few)]
    assert isclose(cut, head + 7 * share[0] + 21 * share[1])


def test_the_first_token_is_in_prefill_and_one_token_has_no_time_per_further_token():
    shape = model("qwen2-5-vl-7b")
    one, nine = (estimate(shape, A100, Request(new=n)) for n in (1, 9))
    assert one.tpot is None
    assert one.total == one.ttft == nine.ttft
    assert isclose(nine.total, nine.ttft + 8 * nine.tpot)


def test_a_bound_is_the_larger_of_both_times_and_says_which():
    slow, weak = (stages(model("qwen2-5-vl-7b"), Request(), machine=m)["decode"] for m in (A100, Machine(1, 2039)))
    assert (slow.bound, weak.bound) == ("memory", "compute")
    assert isclose(slow.seconds, slow.bytes / 2039e9)
    assert isclose(weak.seconds, weak.flops / 1e12)


def test_what_does_not_fit_is_said():
    assert estimate(model("qwen2-5-vl-72b"), A100, Request()).fits is False
    assert estimate(model("qwen2-5-vl-7b"), A100, Request()).fits is True
    assert estimate(model("qwen2-5-vl-7b"), Machine(312, 2039), Request()).fits is None


@pytest.mark.parametrize("name", vocabulary("models"))
def test_every_model_of_the_taxonomy_has_a_bound_on_every_machine_with_a_peak(name):
    machines = [machine_from(facts) for facts in vocabulary("hardware").values() if facts.get("peak_tflops")]
    assert len(machines) >= 13
    for machine in machines:
        found = estimate(model(name), machine, Request())
        assert [stage.name for stage in found.stages] == ["encode", "adapter", "prefill", "decode"]
        assert all(stage.seconds > 0 for stage in found.stages)


# ---- the command ---------------------------------------------------------------------------


def test_the_command_prints_the_documented_object(capsys):
    assert cli.main(["estimate", "--model", "qwen2-5-vl-72b", "--visual-tokens", "40000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_bytes_per_token"] == 327_680
    assert [stage["name"] for stage in found["stages"]] == ["prefill", "decode"]
    assert set(found["stages"][0]) == {"name", "flops", "bytes", "intensity", "seconds", "bound"}
    assert set(found) == {
        "model", "hardware", "request", "visual", "stages", "ridge", "ttft_s", "tpot_s", "total_s",
        "kv_bytes_per_token", "kv_bytes", "held_bytes", "fits",
    }  # fmt: skip


def test_the_command_prints_a_table(capsys):
    assert cli.main(["estimate", "--new-tokens", "1", "--visual-tokens", "9"]) == 0
    said = capsys.readouterr().out
    assert "57,344 B" in said
    assert "The encoder is left out" in said
    assert cli.main(["estimate", "--model", "qwen2-5-vl-72b", "--layer", "2", "--layer-keep", "0.5"]) == 0
    assert "more than a100-80gb-sxm holds" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "qwen2-5-vl-7"], "use qwen2-5-vl-7b"), (["--hardware", "apple-m1-max"], "no published 16-bit peak"),
    (["--keep", "0"], "keep=0"), (["--keep", "nan"], "keep=nan"), (["--kv-bits", "3"], "use 16, 8, 4 or 2"),
    (["--layer", "29"], "the model has 28"), (["--batch", "-1"], "batch=-1"),
    (["--visual-tokens", "0", "--text-tokens", "0"], "without a single token"),
])  # fmt: skip
def test_the_command_refuses_in_one_sentence(capsys, arguments, words):
    assert cli.main(["estimate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_estimating_imports_no_torch():
    code = "import sys; from elvi.cli import main; main(['estimate', '--json']); assert 'torch' not in sys.modules"
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
