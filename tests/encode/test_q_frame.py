from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import native_family, noise_clip, random_family
from trained import chosen_and_random

import elvi
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.stream import Stream
from elvi.encode.q_frame import QFrame
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer

QUESTION = "what color is the star ?"


@pytest.fixture
def judged(monkeypatch):
    """Sizes of as many steps as there are logits, which stand for what the scorer would say."""

    def sizes(logits, **fields) -> list[float]:
        said = torch.tensor(logits, dtype=torch.float32)
        scorer = SimpleNamespace(products=lambda clip, text: said[clip.frames[:, 0, 0, 0].astype(int)])
        monkeypatch.setattr("elvi.encode.q_frame.frame_scorer", lambda name: scorer)
        clip = noise_clip(len(logits), still=True, size=(4, 4))
        clip.frames[:, 0, 0, 0] = np.arange(len(logits))  # so that the scorer knows which frames it is shown
        return QFrame(**fields).resize(clip, QUESTION).tolist()

    return sizes


def noise(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=total)


def test_without_noise_the_best_are_large_the_next_smaller_and_all_stand_where_they_stood(judged):
    sizes = judged([3.0, 9.0, 1.0, 7.0, 8.0, 2.0, 6.0], num_high=1, num_medium=2, num_low=2, noise=False)
    assert sizes == [0.125, 0.5, 0, 0.25, 0.25, 0, 0.125]


def test_equal_logits_without_noise_take_the_first_steps(judged):
    assert judged([5.0] * 4, num_high=1, num_medium=1, num_low=0, noise=False) == [0.5, 0.25, 0, 0]


def test_a_temperature_near_zero_leaves_noise_no_say(judged):
    logits = noise(40).tolist()
    plain = judged(logits, num_high=4, num_medium=8, num_low=8, noise=False)
    for seed in range(5):
        assert judged(logits, num_high=4, num_medium=8, num_low=8, tau=1e-6, seed=seed) == plain


def test_noise_repeats_with_its_seed_and_differs_with_another(judged):
    logits = (0.1 * noise(40)).tolist()
    first, again, other = (judged(logits, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_the_first_pick_follows_the_softmax_of_the_logits():
    logits, tau, draws = np.array([0.3, -0.4, 1.1, 0.0, 0.6]), 0.8, 5000
    p = np.exp(logits / tau) / np.exp(logits / tau).sum()
    picks = Counter(int(QFrame(tau=tau, seed=seed).ranked(logits)[0]) for seed in range(draws))
    expected = draws * p
    statistic = sum((picks[t] - expected[t]) ** 2 / expected[t] for t in range(len(p)))
    assert statistic < 18.47  # what chi-square with four degrees of freedom exceeds once in a thousand


def test_the_second_pick_is_drawn_from_what_the_first_has_left():
    logits, draws = np.log([0.5, 0.3, 0.2]), 5000
    pairs = Counter(tuple(QFrame(tau=1.0, seed=seed).ranked(logits)[:2].tolist()) for seed in range(draws))
    p = np.exp(logits)
    expected = {(a, b): draws * p[a] * p[b] / (1 - p[a]) for a in range(3) for b in range(3) if a != b}
    assert set(pairs) == set(expected)
    statistic = sum((pairs[pair] - expected[pair]) ** 2 / expected[pair] for pair in expected)
    assert statistic < 20.52  # five degrees of freedom, once in a thousand


def test_large_logits_rank_finitely():
    order = QFrame(tau=0.01).ranked(np.array([-4000.0, 4000.0, 0.0]))
    assert order.tolist() == [1, 2, 0]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 11, 40])
def test_every_step_has_one_size_and_counts_are_cut_from_the_last_level(judged, total):
    left, expected = total, {}
    for size, count in ((0.5, 1), (0.25, 2), (0.125, 8)):
        expected[size] = min(count, left)
        left -= expected[size]
    sizes = judged(noise(total).tolist())
    assert Counter(sizes) == Counter({**expected, 0.0: left})


def test_only_candidates_are_looked_at_and_they_are_spread_evenly(judged):
    sizes = judged(noise(20).tolist(), num_candidates=5, num_low=20)
    assert [step for step, size in enumerate(sizes) if size] == [0, 4, 8, 12, 16]


@torch.inference_mode()
def test_the_scorers_products_are_those_of_embeddings_that_are_not_normalised():
    clip, judge = noise_clip(2), frame_scorer("tiny-clip")
    pixels = judge.image_processor(images=[*clip.frames], return_tensors="pt")["pixel_values"]
    ids = judge.tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    frames = judge.model.visual_projection(judge.model.vision_model(pixels).pooler_output)
    text = judge.model.text_projection(judge.model.text_model(ids).pooler_output[0])
    torch.testing.assert_close(judge.products(clip, QUESTION), frames @ text, atol=1e-4, rtol=1e-5)


def encoded(family, side: int, seconds: int = 44, **fields) -> float:
    """Visual tokens of a clip of square frames of which the model gets some."""
    clip = noise_clip(seconds, size=(side, side))
    report = generate(family, clip, QUESTION, plan=Plan(QFrame(**fields)), max_new_tokens=1).report
    return report.visual_tokens["encoded"]


def test_levels_cost_as_much_as_their_equivalent_of_high_frames():
    assert encoded(native_family(), 128, num_high=4, num_medium=8, num_low=32, scale=1.0) == 8 * (128 // 16) ** 2


@pytest.mark.parametrize("side", [96, 112, 160])
@pytest.mark.parametrize("scale", [0.5, 0.75])
def test_no_level_costs_more_than_its_share_rounded_up_to_whole_tokens(side, scale):
    sides = [scale * share * side / 16 for share in (1, 1 / 2, 1 / 4)]
    bound = sum(count * max(2, np.ceil(length)) ** 2 for count, length in zip((1, 2, 8), sides))
    assert 11 * 2**2 <= encoded(native_family(), side, seconds=12, scale=scale) <= bound


def test_levels_below_the_least_size_of_a_model_are_counted_as_what_they_are_enlarged_to():
    assert encoded(random_family("qwen2_5_vl"), 96, seconds=4) == 4 * 36
    assert encoded(native_family(9), 96, seconds=4, scale=1.0) == 36 + 9 + 9 + 9


@pytest.mark.parametrize(("kind", "why"), [("llava", "picture at a size of its own"), ("llama", "size of its own")])
def test_models_of_one_size_are_refused(kind, why):
    with pytest.raises(FitError, match=why):
        Plan(QFrame()).check(random_family(kind))


def test_streams_and_missing_questions_are_refused():
    with pytest.raises(FitError, match="QFrame was asked to act in a stream"):
        Stream(native_family(), Plan(QFrame()))
    with pytest.raises(FitError, match="none was asked"):
        QFrame().resize(noise_clip(3), None)


@pytest.mark.parametrize(
    "options", [{"num_high": -1}, {"num_low": -1}, {"scale": 0.0}, {"scale": 1.5}, {"tau": 0.0}, {"num_candidates": 0}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        QFrame(**options)


def test_no_frame_at_any_level_is_refused():
    with pytest.raises(BudgetError, match="nothing would be seen"):
        QFrame(num_high=0, num_medium=0, num_low=0)


def test_the_frame_that_holds_the_needle_is_shown_at_the_high_level():
    for number in range(10_000, 10_005):
        clip = elvi.sample(number, kind="needle", seconds=16)
        steps = clip.take(range(0, len(clip), 2))
        sizes, best = QFrame().resize(steps, clip.question), frame_scorer("tiny-clip").scores(steps, clip.question)
        assert sizes[int(best.argmax())] == 0.5


def test_chosen_frames_answer_more_than_random_ones_of_as_many_tokens_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-qwen", QFrame(num_medium=1, num_low=0))
    assert chosen >= random + 3
