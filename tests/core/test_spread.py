from __future__ import annotations

import pytest
import torch

from elvi.core.spread import farthest, similarity, spread, spread_reference

NONE = torch.empty(0, dtype=torch.long)


def features(total: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed))


def by_hand(cosine: torch.Tensor, count: int) -> list[int]:
    """The definition in plain Python: the farthest from everything chosen, all distances looked up anew."""
    total = len(cosine)
    similar = cosine.tolist()
    nearest = [max(similar[i][j] for i in range(total) if i != j) for j in range(total)]
    chosen = [nearest.index(min(nearest))]
    while len(chosen) < count:
        free = [j for j in range(total) if j not in chosen]
        chosen.append(min(free, key=lambda j: (max(similar[i][j] for i in chosen), j)))
    return chosen


def tied(total: int) -> torch.Tensor:
    """Few distinct directions, each many times, so that most distances are equal."""
    return features(5)[torch.randint(5, (total,), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("hidden", [features(90), tied(60), torch.ones(30, 4)], ids=["random", "tied", "equal"])
@pytest.mark.parametrize("count", [1, 2, 17, 29])
def test_kernel_and_torch_choose_what_the_definition_says(hidden, count, device):
    cosine = similarity(hidden)
    expected = by_hand(cosine, count)
    assert spread(cosine.numpy(), count, NONE.numpy()).tolist() == expected
    assert spread_reference(cosine.to(device), count, NONE.to(device)).tolist() == expected


def test_kernel_and_torch_agree_on_many_tokens():
    for hidden in (features(700, 64), tied(700), features(700, 64).round()):
        cosine = similarity(hidden)
        assert spread(cosine.numpy(), 200, NONE.numpy()).tolist() == spread_reference(cosine, 200, NONE).tolist()


@pytest.mark.parametrize("hidden", [features(40), tied(40)], ids=["random", "tied"])
@pytest.mark.parametrize("given", [[3], [31, 0, 7]])
def test_what_is_given_counts_as_chosen(hidden, given, device):
    cosine = similarity(hidden)
    expected, chosen = [], [*given]
    while len(expected) < 12:
        free = [j for j in range(40) if j not in chosen]
        expected.append(min(free, key=lambda j: (max(float(cosine[i, j]) for i in chosen), j)))
        chosen.append(expected[-1])
    place = torch.tensor(given)
    assert spread(cosine.numpy(), 12, place.numpy()).tolist() == expected
    assert spread_reference(cosine.to(device), 12, place.to(device)).tolist() == expected


def test_nothing_more_is_chosen_when_nothing_is_asked_for(device):
    cosine = similarity(features(5)).to(device)
    assert farthest(cosine, 0).tolist() == farthest(cosine, 0, torch.tensor([2], device=device)).tolist() == []
