from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.spread import similarity
from elvi.errors import BudgetError
from elvi.prefill.divprune import DivPrune, choose

QUESTION = "what color is the star ?"


def features(total: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_greedy_spread_is_at_least_half_of_the_best_possible(seed):
    hidden = features(9, 3, seed)
    unit = torch.nn.functional.normalize(hidden, dim=-1)
    chord = torch.cdist(unit, unit)  # a metric, unlike 1 - cosine, and of the same order

    def spread_of(subset) -> float:
        return min(float(chord[i, j]) for i, j in combinations(subset, 2))

    best = max(spread_of(subset) for subset in combinations(range(9), 4))
    assert spread_of(choose(hidden, 4).tolist()) >= best / 2 - 1e-6


def test_distance_of_each_choice_to_the_ones_before_never_grows():
    hidden = features(64)
    order = choose(hidden, 40)
    cosine = similarity(hidden)
    distance = [float((1 - cosine[order[:step]][:, order[step]]).min()) for step in range(1, 40)]
    assert all(later <= earlier for earlier, later in pairwise(distance))


def test_duplicates_are_chosen_once_each():
    assert sorted(choose(torch.ones(5, 3), 3).tolist()) == [0, 1, 2]


def test_zero_tokens_are_far_from_all_and_no_trap():
    hidden = torch.cat([features(1).repeat(6, 1), torch.zeros(1, 16)])
    assert choose(hidden, 2).tolist() == [6, 0]


def test_scaling_a_token_changes_nothing():
    hidden = features(50)
    scale = 2.0 ** torch.arange(50).remainder(7)[:, None]
    assert torch.equal(choose(hidden * scale, 12), choose(hidden, 12))


def test_reordering_tokens_reorders_the_choice():
    hidden = features(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(order[choose(hidden[order], 12)], choose(hidden, 12))


@torch.inference_mode()
def prefilled(plan: Plan) -> tuple[Run, torch.Tensor]:
    run = Run(random_family("qwen2_5_vl"), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


def test_keeping_all_gives_the_same_bits():
    assert torch.equal(prefilled(Plan(DivPrune(keep_ratio=1.0)))[1], prefilled(Plan())[1])


@torch.inference_mode()
def test_kept_tokens_are_the_distant_ones_at_their_own_rows():
    family = random_family("qwen2_5_vl")
    visual = family.encode(family.steps(noise_clip())).tokens
    run, _ = prefilled(Plan(DivPrune(keep_ratio=0.25)))
    row = run.store.layers[0].row[0]
    first = int(run.layout.visual.nonzero()[0])
    expected = choose(visual.hidden, 27).sort().values + first
    assert row[run.layout.visual[row]].tolist() == expected.tolist()
    assert run.store.lengths == [len(run.layout) - 108 + 27] * 3


def test_empty_budget_leaves_the_text():
    run, _ = prefilled(Plan(DivPrune(keep_ratio=0.0)))
    assert run.store.layers[0].row[0].tolist() == run.layout.row[~run.layout.visual].tolist()


def test_ratio_out_of_range_is_refused():
    with pytest.raises(BudgetError, match="keep_ratio"):
        DivPrune(keep_ratio=1.2)


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_chosen_tokens_answer_more_than_random_ones_on_a_trained_model(name):
    chosen, random = chosen_and_random(name, DivPrune())
    assert chosen >= random + 3
