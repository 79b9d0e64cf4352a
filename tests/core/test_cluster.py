from __future__ import annotations

import math

import pytest
import torch

from elvi.core.cluster import density_peaks, distances, peak_score, scan_denser, scan_denser_reference, to_denser


def features(total: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed))


def tied(total: int) -> torch.Tensor:
    """Few distinct rows, each many times."""
    return features(5)[torch.randint(5, (total,), generator=torch.Generator().manual_seed(1))]


def by_hand(rows: list[list[float]], count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """The definition in plain Python and double precision."""
    total = len(rows)
    d = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    k = min(neighbours, total)
    rho = [-sum(x * x for x in sorted(line)[:k]) / k for line in d]
    order = sorted(range(total), key=lambda i: (-rho[i], i))
    delta = {order[0]: max(map(max, d))}
    for place, i in enumerate(order[1:], start=1):
        delta[i] = min(d[i][j] for j in order[:place])
    score = [rho[i] + (math.log(delta[i]) if delta[i] else -math.inf) for i in range(total)]
    centre = sorted(sorted(range(total), key=lambda i: (-score[i], i))[:count])
    group = [min(range(count), key=lambda c: (d[i][centre[c]], c)) for i in range(total)]
    for place, i in enumerate(centre):
        group[i] = place
    return centre, group


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("neighbours", [1, 4, 7, 100])
def test_centres_and_clusters_are_those_of_the_definition(count, neighbours, device):
    rows = features(40)
    centre, group = density_peaks(rows.to(device), count, neighbours)
    assert (centre.tolist(), group.tolist()) == by_hand(rows.double().tolist(), count, neighbours)


@pytest.mark.parametrize("rows", [features(70), tied(50), torch.ones(9, 3)], ids=["random", "tied", "equal"])
def test_kernel_and_torch_scan_the_same(rows):
    distance = distances(rows)
    density = -distance.square().mean(-1)
    assert scan_denser(distance.numpy(), density.numpy()).tolist() == scan_denser_reference(distance, density).tolist()


def test_of_equal_rows_the_earlier_is_denser_and_the_later_no_centre():
    rows = torch.cat([features(6), features(6)])
    assert density_peaks(rows, 6, 3)[0].tolist() == list(range(6))
    assert density_peaks(torch.ones(5, 3), 2, 2)[0].tolist() == [0, 1]


def test_equal_rows_are_at_distance_zero_however_long_they_are():
    rows = (1000 * features(300, 64)).repeat(2, 1)
    assert (distances(rows).diagonal(300) == 0).all()


def test_separate_clumps_get_a_centre_each_and_keep_their_rows():
    middle = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    rows = torch.cat([place + features(10, 2, seed) for seed, place in enumerate(middle)])
    centre, group = density_peaks(rows, 3, 4)
    assert (centre // 10).tolist() == [0, 1, 2]
    assert group.tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_far_rows_are_told_apart_though_their_density_is_too_small_for_a_float():
    near, far = density_peaks(features(30), 8, 4), density_peaks(features(30) * 1000, 8, 4)
    assert torch.isfinite(peak_score(distances(features(30) * 1000), 4)).all()
    assert len(far[0]) == len(near[0]) == 8
    assert far[0].tolist() != list(range(8))


def test_all_rows_are_centres_when_as_many_are_asked_for():
    centre, group = density_peaks(features(9), 9, 4)
    assert centre.tolist() == group.tolist() == list(range(9))


def test_no_rows_and_no_centres_are_fine(device):
    assert [len(part) for part in density_peaks(torch.empty(0, 4, device=device), 0, 3)] == [0, 0]
    assert density_peaks(features(4).to(device), 0, 3)[1].tolist() == [-1] * 4


def test_the_densest_row_is_as_far_from_denser_ones_as_any_two_are():
    distance = distances(torch.tensor([[0.0], [1.0], [5.0]]))
    assert to_denser(distance, torch.tensor([3.0, 2.0, 1.0])).tolist() == [5.0, 1.0, 4.0]
