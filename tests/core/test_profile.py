from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family

from elvi.bench import profile
from elvi.bench.profile import Notes, flops, left, likeness, recipe, recipes
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import ElviError
from elvi.prefill.fitprune import BUDGETS


@torch.inference_mode()
def notes_of(question: str, kind: str = "qwen2_5_vl") -> Notes:
    notes = Notes()
    prefill(Run(random_family(kind), Plan(notes)), noise_clip(), question)
    return notes


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_what_enters_the_layers_does_not_depend_on_the_question(kind):
    one, other = notes_of("what color is the star ?", kind), notes_of("how many ?", kind)
    assert len(one.entering) == 3
    for here, there in zip(one.entering, other.entering, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_likeness_is_that_of_the_models_own_hidden_states(monkeypatch):
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(profile, "sample", lambda number: noise_clip(seed=number))
    found = likeness(family, clips=2, seed=0)
    expected = torch.zeros(2)
    for number in profile.Random(0).sample(range(profile.HELD_OUT), 2):
        clip = noise_clip(seed=number)
        inputs = family.inputs(clip, clip.question)
        states = family.model(**inputs, output_hidden_states=True).hidden_states
        visual = inputs["mm_token_type_ids"][0] > 0
        for layer in (0, 1):
            pair = states[layer][0][visual], states[layer + 1][0][visual]
            expected[layer] += torch.cosine_similarity(*pair, dim=-1).mean() / 2
    torch.testing.assert_close(found[0].float(), expected, rtol=1e-4, atol=1e-5)


def attention(layers: int = 4, total: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, total, generator=generator).double() ** 3, torch.rand(
        layers, total, generator=generator
    ).double() ** 3


def left_by_hand(itself, cross, alpha: float) -> list[int]:
    """Token by token: a run grows while what would be left is still enough."""
    stays, counts = list(range(itself.shape[1])), []
    for layer in range(len(itself)):
        runs = []
        for part in (itself[layer].tolist(), cross[layer].tolist()):
            run, rest = set(), list(stays)
            for token in sorted(stays, key=lambda j: (part[j], j)):
                rest.remove(token)
                if sum(part[j] for j in rest) < (1 - alpha) * sum(part) - 1e-12:
                    break
                run.add(token)
            runs.append(run)
        stays = [token for token in stays if token not in runs[0] & runs[1]]
        counts.append(len(stays))
    return counts


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_layers_give_up_what_both_kinds_of_attention_can_spare(alpha, seed):
    itself, cross = attention(seed=seed)
    assert left(itself, cross, alpha).tolist() == left_by_hand(itself, cross, alpha)


def test_more_tolerance_never_keeps_more():
    itself, cross = attention(total=60)
    counts = torch.stack([left(itself, cross, alpha / 20) for alpha in range(21)])
    assert (counts.diff(dim=0) <= 0).all()
    assert counts[0].tolist() == [60.0] * 4


def test_without_tolerance_only_what_nobody_looks_at_goes():
    itself, cross = attention()
    itself[1, 3] = cross[1, 3] = 0
    cross[2, 5] = 0  # the picture itself still looks at this one
    assert left(itself, cross, 0.0).tolist() == [20, 19, 19, 19]


def test_recipes_meet_their_budgets_and_never_take_tokens_back():
    family = random_family("qwen2_5_vl", 5)
    samples = [attention(total=200, seed=seed) for seed in range(3)]
    for keep_ratio in BUDGETS:
        shares = recipe(family, samples, keep_ratio)
        assert (shares.diff() <= 0).all()
        spent = flops(family, samples, shares)
        assert spent <= max(keep_ratio, 1 / 5)  # the first of five layers runs on all tokens
        assert spent > keep_ratio - 0.25  # at most what one layer gives up below it


def test_recipe_of_every_budget_comes_out_of_real_clips():
    found = recipes(random_family("qwen2_5_vl"), clips=2, seed=0)
    assert found.shape == (9, 2)
    assert (found.diff(dim=0) >= 0).all()


def test_more_clips_than_there_are_and_models_without_pictures_are_refused():
    with pytest.raises(ElviError, match="ask for fewer"):
        likeness(random_family("qwen2_5_vl"), clips=10_001, seed=0)
    with pytest.raises(ElviError, match="reads text only"):
        recipes(random_family("llama"), clips=1, seed=0)
