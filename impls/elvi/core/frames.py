"""Scores of frames."""

from __future__ import annotations

import numpy as np


def spanned(score: np.ndarray) -> np.ndarray:
    """Scores [T] stretched to 0 ... 1; zeros when they are all equal."""
    span = score.max() - score.min()
    return (score - score.min()) / span if span > 0 else np.zeros_like(score)
