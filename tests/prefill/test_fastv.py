from __future__ import annotations

import copy

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.accept import Draft
from elvi.core.generate import generate, prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens, budget
from elvi.core.views import Seen
from elvi.errors import BudgetError, FitError
from elvi.prefill.fastv import FastV, last_row_score

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


@torch.inference_mode()
def prefilled(kind: str, plan: Plan) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


@torch.inference_mode()
def hidden_from(kind: str, layer: int, keys: torch.Tensor):
    """The unmodified model's own forward pass with keys [S] (bool: may be read) masked from one layer on."""
    family = random_family(kind)
    mask = (keys[None] | torch.eye(len(keys), dtype=torch.bool)).tril()[None, None]

    def masked(module, args, kwargs):
        return args, kwargs | {"attention_mask": mask}

    hooks = [part.register_forward_pre_hook(masked, with_kwargs=True) for part in family.text.layers[layer:]]
    try:
        return family.model(**family.inputs(noise_clip(), QUESTION), use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 2])
def test_dropping_at_a_layer_equals_hiding_the_same_keys_from_that_layer_on(kind, layer):
    run, logits = prefilled(kind, Plan(FastV(layer=layer, keep_ratio=0.5)))
    kept = run.store.layers[-1].row[0]
    keys = torch.zeros(len(run.layout), dtype=torch.bool).index_fill(0, kept, True)
    expected = hidden_from(kind, layer, keys)
    torch.testing.assert_close(logits, expected.logits[0, -1], rtol=1e-4, atol=1e-5)
    cached = expected.past_key_values.layers[-1].keys[0][:, kept]
    torch.testing.assert_close(run.store.layers[-1].read()[0], cached, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits(kind):
    _, logits = prefilled(kind, Plan(FastV(keep_ratio=1.0)))
    assert torch.equal(logits, prefilled(kind, Plan())[1])


@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 0.25, 0.5, 1.0])
def test_cache_is_full_below_the_layer_and_short_from_there_on(keep_ratio):
    run, _ = prefilled("qwen2_5_vl", Plan(FastV(layer=1, keep_ratio=keep_ratio)))
    visual, total = int(run.layout.visual.sum()), len(run.layout)
    short = total - visual + budget(keep_ratio, visual)
    assert run.store.lengths == [total, short, short]


@torch.inference_mode()
def test_decoding_goes_on_at_the_position_after_the_whole_prompt():
    plain, pruned = (prefilled("qwen2_5_vl", plan)[0] for plan in (Plan(), Plan(FastV(layer=1, keep_ratio=0.1))))
    assert pruned.next_position == plain.next_position
    total, lengths = len(pruned.layout), pruned.store.lengths
    for step in range(3):
        verify(pruned, 7, Draft())
        pruned.commit([0])
        assert pruned.store.lengths == [length + step + 1 for length in lengths]
        assert {int(layer.row[0, -1]) for layer in pruned.store.layers} == {total + step}
    assert pruned.next_position == plain.next_position + 3


@torch.inference_mode()
def test_score_is_the_last_row_of_eager_attention():
    family = random_family("qwen2_5_vl")
    eager = copy.deepcopy(family.model)
    eager.set_attn_implementation({"text_config": "eager"})
    weights = eager(**family.inputs(noise_clip(), QUESTION), output_attentions=True).attentions[1]
    scores = []

    class Spy(FastV):
        def reduce(self, tokens, seen):
            scores.append(last_row_score(seen, tokens.visual.nonzero()[:, 0]))
            return super().reduce(tokens, seen)

    run, _ = prefilled("qwen2_5_vl", Plan(Spy()))
    torch.testing.assert_close(scores[0], weights[0, :, -1].mean(0)[run.layout.visual], rtol=1e-4, atol=1e-7)
    best = scores[0].sort(descending=True, stable=True).indices[: budget(0.5, len(scores[0]))]
    kept = run.store.layers[2].row[0]
    assert set(kept[run.layout.visual[kept]].tolist()) == set(run.layout.row[run.layout.visual][best].tolist())


def test_prompt_without_pictures_is_left_alone():
    family = random_family("llama")
    plain, pruned = (generate(family, None, QUESTION, plan=plan, max_new_tokens=4) for plan in (Plan(), Plan(FastV())))
    assert plain.tokens == pruned.tokens
    assert plain.report.kv_bytes == pruned.report.kv_bytes


def shown(visual: list[int], device: torch.device) -> tuple[Tokens, Seen]:
    """Seven tokens, of which some show a picture, after a layer in which all attention was equal."""
    count = torch.arange(7, device=device)
    cell = torch.full((7, 3), -1, device=device).index_fill(0, torch.tensor(visual, device=device), 0)
    flat = torch.zeros(2, 7, 4, device=device)
    return Tokens(flat[0], count[None], count, cell, flat[0, :, 0] + 1, count), Seen(
        None, count, query=flat, key=flat[:1]
    )


def test_prompt_that_ends_in_a_picture_keeps_its_last_row(device):
    out = FastV(keep_ratio=0.0).reduce(*shown([4, 5, 6], device))
    assert out.row.tolist() == [0, 1, 2, 3, 6]


def test_equal_scores_keep_the_earliest_tokens(device):
    out = FastV(keep_ratio=0.5).reduce(*shown([1, 2, 3, 4], device))
    assert out.row.tolist() == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("options", [{"layer": 0}, {"keep_ratio": 1.5}, {"keep_ratio": -0.1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        FastV(**options)


def test_layer_that_the_model_lacks_is_refused():
    with pytest.raises(FitError, match="3 layers"):
        Plan(FastV(layer=3)).check(random_family("qwen2_5_vl"))


def test_chosen_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", FastV(keep_ratio=0.1))
    assert chosen >= random + 3
