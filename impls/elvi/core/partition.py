"""Rows parted into as many groups as asked for: k-means by angle, and Ward's hierarchy.

Both start without chance and break ties by the lowest index, so that results are the same in every run. Groups are
numbered by their first row.
"""

from __future__ import annotations

import numpy as np
import torch

from elvi.core.spread import farthest, similarity

ROUNDS = 15  # of k-means, at most


def k_means(rows: np.ndarray, count: int) -> np.ndarray:
    """Group [N] of unit rows [N, D], each in that whose mean it has the highest cosine with, after at most 15 rounds.

    The first means are rows as far apart as can be (greedy max-min). There are fewer groups than `count` where a group
    loses all its rows, as with fewer different ones.
    """
    group = np.arange(len(rows))
    if count >= len(rows):
        return group
    centre = rows[farthest(similarity(torch.from_numpy(rows)), count).numpy()]
    for _ in range(ROUNDS):
        last, group = group, (rows @ centre.T).argmax(1)
        if np.array_equal(group, last):
            break
        total = np.stack([rows[group == each].sum(0) for each in np.unique(group)])
        centre = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        group = np.unique(group, return_inverse=True)[1]
    return by_first_row(group)


def ward(rows: np.ndarray, count: int) -> np.ndarray:
    """Group [N] of rows [N, D]: of all groups, the two whose union adds least to the squared distances from the means
    are united, until `count` are left (Ward, Journal of the American Statistical Association 1963)."""
    total = len(rows)
    mean, size, group = rows.astype(float), np.ones(total), np.arange(total)
    cost = np.full((total, total), np.inf)  # of uniting a row's group with a later one's
    for first in range(total - 1):
        cost[first, first + 1 :] = increase(mean, size, first)[first + 1 :]
    for _ in range(total - max(1, count)):
        one, other = divmod(int(cost.argmin()), total)
        mean[one] = (size[one] * mean[one] + size[other] * mean[other]) / (size[one] + size[other])
        size[one] += size[other]
        group[group == other] = one
        cost[other], cost[:, other] = np.inf, np.inf
        fresh = np.where(np.isin(np.arange(total), group), increase(mean, size, one), np.inf)
        cost[:one, one], cost[one, one + 1 :] = fresh[:one], fresh[one + 1 :]
    return by_first_row(group)


def increase(mean: np.ndarray, size: np.ndarray, one: int) -> np.ndarray:
    """What uniting a group with each other [N] adds to the sum of squared distances from the means."""
    return size[one] * size / (size[one] + size) * np.square(mean - mean[one]).sum(1)


def by_first_row(group: np.ndarray) -> np.ndarray:
    """The same groups [N], numbered from 0 in the order of their first rows."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    return first.argsort().argsort()[number]
