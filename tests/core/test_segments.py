from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from elvi.core.segments import segmentation


def alike(frames: int, places: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((frames - 1, places)) < 0.7


def saved(similar: np.ndarray, spans: list[tuple[int, int]]) -> int:
    return sum(int(similar[start : stop - 1].all(0).sum()) * (stop - start - 1) for start, stop in spans)


@pytest.mark.parametrize("frames", range(1, 9))
@pytest.mark.parametrize("seed", range(5))
def test_no_other_segmentation_saves_more(frames, seed):
    similar = alike(frames, 4, seed)
    cuts = product([False, True], repeat=frames - 1)
    every = [list(pairwise([0, *(i + 1 for i in range(frames - 1) if cut[i]), frames])) for cut in cuts]
    spans, gain = segmentation(similar)
    assert spans in every
    assert saved(similar, spans) == gain == max(saved(similar, each) for each in every)


@pytest.mark.parametrize("seed", range(10))
def test_of_equal_segmentations_the_last_segment_is_the_shorter(seed):
    similar = alike(9, 2, seed)
    best = {0: (0, [])}
    for stop in range(1, 10):
        best[stop] = (-1, [])
        for start in range(stop - 1, -1, -1):
            gain = best[start][0] + saved(similar, [(start, stop)])
            if gain > best[stop][0]:
                best[stop] = (gain, [*best[start][1], (start, stop)])
    assert segmentation(similar) == best[9][::-1]


def test_a_clip_that_stands_still_is_one_segment_and_one_that_never_does_has_one_per_frame():
    assert segmentation(np.ones((4, 3), bool)) == ([(0, 5)], 12)
    assert segmentation(np.zeros((4, 3), bool)) == ([(i, i + 1) for i in range(5)], 0)
    assert segmentation(np.ones((0, 3), bool)) == ([(0, 1)], 0)
