"""Where to cut a clip in time, so that as many tokens as possible stand still between two cuts."""

from __future__ import annotations

import numpy as np


def segmentation(similar: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Segments (start, stop) that save most tokens, and how many that is, by dynamic programming.

    similar bool [T - 1, n]: whether the token at each place is alike in the next frame. A segment of w frames saves
    w - 1 tokens for every place that is alike throughout. Of equal segmentations the last segment is the shorter one.
    """
    total = len(similar) + 1
    gain = np.zeros((total, total), np.int64)  # of the segment from one frame to another, both included
    for start in range(total - 1):
        static = np.logical_and.accumulate(similar[start:]).sum(1)
        gain[start, start + 1 :] = static * np.arange(1, len(static) + 1)
    best, first = np.zeros(total + 1, np.int64), np.zeros(total + 1, np.int64)
    for stop in range(1, total + 1):
        saved = (best[:stop] + gain[:stop, stop - 1])[::-1]  # by the length of the last segment
        best[stop], first[stop] = saved.max(), stop - 1 - saved.argmax()
    spans, stop = [], total
    while stop:
        spans.append((int(first[stop]), stop))
        stop = spans[-1][0]
    return spans[::-1], int(best[total])
