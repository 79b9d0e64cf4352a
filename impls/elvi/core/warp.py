"""Dynamic time warping of two token sequences over the edit distance of their strings.

Strings come as int32 code points in a row with the place where each token's begin (`ends` [V + 1]), sequences as ids.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def warp(codes_s, ends_s, s, codes_t, ends_t, t, band):  # pragma: no cover - compiled
    """The path of least cost as two int64 arrays; empty where a side is empty."""
    k, m = len(s), len(t)
    if k == 0 or m == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    width = max(band, abs(k - m))
    cost = np.full((k + 1, m + 1), np.int32(1 << 30))
    cost[0, 0] = 0
    for i in range(1, k + 1):
        a = codes_s[ends_s[s[i - 1]] : ends_s[s[i - 1] + 1]]
        for j in range(max(1, i - width), min(m, i + width) + 1):
            b = codes_t[ends_t[t[j - 1]] : ends_t[t[j - 1] + 1]]
            before = min(cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1])
            cost[i, j] = before + levenshtein(a, b)
    return _back(cost, k, m)


@njit(cache=True)
def _back(cost, i, j):  # pragma: no cover - compiled
    """From the far corner to the first pair; ties prefer the diagonal, then a step in s, then one in t."""
    rows, columns = np.empty(i + j, np.int64), np.empty(i + j, np.int64)
    count = 0
    while True:
        rows[count], columns[count] = i - 1, j - 1
        count += 1
        if i == 1 and j == 1:
            break
        best = min(cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1])
        if cost[i - 1, j - 1] == best:
            i, j = i - 1, j - 1
        elif cost[i - 1, j] == best:
            i -= 1
        else:
            j -= 1
    return rows[:count][::-1], columns[:count][::-1]


@njit(cache=True)
def levenshtein(a, b):  # pragma: no cover - compiled
    """Edit distance of two strings of code points, a leading space left out unless that leaves nothing of either."""
    x, y = int(len(a) > 0 and a[0] == 32), int(len(b) > 0 and b[0] == 32)
    if len(a) > x and len(b) > y:
        a, b = a[x:], b[y:]
    row = np.arange(len(b) + 1)
    for i in range(len(a)):
        corner, row[0] = row[0], i + 1
        for j in range(len(b)):
            change = corner + (a[i] != b[j])
            corner = row[j + 1]
            row[j + 1] = min(change, row[j + 1] + 1, row[j] + 1)
    return row[len(b)]
