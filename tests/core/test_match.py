"""Bipartite matching against lists, and what becomes of tokens that are merged by it."""

from __future__ import annotations

import pytest
import torch

from elvi.core.match import by_frame, folded, matched, means, quota
from elvi.core.tokens import Tokens


def features(total: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, 4, generator=torch.Generator().manual_seed(seed))


def by_hand(metric, count: int, penalty=None) -> list[int]:
    """Every even token proposes to the odd one most like it; the strongest proposals are taken."""
    owner, proposals = list(range(len(metric))), []
    for a in range(0, len(metric), 2):
        likeness = [(-float(torch.cosine_similarity(metric[a], metric[b], dim=0)), b) for b in range(1, len(metric), 2)]
        if likeness:
            cost, b = min(likeness)
            proposals.append((cost + (0.0 if penalty is None else float(penalty[a])), a, b))
    for _, a, b in sorted(proposals)[: min(count, len(metric) // 2)]:
        owner[a] = b
    return owner


def row_of(hidden: torch.Tensor) -> Tokens:
    count = torch.arange(len(hidden), device=hidden.device)
    cell = torch.stack([count // 6, count * 0, count % 6], dim=1)
    return Tokens(hidden, count[None], count, cell, torch.ones_like(hidden[:, 0]), count)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9])
def test_the_strongest_ties_are_taken(total, count, device):
    metric = features(total)
    assert matched(metric.to(device), count).tolist() == by_hand(metric, count)


def test_a_penalty_keeps_a_token_where_it_is(device):
    metric, penalty = features(10), torch.tensor([0.0] * 10)
    penalty[4] = 9.0
    owner = matched(metric.to(device), 4, penalty.to(device)).tolist()
    assert owner == by_hand(metric, 4, penalty)
    assert owner[4] == 4


def test_equal_tokens_go_from_the_front_into_the_first(device):
    assert matched(torch.ones(7, 2, device=device), 2).tolist() == [1, 1, 1, 3, 4, 5, 6]


def test_only_tokens_at_even_places_go():
    owner = matched(features(20), 6)
    assert ((owner != torch.arange(20)).nonzero()[:, 0] % 2 == 0).all()


@pytest.mark.parametrize("total", [1, 2, 9, 16])
def test_folding_removes_exactly_as_many_as_asked_for(total, device):
    metric, mass = features(total).to(device), torch.ones(total, device=device)
    for count in range(total + 2):
        owner = folded(metric, mass, count)
        assert len(owner.unique()) == total - min(count, total - 1)
        assert torch.equal(owner[owner], owner)


def test_folding_less_than_half_is_one_match():
    metric = features(12)
    assert torch.equal(folded(metric, torch.ones(12), 5), matched(metric, 5))


def test_between_two_folds_a_token_stands_for_the_mean_of_what_it_holds(device):
    metric, mass, penalty = features(8), torch.tensor([1.0, 2, 1, 1, 3, 1, 1, 1]), torch.arange(8.0) / 10
    first = matched(metric, 4, penalty)
    groups = [[i for i in range(8) if first[i] == each] for each in sorted(set(first.tolist()))]
    again, cost = (
        torch.stack([sum(mass[i] * part[i] for i in group) / mass[group].sum() for group in groups])
        for part in (metric, penalty)
    )
    second = by_hand(again, 2, cost)
    anchor = sorted(set(first.tolist()))
    expected = [anchor[second[anchor.index(each)]] for each in first.tolist()]
    assert folded(metric.to(device), mass.to(device), 6, penalty.to(device)).tolist() == expected


def test_means_are_weighted_by_mass():
    out = means(torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([3.0, 1.0, 1.0]), torch.tensor([0, 0, 1]))
    assert out.tolist() == [[2.0], [2.0]]


def test_frames_are_merged_each_for_itself_and_mass_and_weighted_sums_stay(device):
    tokens = row_of(features(18).to(device))
    once = by_frame(tokens, lambda frame: matched(tokens.hidden[frame], 2))
    twice = by_frame(once, lambda frame: matched(once.hidden[frame], 2))
    assert twice.cell[:, 0].bincount().tolist() == [2, 2, 2]
    for out in (once, twice):
        assert float(out.mass.sum()) == 18
        torch.testing.assert_close(out.mass @ out.hidden, tokens.hidden.sum(0))
        assert (out.row.diff() > 0).all()


def test_equal_tokens_merge_into_the_same_token(device):
    tokens = row_of(torch.full((6, 3), 0.5, device=device))
    out = by_frame(tokens, lambda frame: matched(tokens.hidden[frame], 3))
    assert torch.equal(out.hidden, torch.full((3, 3), 0.5, device=device))


def test_quotas_of_all_blocks_add_up_and_differ_by_one_at_most():
    for total, blocks in ((18, 4), (3, 5), (0, 2), (552, 24)):
        quotas = [quota(total, block, blocks) for block in range(blocks)]
        assert sum(quotas) == total
        assert max(quotas) - min(quotas) <= 1
