"""Integer budgets: exact sums within limits, in proportion, ties to the lower index."""

import pytest
import torch
from kvsupport import prefilled
from support import FAMILIES, random_family

from elvi.core.budgets import best_of_all, clipped, over_heads, pyramid, split
from elvi.core.scores import (
    WHOLE_PROMPT,
    attention,
    best_and_last,
    check_groups,
    chunk_keys,
    chunk_score,
    chunks,
    column_sums,
    row_entropy,
)
from elvi.errors import FitError


@pytest.mark.parametrize("seed", range(30))
def test_a_split_adds_up_exactly_and_respects_its_limits(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(7, generator=generator) ** 4
    most, least = torch.randint(5, 40, (7,), generator=generator), torch.randint(0, 5, (7,), generator=generator)
    for total in (0, 3, 50, 120, 1000):
        budgets = split(weight, total, most, least)
        assert budgets.sum() == min(max(total, int(least.sum())), int(most.sum()))
        assert (least <= budgets).all()
        assert (budgets <= most).all()


def test_a_split_is_proportional_where_nothing_is_capped():
    assert split(torch.tensor([1.0, 2.0, 5.0]), 80, 100).tolist() == [10, 20, 50]
    assert split(torch.tensor([1.0, 2.0, 5.0]), 80, 40).tolist() == [13, 27, 40]
    assert split(torch.tensor([1.0, 1.0, 1.0]), 5, 9).tolist() == [2, 2, 1]


def test_a_split_without_weights_is_even():
    assert split(torch.zeros(4), 10, 100).tolist() == [3, 3, 2, 2]
    assert split(torch.tensor([1.0, 0.0, 0.0]), 10, 4).tolist() == [4, 3, 3]


@pytest.mark.parametrize("seed", range(30))
def test_clipped_parts_are_in_proportion_wherever_no_limit_holds_them(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(7, generator=generator) ** 6
    most, least = torch.randint(20, 60, (7,), generator=generator), torch.randint(0, 9, (7,), generator=generator)
    for total in (0, 60, 120, 1000):
        budgets = clipped(weight, total, most, least)
        assert budgets.sum() == min(max(total, int(least.sum())), int(most.sum()))
        assert ((least <= budgets) & (budgets <= most)).all()
        worth = budgets / weight.double()
        free = (budgets > least) & (budgets < most)
        for part in free.nonzero()[:, 0]:  # a row more or less is rounding
            one = 1.01 / float(weight[part])
            slack = one + 1.01 / weight.double()
            assert ((worth - worth[part] <= slack) | (budgets == least)).all()
            assert ((worth[part] - worth <= slack) | (budgets == most)).all()


def test_clipping_takes_from_the_others_what_it_adds():
    assert clipped(torch.tensor([0.01, 1.0, 2.0]), 90, 100, 3).tolist() == [3, 29, 58]
    assert clipped(torch.tensor([1.0, 1.0, 8.0]), 90, 50, 3).tolist() == [20, 20, 50]
    assert clipped(torch.tensor([0.0, 0.0, 1.0]), 90, 50, 3).tolist() == [20, 20, 50]
    assert clipped(torch.tensor([1.0, 1.0]), 90, 50, 10).tolist() == [45, 45]


@pytest.mark.parametrize("beta", [1, 4, 20])
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_a_pyramid_falls_and_keeps_its_mean(layers, beta):
    budgets = pyramid(layers, layers * 40, 1000, beta)
    assert budgets.sum() == layers * 40
    assert (budgets.diff() <= 0).all()
    if beta == 1:
        assert budgets.tolist() == [40] * layers


def test_a_pyramid_on_a_short_prompt_keeps_all_of_it_at_the_bottom():
    budgets = pyramid(5, 200, 60, 20)
    assert budgets[0] == 60
    assert budgets.sum() == 200


def test_a_pyramid_gives_no_layer_more_than_it_holds():
    assert pyramid(3, 60, torch.tensor([100, 15, 10]), 20).tolist() == [44, 15, 1]
    assert pyramid(3, 90, torch.tensor([20, 100, 100]), 20).tolist() == [20, 30, 40]


def test_the_best_of_all_heads_keep_the_most_mass_that_can_be_kept():
    score = torch.rand(4, 30, generator=torch.Generator().manual_seed(0)) ** 3
    counts = best_of_all(score, 40)
    kept = sum(row.topk(int(count)).values.sum() for row, count in zip(score, counts))
    assert counts.sum() == 40
    assert kept >= sum(row.topk(10).values.sum() for row in score)
    assert best_of_all(torch.ones(2, 3), 4).tolist() == [3, 1]


@pytest.mark.parametrize("seed", range(20))
def test_budgets_over_heads_add_up_and_keep_at_least_the_mass_of_equal_ones(seed):
    score = torch.rand(4, 30, generator=torch.Generator().manual_seed(seed)) ** (1 + seed % 5)
    kept = {}
    for floor_ratio in (0.0, 0.25, 1.0):
        budgets = over_heads(score, 11, floor_ratio, normalise=False)
        assert budgets.sum() == 44
        assert budgets.min() >= int(floor_ratio * 11)
        kept[floor_ratio] = sum(float(row.topk(int(count)).values.sum()) for row, count in zip(score, budgets))
        assert over_heads(score, 11, floor_ratio, normalise=True).sum() == 44
    assert kept[0.0] >= kept[0.25] - 1e-6 >= kept[1.0] - 2e-6


def test_a_head_without_score_gets_its_floor_only():
    score = torch.stack([torch.zeros(20), torch.ones(20), torch.ones(20)])
    for normalise in (False, True):
        assert over_heads(score, 5, 0.0, normalise=normalise)[0] == 0
        assert over_heads(score, 5, 0.4, normalise=normalise)[0] == 2


def test_scaling_moves_slots_from_spread_heads_to_sharp_ones():
    score = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.28, 0.26, 0.24, 0.22]])
    assert over_heads(score, 2, 0.0, normalise=False).tolist() == [2, 2]
    assert over_heads(score, 2, 0.0, normalise=True).tolist() == [3, 1]


def test_no_slots_to_share_out_are_no_budgets():
    assert over_heads(torch.rand(3, 5), 0, 0.2, normalise=True).tolist() == [0, 0, 0]
    assert over_heads(torch.empty(3, 0), 0, 0.2, normalise=True).tolist() == [0, 0, 0]


def test_the_best_slots_join_the_last_ones_and_a_small_count_leaves_the_latest(device):
    score = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]], device=device)
    assert best_and_last(score, 5, 7).tolist() == [[1, 3, 4, 5, 6], [0, 1, 4, 5, 6]]
    assert best_and_last(score, 3, 7).tolist() == [[4, 5, 6]] * 2
    assert best_and_last(score, 2, 7).tolist() == [[5, 6]] * 2
    assert best_and_last(score, 0, 7).shape == (2, 0)


def test_heads_that_do_not_share_keys_evenly_are_refused_in_one_sentence(monkeypatch):
    for kind in FAMILIES:
        check_groups(object(), random_family(kind))
    monkeypatch.setattr(random_family("llama").config, "num_key_value_heads", 4)
    with pytest.raises(FitError, match="random-llama, whose 6 query heads do not share 4 key-value heads evenly"):
        check_groups(object(), random_family("llama"))


class All:
    needs = breaks = frozenset()
    lossless, rolling, window = True, False, WHOLE_PROMPT

    def keep(self, views):
        self.views = views
        return [None] * len(views)


@torch.inference_mode()
def test_column_sums_and_entropies_in_chunks_are_those_of_the_whole_matrix(monkeypatch):
    everything = All()
    prefilled(everything)
    monkeypatch.setattr("elvi.core.scores.CHUNK", 7)
    for view in everything.views:
        weights = view.attention()
        assert len(list(chunks(view))) > 3
        torch.testing.assert_close(attention(view, slice(-5, None)), weights[:, -5:], atol=1e-5, rtol=1e-4)
        columns = weights.sum(1).view(len(view.keys), -1, weights.shape[-1]).mean(1)
        torch.testing.assert_close(column_sums(view), columns, atol=1e-5, rtol=1e-4)
        entropy = torch.special.entr(weights).sum(-1)
        torch.testing.assert_close(row_entropy(view), entropy, atol=1e-5, rtol=1e-4)


def test_chunks_score_as_the_mean_of_their_keys_or_no_less_than_the_best_of_them():
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(24, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    products = (query @ keys.mT).unflatten(-1, (4, 6))  # 4 chunks of 6
    mean, bound = (chunk_score(query, chunk_keys(keys, 6, kind)) for kind in ("mean", "envelope"))
    torch.testing.assert_close(mean, products.mean(-1))
    assert (bound >= products.amax(-1) - 1e-5).all()
    exact = chunk_score(query, chunk_keys(keys, 1, "envelope"))
    torch.testing.assert_close(exact, query @ keys.mT)
    assert chunk_score(query, chunk_keys(keys[:0], 6, "mean")).shape == (2, 5, 0)
