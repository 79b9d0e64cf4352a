from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from elvi.core.partition import k_means, ward


def rows(total: int, width: int = 6, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((total, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def planted(groups: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around so many orthogonal directions in a shuffled order, and which direction each belongs to."""
    rng = np.random.default_rng(seed)
    belongs = rng.permutation(np.repeat(np.arange(groups), each))
    near = np.eye(groups)[belongs] + 0.1 * rng.standard_normal((groups * each, groups))
    return near / np.linalg.norm(near, axis=1, keepdims=True), belongs


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two labellings part rows alike, whatever the numbers."""
    return np.array_equal(one[:, None] == one, other[:, None] == other)


def spread(rows: np.ndarray, group: np.ndarray) -> float:
    return sum(np.square(part - part.mean(0)).sum() for part in (rows[group == each] for each in np.unique(group)))


@pytest.mark.parametrize("parted", [k_means, ward])
@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found(parted, seed):
    made, belongs = planted(6, 5, seed)
    assert same(parted(made, 6), belongs)


@pytest.mark.parametrize("count", [1, 2, 5, 17, 40])
@pytest.mark.parametrize("seed", range(3))
def test_ward_parts_as_scikit_learn_does(count, seed):
    made = rows(40, seed=seed)
    assert same(ward(made, count), AgglomerativeClustering(count, linkage="ward").fit_predict(made))


@pytest.mark.parametrize("seed", range(5))
def test_k_means_puts_rows_where_their_cosine_is_highest(seed):
    made = rows(60, seed=seed)
    group = k_means(made, 7)
    centre = np.stack([made[group == each].mean(0) for each in range(group.max() + 1)])
    cosine = made @ (centre / np.linalg.norm(centre, axis=1, keepdims=True)).T
    assert (cosine.argmax(1) == group).all()


def test_k_means_parts_better_than_chance():
    made = rows(60)
    drawn = [np.random.default_rng(seed).integers(7, size=60) for seed in range(20)]
    assert spread(made, k_means(made, 7)) < min(spread(made, group) for group in drawn)


@pytest.mark.parametrize("parted", [k_means, ward])
def test_groups_are_numbered_by_their_first_rows(parted):
    group = parted(rows(30), 8).tolist()
    assert sorted(set(group), key=group.index) == list(range(8))


@pytest.mark.parametrize("parted", [k_means, ward])
def test_one_group_or_a_group_of_each(parted):
    assert parted(rows(9), 1).tolist() == [0] * 9
    assert parted(rows(9), 9).tolist() == parted(rows(9), 20).tolist() == list(range(9))


def test_equal_rows_are_one_group_of_k_means_and_united_in_order_by_ward():
    assert k_means(np.tile(rows(3), (4, 1)), 5).tolist() == [0, 1, 2] * 4
    assert ward(np.ones((4, 2)), 2).tolist() == [0, 0, 0, 1]
