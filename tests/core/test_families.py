import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import FAMILIES, clip_for, noise_clip, random_family

import elvi
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.scores import WHOLE_PROMPT
from elvi.errors import ElviError, FitError
from elvi.families.llama import Llama
from elvi.families.load import families, load
from elvi.media import Clip
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"


def test_qwen_packs_two_equal_frames_as_the_official_image_processor_packs_one():
    family, clip = random_family("qwen2_5_vl"), noise_clip(3, still=True)
    images, grid = family.pixels(clip)
    twice = Clip(clip.frames.repeat(2, axis=0), np.arange(6) / 2)
    video, video_grid = family.pixels(twice)
    assert torch.equal(video, images)
    assert video_grid.tolist() == [[3, *grid[0, 1:].tolist()]]


def test_qwen_takes_half_of_a_time_step_from_each_of_its_two_frames():
    family, clip = random_family("qwen2_5_vl"), noise_clip(1)
    config = family.model.config.vision_config
    patches, _ = family.pixels(clip)
    halves = patches.view(-1, 3, config.temporal_patch_size, config.patch_size**2)
    for place in range(2):
        alone = family.pixels(clip.take([place, place]))[0].view_as(halves)
        assert torch.equal(halves[:, :, place], alone[:, :, place])


def test_qwen_positions_are_the_official_ones_for_an_even_clip():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl", seconds=4)
    layout = family.prompt(QUESTION, clip, family.encode(clip).slots).layout
    inputs = family.inputs(clip, QUESTION)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    expected, _ = family.model.model.get_rope_index(**{name: inputs[name] for name in names})
    assert torch.equal(layout.position, expected[:, 0])


def test_qwen_frames_left_out_leave_a_gap_in_time():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl", seconds=6)
    chosen = family.take_steps(clip, np.array([0, 4]))
    layout = family.prompt(QUESTION, chosen, family.encode(chosen).slots).layout
    time = layout.position[0, layout.visual]
    per_second = family.model.config.vision_config.tokens_per_second
    assert (time.unique() - time.min()).tolist() == [0, 4 * per_second]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llava_onevision"])
def test_cells_form_the_full_grid_in_raster_order(kind):
    family, clip = random_family(kind), clip_for(kind, seconds=2)
    clip = family.steps(clip)
    tokens = family.encode(clip).tokens
    steps, height, width = (tokens.cell.amax(0) + 1).tolist()
    assert steps * height * width == len(tokens)
    assert torch.equal(tokens.cell, torch.cartesian_prod(*(torch.arange(n) for n in (steps, height, width))))


def test_an_odd_frame_is_repeated_to_fill_its_time_step():
    family = random_family("qwen2_5_vl")
    clip = noise_clip(2).take([0, 1, 2])
    assert len(family.steps(clip)) == 4


@pytest.mark.parametrize(("kind", "has_cls"), [("qwen2_5_vl", False), ("llava", True), ("llava_onevision", False)])
def test_the_tower_is_seen_as_the_eager_kernel_sees_it(kind, has_cls):
    family = random_family(kind)
    clip = family.steps(clip_for(kind, seconds=2))
    encoding = family.encode(clip, {-1})
    view, count = encoding.tower, len(encoding.tokens)
    assert view.has_cls == has_cls
    assert view.received(-1).shape == (count,)
    assert view.keys(-1).shape[0] == count
    if has_cls:
        vision = family.model.model.vision_tower
        vision.config._attn_implementation, before = "eager", vision.config._attn_implementation
        weights = vision(family.pixels(clip), output_attentions=True).attentions[-1]
        vision.config._attn_implementation = before
        expected = weights.mean(1)[:, 0, 1:].flatten()
        torch.testing.assert_close(view.cls_attention(-1), expected)


@pytest.mark.parametrize("rows", [1, 7, 37])
@torch.inference_mode()
def test_attention_in_the_tower_is_the_same_however_many_rows_are_looked_at_together(rows, monkeypatch):
    family = random_family("llava")
    clip = family.steps(noise_clip(2))
    whole = family.encode(clip, {-2}).tower
    monkeypatch.setattr("elvi.families.tower.ROWS", rows)
    parts = family.encode(clip, {-2}).tower
    torch.testing.assert_close(parts.received(-2), whole.received(-2))
    torch.testing.assert_close(parts.cls_attention(-2), whole.cls_attention(-2))


@pytest.mark.parametrize(("kind", "share", "number"), [("llava", 0.3, 1), ("llava", 0.5, 2), ("qwen2_5_vl", 0.5, 1)])
@torch.inference_mode()
def test_a_share_of_the_depth_is_the_nearest_block_that_sees_whole_frames(kind, share, number):
    family = random_family(kind)
    view = family.encode(family.steps(clip_for(kind, seconds=1)), {share, share + 0.01, number}).tower
    assert torch.equal(view.received(share), view.received(number))
    assert torch.equal(view.received(share + 0.01), view.received(number))


@torch.inference_mode()
def test_joint_class_attention_and_keys_of_all_heads_are_those_of_the_full_projections():
    family, said = random_family("llava"), {}
    clip, module = family.steps(noise_clip(2)), family.model.model.vision_tower.encoder.layers[-2].self_attn
    projections = {"q": module.q_proj, "k": module.k_proj}
    hooks = [
        linear.register_forward_hook(lambda module, args, out, name=name: said.update({name: out}))
        for name, linear in projections.items()
    ]
    view = family.encode(clip, {-2}).tower
    for hook in hooks:
        hook.remove()
    expected = (said["q"][:, :1] @ said["k"].mT * said["k"].shape[-1] ** -0.5).softmax(-1)[:, 0, 1:]
    torch.testing.assert_close(view.joint_cls_attention(-2), expected.flatten())
    assert torch.equal(view.head_keys(-2).flatten(1), said["k"][:, 1:].flatten(0, 1))
    torch.testing.assert_close(view.keys(-2), view.head_keys(-2).mean(1))


class Watch:
    """Keeps everything and remembers the views."""

    needs = breaks = frozenset()
    lossless, rolling, window, inputs = True, False, WHOLE_PROMPT, True

    def keep(self, views):
        self.views = views
        return [None] * len(views)


def watched(family, clip):
    watch = Watch()
    with torch.inference_mode():
        prefill(Run(family, Plan(watch)), clip, QUESTION)
    return watch.views


def language_model(kind, **changes):
    """A random language model of a kind that has what the others lack, as the family of text models drives it."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**models.TEXT, num_hidden_layers=2, **changes)
    torch.manual_seed(0)
    return Llama(kind, getattr(transformers, f"{kind}ForCausalLM")(config), tokenizer.words("text"))


def with_query_norm():
    family = language_model("Qwen3", head_dim=32)
    for layer in family.text.layers:
        torch.nn.init.uniform_(layer.self_attn.q_norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(layer.self_attn.k_norm.weight, 0.5, 2.0)
    return family


def with_scaled_rotary():
    scaled = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    family = language_model("Llama", rope_parameters=scaled)
    assert family.text.rotary_emb.attention_scaling > 1.1
    return family


KINDS = {kind: lambda kind=kind: random_family(kind) for kind in FAMILIES}
KINDS |= {"query norm": with_query_norm, "scaled rotary": with_scaled_rotary}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_queries_from_inputs_are_those_that_attention_computes(kind):
    family = KINDS[kind]()
    for view in watched(family, clip_for(kind) if kind in FAMILIES else None):
        position = view.positions(view.query_row)
        query = family.queries(view.layer, view.inputs, position)
        torch.testing.assert_close(query, view.query, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_keys_turned_back_are_those_before_the_rotation_and_turned_again_those_of_the_cache(kind):
    family = KINDS[kind]()
    for view in watched(family, clip_for(kind) if kind in FAMILIES else None):
        attention = family.text.layers[view.layer].self_attn
        key = attention.k_proj(view.inputs).view(len(view.inputs), -1, family.head_dim)
        key = attention.k_norm(key) if hasattr(attention, "k_norm") else key
        back = family.rotate(view.keys, view.positions(view.row), back=True)
        torch.testing.assert_close(back, key.transpose(0, 1), atol=1e-5, rtol=1e-4)
        again = family.rotate(back, view.positions(view.row[0]))
        torch.testing.assert_close(again, view.keys, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_heads_may_stand_at_positions_of_their_own():
    family = random_family("qwen2_5_vl")
    x, position = torch.randn(2, 5, family.head_dim), torch.randint(0, 99, (3, 2, 5))
    each = torch.stack([family.rotate(x[h : h + 1], position[:, h])[0] for h in range(2)])
    assert torch.equal(family.rotate(x, position), each)


def test_every_family_is_found_and_no_model_type_is_claimed_twice():
    types = [name for family in families() for name in family.model_types]
    assert {"qwen2_5_vl", "llava_onevision", "llava", "llama"} <= set(types)
    assert len(types) == len(set(types))


def test_an_unsupported_family_is_refused_with_what_is_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(FitError, match=r"is a gpt2 model, a family that is not supported: use one of .*qwen2_5_vl"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["no-such-model", "nowhere/model.gguf"])
def test_a_model_that_is_not_there_is_one_sentence(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ElviError) as error:
        load(name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_importing_elvi_does_not_import_torch():
    code = "import sys, elvi; elvi.list_techniques(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "impls"})
    assert out.stdout.strip() == "False", out.stderr


def test_unknown_techniques_get_close_matches():
    with pytest.raises(ElviError, match="did you mean fastv"):
        elvi.technique("fast-v")


@pytest.mark.slow
def test_a_gguf_language_model_generates_what_transformers_generates():
    family = load("smollm2-135m")
    question = "What is the capital of France?"
    out = elvi.generate(family, None, question, max_new_tokens=16)
    inputs = family.inputs(None, question)
    expected = family.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert out.tokens == expected[0, inputs["input_ids"].shape[1] :].tolist()
    assert "Paris" in out.text
