"""FOCUS: frame-optimistic confidence upper-bound selection, keyframes without scoring every frame.

Zhu et al., ICLR 2026, arXiv:2510.27280. Stretches of a long clip are the arms of a bandit; to score a frame against the
question is to pull one. A few frames of each arm are scored; of N in all, the n of an arm have mean m and variance v,

    u = m + sqrt(2 ln(N) v / n) + 3 ln(N) / n  (a bound of Bernstein's kind on what it may be worth),

and the most promising arms are looked at closely. Of the k frames wanted, a fifth are the best of all scored ones; the
others are shared out evenly among those arms and drawn with p ~ exp(e / temperature), where e is the score of the
nearest scored frame of the arm, stretched to 0 ... 1.

Where we differ:
- The scorer is a CLIP model whose cosines c count as (1 + c) / 2, BLIP's matching head in the released code.
- What the closer look finds counts for u and e; the released code forgets to add it to the arms. As it lowers the last
  term of u below that of all other arms, frames come from the arms looked at closely (R), the highest u first.
- Frames are drawn by adding Gumbel noise to e / temperature and taking the highest: the same law, and never too few.
  What an arm cannot hold goes to the next best: exactly min(k, T) frames come back.
- All frames belong to an arm, and a closer look stays inside of it; the released code leaves out the tail. Its least
  distance between frames is less than the second that lies between them here, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from elvi.core.facts import Fact
from elvi.core.frames import spanned
from elvi.core.tokens import budget
from elvi.errors import check_asked, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator

    from elvi.media import Clip

FEWEST_ARMS, FEWEST_ZOOMED, MOST_DRAWN_FROM, LEAST_VARIANCE = 8, 4, 32, 1e-6


@dataclass(frozen=True)
class FOCUS:
    """Choose time steps that fit the question, scoring few of them.

    num_frames: k; arm_seconds: length of an arm; pulls: time steps of an arm that are scored at first; zoom_ratio:
    share of the arms looked at closely, at one step in `fine_seconds`; top_ratio: share of k that are the best scored;
    temperature and seed: of what is drawn; scorer: CLIP folder, hub id or tiny-clip.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    num_frames: int = 64
    arm_seconds: float = 16.0
    pulls: int = 3
    zoom_ratio: float = 0.25
    fine_seconds: float = 1.0
    top_ratio: float = 0.2
    temperature: float = 0.06
    seed: int = 42
    scorer: str = "tiny-clip"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"num_frames": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("num_frames", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        for field, low in (("num_frames", 1), ("pulls", 1), ("seed", 0)):
            check_range(self, field, low, float("inf"))
        for field in ("arm_seconds", "fine_seconds", "temperature"):
            check_range(self, field, 0.0, float("inf"), open_low=True)
        for field in ("zoom_ratio", "top_ratio"):
            check_range(self, field, 0.0, 1.0)

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        if len(clip) <= self.num_frames:
            return np.arange(len(clip))
        check_asked(self, question)
        judge, gap = frame_scorer(self.scorer), float(np.median(np.diff(clip.times))) or 1.0
        return self.keyframes(len(clip), gap, lambda look: (1 + judge.scores(clip.take(look), question).numpy()) / 2)

    def keyframes(self, total: int, seconds: float, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Ascending index [k] of `total` > k frames so many seconds apart; `score` looks at the frames [n] given."""
        rng, known = np.random.default_rng(self.seed), np.full(total, np.nan)
        count = min(total, max(FEWEST_ARMS, ceil(total * seconds / self.arm_seconds)))
        arms = np.array_split(np.arange(total), count)
        look(known, [first_look(arm, self.pulls, rng) for arm in arms], score)
        order = np.argsort(-bounds(known, arms), kind="stable")
        zoomed = order[: max(FEWEST_ZOOMED, ceil(self.zoom_ratio * count))]
        stride = max(1, round(self.fine_seconds / seconds))
        look(known, [closer_look(arms[arm], known, stride, rng) for arm in zoomed], score)
        order = np.lexsort((-bounds(known, arms), ~np.isin(np.arange(count), zoomed)))
        return self._taken(known, [arms[arm] for arm in order], min(len(zoomed), MOST_DRAWN_FROM), rng)

    def _taken(self, known: np.ndarray, arms: list[np.ndarray], sharing: int, rng: Generator) -> np.ndarray:
        """The best scored frames, and others drawn from arms, best first, of which so many share what is wanted."""
        taken, scored = np.zeros(len(known), dtype=bool), np.flatnonzero(~np.isnan(known))
        best = budget(self.top_ratio, min(self.num_frames, len(scored)))
        taken[scored[np.argsort(-known[scored], kind="stable")[:best]]] = True
        each, more = divmod(self.num_frames - best, sharing)
        quotas = [each + (place < more) for place in range(sharing)]
        for arm, quota in [*zip(arms, quotas), *((arm, self.num_frames) for arm in arms)]:
            left = self.num_frames - int(taken.sum())
            taken[drawn(arm, known, taken, self.temperature, rng)[: min(quota, left)]] = True
        return np.flatnonzero(taken)


def look(known: np.ndarray, frames: list[np.ndarray], score: Callable[[np.ndarray], np.ndarray]) -> None:
    """Score frames, all in one go, and note it."""
    index = np.concatenate(frames)
    if len(index):
        known[index] = score(index)


def first_look(arm: np.ndarray, pulls: int, rng: Generator) -> np.ndarray:
    """The middle of an arm and other frames of it at random, so many together."""
    others = np.delete(arm, (len(arm) - 1) // 2)
    return np.append(arm[(len(arm) - 1) // 2], rng.choice(others, min(pulls - 1, len(others)), replace=False))


def closer_look(arm: np.ndarray, known: np.ndarray, stride: int, rng: Generator) -> np.ndarray:
    """Unscored frames, one for each `stride` of an arm: half of them evenly spread, the others at random."""
    half, odd = divmod(max(1, len(arm) // stride), 2)
    spread = arm[np.arange(1, 2 * half, 2) * len(arm) // max(1, 2 * half)]
    spread = spread[np.isnan(known[spread])]
    others = np.setdiff1d(arm[np.isnan(known[arm])], spread)
    return np.append(spread, rng.choice(others, min(half + odd, len(others)), replace=False))


def bounds(known: np.ndarray, arms: list[np.ndarray]) -> np.ndarray:
    """u of every arm, from the scores [T] known so far (not a number: not scored)."""
    scores = [known[arm][~np.isnan(known[arm])] for arm in arms]
    number = np.array([len(part) for part in scores])
    mean, variance = (np.array([measure(part) for part in scores]) for measure in (np.mean, np.var))
    doubt = log(number.sum()) / number
    return mean + np.sqrt(2 * doubt * np.maximum(variance, LEAST_VARIANCE)) + 3 * doubt


def drawn(arm: np.ndarray, known: np.ndarray, taken: np.ndarray, temperature: float, rng: Generator) -> np.ndarray:
    """The frames of an arm that are not taken, drawn one after the other: high estimates are likely to come first."""
    scored, free = arm[~np.isnan(known[arm])], arm[~taken[arm]]
    if not len(free):
        return free
    estimate = known[scored[np.abs(scored - free[:, None]).argmin(1)]]
    return free[np.argsort(-(spanned(estimate) / temperature + rng.gumbel(size=len(free))), kind="stable")]
