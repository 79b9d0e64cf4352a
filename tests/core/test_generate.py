import pytest
import torch
from support import FAMILIES, LastSlots, clip_for, random_family

import elvi
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.errors import BudgetError, FitError

QUESTION = "what color is the star ?"


def reference(family, clip, new_tokens, question=QUESTION):
    """The unmodified model's own generation."""
    inputs = family.inputs(clip, question)
    out = family.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kind", FAMILIES)
def test_empty_plan_generates_what_the_model_generates(kind):
    family, clip = random_family(kind), clip_for(kind)
    assert generate(family, clip, QUESTION, max_new_tokens=12).tokens == reference(family, clip, 12)


def test_positions_go_on_from_the_last_token_where_a_long_clip_has_run_ahead_in_time():
    family, clip = elvi.load("tiny-qwen", device="cpu"), elvi.sample(10_000, "needle", 24)
    layout = family.prompt(clip.question, clip, family.encode(clip).slots).layout
    assert layout.position.max() > layout.position[0, -1]
    out = generate(family, clip, max_new_tokens=12)
    assert out.tokens == reference(family, clip, 12, clip.question)
    assert out.text == clip.expected


def test_generation_stops_after_the_end_token():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl")
    free = generate(family, clip, QUESTION, max_new_tokens=6, ignore_eos=True).tokens
    family.eos, before = {free[2]}, family.eos
    try:
        assert generate(family, clip, QUESTION, max_new_tokens=6).tokens == free[: free.index(free[2]) + 1]
    finally:
        family.eos = before


def test_sampling_repeats_with_its_seed_and_differs_with_another():
    family = random_family("llama")
    first, again, other = (
        generate(family, None, QUESTION, max_new_tokens=16, temperature=2.0, seed=seed, ignore_eos=True).tokens
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_report_counts_tokens_forwards_and_allocated_bytes():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl", seconds=3)
    report = generate(family, clip, QUESTION, max_new_tokens=5, ignore_eos=True).report
    assert report.visual_tokens == {"encoded": 108.0, "reduced": 108.0, "prefill_mean": 108.0, "cache_mean": 108.0}
    assert report.forwards == 4
    assert report.acceptance_length == 1.0
    assert report.kv_bytes == family.num_layers * report.prompt_tokens * 2 * 32 * 2 * 4


@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_new_tokens": 0}, BudgetError), ({"temperature": -1.0}, BudgetError), ({"question": ""}, FitError)],
)
def test_impossible_requests_are_refused(options, error):
    options = {"question": QUESTION} | options
    with pytest.raises(error):
        generate(random_family("llama"), None, **options)


def test_text_model_refuses_a_clip():
    with pytest.raises(FitError, match="reads text only"):
        generate(random_family("llama"), clip_for("qwen2_5_vl"), QUESTION)


def test_model_is_bit_identical_afterwards():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl")
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    inputs = family.inputs(clip, QUESTION)
    with torch.inference_mode():
        logits = family.model(**inputs).logits
        generate(family, clip, QUESTION, max_new_tokens=3)
        assert torch.equal(family.model(**inputs).logits, logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())


def test_report_counts_visual_tokens_left_in_the_cache():
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl", seconds=3)
    full = generate(family, clip, QUESTION, max_new_tokens=1).report
    after_picture = int(full.prompt_tokens - 1 - family.prompt(QUESTION, *_encoded(family, clip)).slots.max())
    report = generate(family, clip, QUESTION, plan=Plan(LastSlots(after_picture + 10)), max_new_tokens=1).report
    assert report.visual_tokens["cache_mean"] == 10.0
    assert report.visual_tokens["prefill_mean"] == 108.0


def _encoded(family, clip):
    clip = family.steps(clip)
    return clip, family.encode(clip).slots
