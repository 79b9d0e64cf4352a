"""What a chunk is likely to gain: a Gaussian process over chunk features, and expected improvement.

The process is scikit-learn's (Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 2.1).
Shapes: n observed chunks, N chunks, q features.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from elvi.errors import ElviError
from elvi.related.trait.model import Pairs, encode, loss

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

QUANTITIES = 16  # q: principal components that are kept


def features(theta: Tensor, chunks: list[Pairs], source: list[int], adapt: Pairs) -> NDArray[np.float64]:
    """[N, q + 1]: principal components of the chunks at median distance 1, and the number of the source last.

    Of each chunk: mean query and mean document embedding, share of its words that occur in `adapt`, mean loss.
    """
    known = torch.cat([adapt.query.flatten(), adapt.positive.flatten()]).unique()
    known = known[known > 0]

    def row(chunk: Pairs) -> Tensor:
        words = torch.cat([chunk.query.flatten(), chunk.positive.flatten()])
        overlap = torch.isin(words[words > 0], known).float().mean()
        means = [encode(theta, text).mean(0) for text in (chunk.query, chunk.positive)]
        return torch.cat([*means, torch.stack([overlap, loss(theta, chunk)])])

    raw = torch.stack([row(chunk) for chunk in chunks]).double()
    raw = (raw - raw.mean(0)) / raw.std(0, correction=0).clamp(min=1e-9)
    left, size, _ = torch.linalg.svd(raw, full_matrices=False)
    parts = (left * size)[:, :QUANTITIES]
    typical = torch.pdist(parts).median().clamp(min=1e-9) if len(parts) > 1 else 1.0
    return np.column_stack([(parts / typical).numpy(), source])


def posterior(
    seen: NDArray[np.float64], gains: NDArray[np.float64], asked: NDArray[np.float64], *, noise: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the gain at `asked` rows, given gains [n] of `seen` rows; the prior mean is 0.

    Kernel: a RBF(features) + b [same source]; a, b and the noise are fitted to the likelihood. With `noise` given,
    nothing is fitted: a = b = 1 and gains are taken as they are.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    except ImportError as error:
        raise ElviError("Trait needs scikit-learn, which is not installed: `pip install 'elvi[search]'`.") from error
    few = seen.shape[1] - 1
    alike = RBF([1.0] * few + [np.inf], "fixed")
    same = RBF([np.inf] * few + [0.1], "fixed")  # source numbers differ by at least ten length scales: 1 or nothing
    scale = 1.0
    if noise is None:
        scale = float(np.sqrt(np.mean(gains**2))) or 1.0
        span = (1e-3, 1e2)
        kernel = ConstantKernel(0.5, span) * alike + ConstantKernel(0.5, span) * same + WhiteKernel(0.1, (1e-4, 1e1))
        process = GaussianProcessRegressor(kernel)
    else:
        process = GaussianProcessRegressor(alike + same, alpha=max(noise, 1e-10), optimizer=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a variance at the end of its span is an answer too
        process.fit(seen, gains / scale)
    mean, spread = process.predict(asked, return_std=True)
    if noise is None:  # the noise of an observation is no part of what we do not know about a chunk
        white = process.kernel_.k2.noise_level
        spread = np.sqrt(np.clip(spread**2 - white, 0, None))
    return mean * scale, spread * scale


def expected_improvement(mean: NDArray[np.float64], spread: NDArray[np.float64], best: float = 0.0) -> NDArray:
    """E[max(gain - best, 0)] for gains that are normal with these means and standard deviations."""
    gap, wide = mean - best, np.maximum(spread, 1e-12)
    z = gap / wide
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2)))
    return np.maximum(np.where(spread > 1e-9, gap * below + wide * density, gap), 0.0)
