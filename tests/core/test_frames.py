import numpy as np

from elvi.core.frames import spanned


def test_scores_span_zero_to_one_and_keep_their_proportions():
    assert spanned(np.array([-2.0, 2.0, -1.0])).tolist() == [0.0, 1.0, 0.25]


def test_equal_scores_become_zeros():
    assert spanned(np.full(3, 0.7)).tolist() == [0.0, 0.0, 0.0]
