from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random, trained

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens, budget
from elvi.errors import BudgetError, FitError
from elvi.prefill.btp import BTP, after_changes, front_half, rebalanced

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


@torch.inference_mode()
def prefilled(kind: str, plan: Plan, layers: int = 4) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind, layers), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


def picture(frames: int = 2, side: int = 4, seed: int = 0) -> Tokens:
    cell = torch.cartesian_prod(torch.arange(frames), torch.arange(side), torch.arange(side))
    count = torch.arange(len(cell))
    hidden = torch.randn(len(cell), 8, generator=torch.Generator().manual_seed(seed))
    return Tokens(hidden, count[None], count, cell, torch.ones(len(cell)), count)


def noise(total: int) -> torch.Tensor:
    return torch.rand(total, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("cosine", "stages", "layers"),
    [
        ([0.9, 0.5, 0.8, 0.4, 0.7], 2, [2, 4]),  # both dips
        ([0.9, 0.5, 0.8, 0.4, 0.7], 3, [2, 4, 5]),  # then the lowest of the others
        ([0.3, 0.4, 0.5, 0.2, 0.6], 1, [4]),
        ([0.5, 0.5, 0.5], 2, [1, 2]),  # ties: the earlier ones
    ],
)
def test_stages_begin_after_the_layers_that_change_most(cosine, stages, layers):
    assert after_changes(cosine, stages) == layers


def test_first_half_of_the_candidates_comes_first_and_the_others_fill_up():
    attention = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.7, 0.6, 0.5, 0.4])
    front = torch.arange(8) < 4
    assert rebalanced(attention, front, 4, 1.5).tolist() == [1, 3, 4, 5]  # candidates: 1 3 4 5 6 7
    assert rebalanced(attention, front, 4, 1.0).tolist() == [1, 3, 4, 5]
    assert rebalanced(attention, front, 4, 2.0).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_equal_attention_takes_the_front_first(count):
    front = torch.arange(16) < 8
    chosen = rebalanced(torch.ones(16), front, count, 2.0)
    assert int(front[chosen].sum()) == min(count, 8)


def test_every_picture_has_a_front_of_its_own():
    assert front_half(picture()).tolist() == ([True] * 8 + [False] * 8) * 2
    odd = picture(1, 1).then(picture(1, 1))
    assert front_half(replace(odd, cell=torch.tensor([[0, 0, 0], [1, 0, 0]]))).tolist() == [True, True]


def test_diversity_alone_does_not_look_at_attention():
    visual = picture()
    one, other = (BTP().balanced(visual, part, 10, 0.0).tolist() for part in (noise(32), noise(32).flip(0)))
    assert one == other
    assert len(set(one)) == 10


def test_attention_alone_without_rebalancing_is_the_plain_best():
    attention = noise(32)
    chosen = BTP(candidates=1.0).balanced(picture(), attention, 10, 1.0)
    assert sorted(chosen.tolist()) == sorted(attention.topk(10).indices.tolist())


@pytest.mark.parametrize("grid", [0.0, 0.5, 1.0])
def test_diverse_tokens_are_far_apart_first_on_the_grid_and_then_in_their_states(grid):
    visual = picture(1)
    chosen: list[int] = []
    unit = torch.nn.functional.normalize(visual.hidden, dim=-1)

    def nearest(token: int, members: list[int], on_grid: bool) -> float:
        if on_grid:
            return min(int((visual.cell[token] - visual.cell[other]).abs().sum()) for other in members)
        return min(round(1 - float(unit[token] @ unit[other]), 5) for other in members)

    for step in range(8):
        on_grid = step < budget(grid, 8)
        free = [token for token in range(16) if token not in chosen]
        members = {token: chosen or [other for other in range(16) if other != token] for token in free}
        chosen.append(max(free, key=lambda token: (nearest(token, members[token], on_grid), -token)))
    assert BTP(grid=grid).balanced(visual, noise(16), 8, 0.0).tolist() == chosen


@pytest.mark.parametrize(
    ("count", "weight", "spread"), [(10, 0.2, 8), (10, 0.9, 1), (5, 0.5, 3), (0, 0.5, 0), (31, 0.4, 19)]
)
def test_weight_says_how_many_are_chosen_for_diversity(count, weight, spread):
    visual, attention = picture(), noise(32)
    chosen = BTP().balanced(visual, attention, count, weight).tolist()
    assert len(set(chosen)) == count
    assert chosen[:spread] == BTP().balanced(visual, attention, spread, 0.0).tolist()


@pytest.mark.parametrize("keep_ratio", [0.0, 0.25, 0.5, 1.0])
def test_stages_leave_their_share(keep_ratio):
    run, _ = prefilled("qwen2_5_vl", Plan(BTP(keep_ratio=keep_ratio, table="even")))
    assert run.meter.layer_visual_tokens == [108] + [budget(keep_ratio**stage, 108) for stage in (1, 2, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_in_stages_equals_hiding_the_same_keys_in_each_layer(kind):
    run, logits = prefilled(kind, Plan(BTP(table="even")))
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits(kind):
    full = Plan(BTP(keep_ratio=1.0, table="even"))
    assert torch.equal(prefilled(kind, full)[1], prefilled(kind, Plan())[1])


def test_attention_is_that_of_the_text_after_the_picture():
    noted, weights = [], {}

    class Watch:
        """Notes the attention of every layer of the unmodified model."""

        prefill, decode, lossless = True, False, True
        needs = breaks = frozenset()

        def attend(self, view):
            weights[view.layer] = view.attention().mean(0)

    class Spy(BTP):
        def balanced(self, visual, attention, count, weight):
            noted.append(attention)
            return super().balanced(visual, attention, count, weight)

    plain, _ = prefilled("qwen2_5_vl", Plan(Watch()))
    prefilled("qwen2_5_vl", Plan(Spy(stages=1, table="even")))
    visual = plain.layout.visual.nonzero()[:, 0]
    expected = weights[1][int(visual[-1]) + 1 :][:, visual].sum(0)
    torch.testing.assert_close(noted[0], expected, rtol=1e-4, atol=1e-6)


def test_shipped_calibration_says_where_the_small_models_change():
    assert BTP().layers(trained("tiny-qwen")) == [2, 4, 9]


def test_models_without_calibration_or_with_too_few_layers_are_refused():
    with pytest.raises(FitError, match="elvi search btp --model random-qwen"):
        Plan(BTP()).check(random_family("qwen2_5_vl", 4))
    with pytest.raises(FitError, match="4 layers"):
        Plan(BTP(stages=4, table="even")).check(random_family("qwen2_5_vl", 4))


@pytest.mark.parametrize("options", [{"stages": 0}, {"keep_ratio": 1.5}, {"deep": -0.1}, {"candidates": 0.5}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        BTP(**options)


def test_kept_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", BTP(keep_ratio=0.25))
    assert chosen >= random + 3
