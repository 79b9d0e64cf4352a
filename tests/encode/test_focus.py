from __future__ import annotations

import math
from statistics import fmean, pvariance

import numpy as np
import pytest
from support import noise_clip, random_family
from trained import chosen_and_spread

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.encode.focus import FOCUS, bounds, closer_look, drawn, first_look
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer

QUESTION = "what color is the star ?"


class Scorer:
    """Hands out given scores, and remembers which frames were looked at in every call."""

    def __init__(self, score: np.ndarray) -> None:
        self.score, self.calls = score, []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.calls.append(frames.tolist())
        return self.score[frames]

    @property
    def looked(self) -> list[int]:
        return [frame for call in self.calls for frame in call]


def noise(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.3, total)


def test_bound_is_that_of_the_paper():
    known = np.array([0.1, np.nan, 0.5, 0.4, np.nan, np.nan, 0.3, 0.9, 0.2])
    arms, scores = np.array_split(np.arange(9), 3), [[0.1, 0.5], [0.4], [0.3, 0.9, 0.2]]
    expected = [
        fmean(part) + math.sqrt(2 * math.log(6) * max(pvariance(part), 1e-6) / len(part)) + 3 * math.log(6) / len(part)
        for part in scores
    ]
    assert bounds(known, arms).tolist() == pytest.approx(expected)


def test_bound_grows_with_variance_and_with_doubt_and_ends_at_the_mean():
    calm, wild = [0.4, 0.5, 0.6], [0.2, 0.5, 0.8]
    known, arms = np.array([*calm, *wild, 0.5]), [np.arange(3), np.arange(3, 6), np.array([6])]
    low, high, unknown = bounds(known, arms)
    assert low < high < unknown
    many = np.full(1_000_000, 0.5)
    assert bounds(many, [np.arange(len(many))]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 16])
def test_first_look_takes_the_middle_and_others_of_the_arm(length):
    arm = np.arange(100, 100 + length)
    frames = first_look(arm, 3, np.random.default_rng(0)).tolist()
    assert frames[0] == (100 + 99 + length) // 2
    assert len(set(frames)) == len(frames) == min(3, length)
    assert set(frames) <= set(arm.tolist())


def test_closer_look_takes_midpoints_and_as_many_at_random_among_what_is_unscored():
    arm, known = np.arange(40), np.full(40, np.nan)
    known[[5, 20]] = 0.5
    frames = closer_look(arm, known, 5, np.random.default_rng(0)).tolist()
    assert frames[:3] == [15, 25, 35]  # the midpoint 5 is known already
    assert len(set(frames[3:]) - {5, 15, 20, 25, 35}) == 4


def test_few_frames_of_a_long_clip_are_scored_and_none_twice():
    scorer = Scorer(noise(30 * 3600))
    frames = FOCUS().keyframes(30 * 3600, 1 / 30, scorer)
    assert [len(call) for call in scorer.calls] == [3 * 225, 57 * 16]
    assert len(set(scorer.looked)) == len(scorer.looked) < 0.02 * 30 * 3600
    assert len(frames) == 64


@pytest.mark.parametrize("seed", range(10))
def test_a_relevant_arm_is_looked_at_closely_and_gives_the_frames(seed):
    score = noise(1600, seed)
    score[320:336] += 0.5
    scorer = Scorer(score)
    frames = FOCUS(num_frames=20, seed=seed).keyframes(1600, 1.0, scorer)
    assert sum(320 <= frame < 336 for frame in scorer.calls[1]) >= 12
    assert sum(320 <= frame < 336 for frame in frames) >= 5  # the best fifth and one of 25 equal shares
    assert sum(320 <= frame < 336 for frame in FOCUS(num_frames=20, top_ratio=1.0).keyframes(1600, 1.0, scorer)) >= 12


def test_frames_come_from_the_arms_that_were_looked_at_closely():
    scorer = Scorer(noise(1600))
    frames = FOCUS(num_frames=50, top_ratio=0.0).keyframes(1600, 1.0, scorer)
    assert {frame // 16 for frame in frames} == {frame // 16 for frame in scorer.calls[1]}


@pytest.mark.parametrize(("total", "num_frames"), [(2, 1), (7, 3), (8, 7), (30, 29), (65, 64), (500, 10), (501, 499)])
def test_the_best_scored_are_among_exactly_as_many_different_frames_as_asked_for(total, num_frames):
    scorer = Scorer(noise(total))
    frames = FOCUS(num_frames=num_frames).keyframes(total, 1.0, scorer).tolist()
    assert frames == sorted(set(frames))
    assert len(frames) == num_frames
    assert 0 <= frames[0] <= frames[-1] < total
    best = sorted(scorer.looked, key=lambda frame: -scorer.score[frame])[: int(0.2 * num_frames + 0.5)]
    assert set(best) <= set(frames)


def test_draws_follow_the_softmax_of_the_nearest_scores():
    arm, known = np.arange(10, 14), np.full(20, np.nan)
    known[[10, 13]] = 0.3, 0.5  # estimates .3 .3 .5 .5; frame 12 is taken
    taken = np.arange(20) == 12
    rng = np.random.default_rng(0)
    first = [int(drawn(arm, known, taken, 0.5, rng)[0]) for _ in range(4000)]
    weight = {10: 1.0, 11: 1.0, 13: math.exp(1 / 0.5)}
    for frame, share in weight.items():
        assert first.count(frame) / 4000 == pytest.approx(share / sum(weight.values()), abs=0.03)


def test_draws_repeat_with_the_seed_and_differ_with_it():
    one, same, other = (FOCUS(seed=seed).keyframes(900, 1.0, noise(900).__getitem__).tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_scores_are_the_cosines_between_zero_and_one(monkeypatch):
    seen = []
    monkeypatch.setattr(FOCUS, "keyframes", lambda self, total, gap, score: seen.append((gap, score)) or np.arange(1))
    clip = noise_clip(3)
    FOCUS(num_frames=2).select_frames(clip, QUESTION)
    ((gap, score),) = seen
    cosines = frame_scorer("tiny-clip").scores(clip, QUESTION)
    assert gap == 0.5
    np.testing.assert_allclose(score(np.array([4, 1])), (1 + cosines[[4, 1]].numpy()) / 2, atol=1e-6)


def test_short_clips_are_taken_whole_without_a_scorer():
    for num_frames in (4, 5):
        technique = FOCUS(num_frames=num_frames, scorer="nowhere")
        assert technique.select_frames(noise_clip(2), QUESTION).tolist() == [0, 1, 2, 3]


def test_only_the_chosen_steps_are_encoded():
    out = generate(
        random_family("qwen2_5_vl"), noise_clip(6), QUESTION, plan=Plan(FOCUS(num_frames=3)), max_new_tokens=2
    )
    assert out.report.visual_tokens["encoded"] == 3 * 36


@pytest.mark.parametrize(
    "options",
    [{"num_frames": 0}, {"pulls": 0}, {"arm_seconds": 0}, {"zoom_ratio": 1.1}, {"temperature": 0.0}, {"top_ratio": -1}],
    ids=str,
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        FOCUS(**options)


def test_missing_questions_are_refused():
    with pytest.raises(FitError, match="none was asked"):
        FOCUS(num_frames=2).select_frames(noise_clip(3), None)


def test_chosen_frames_answer_more_than_evenly_spread_ones_on_a_trained_model():
    chosen, spread = chosen_and_spread("tiny-llava", FOCUS(num_frames=4), seconds=32)
    assert chosen >= spread + 3
