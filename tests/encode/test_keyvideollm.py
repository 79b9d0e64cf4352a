from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_spread

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.encode.aks import AKS
from elvi.encode.keyvideollm import KeyVideoLLM
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer

QUESTION = "what color is the star ?"


def noise(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(total)


def chosen(score: np.ndarray, **fields) -> list[int]:
    return KeyVideoLLM(**fields).keyframes(len(score), score.__getitem__).tolist()


def by_hand(score: list[float], num_frames: int, candidates: int) -> list[int]:
    """Parts one after the other, in plain Python."""
    total, count = len(score), min(len(score), max(candidates, num_frames))
    parts = [range(part * total // count, (part + 1) * total // count) for part in range(count)]
    middles = [part[(len(part) - 1) // 2] for part in parts]
    best = sorted(range(count), key=lambda part: (-score[middles[part]], part))[:num_frames]
    return sorted(min(parts[part], key=lambda frame: (-score[frame], frame)) for part in best)


@pytest.mark.parametrize("total", [9, 40, 64, 101])
@pytest.mark.parametrize(("num_frames", "candidates"), [(1, 8), (3, 8), (8, 5), (7, 64)])
def test_the_best_of_the_best_parts_is_taken(total, num_frames, candidates):
    for seed in range(3):
        score = noise(total, seed).round(1)  # with ties
        frames = chosen(score, num_frames=num_frames, candidates=candidates)
        assert frames == by_hand(score.tolist(), num_frames, candidates)
        assert len(set(frames)) == num_frames


def test_where_every_frame_is_a_candidate_the_best_are_taken_wherever_they_are():
    score, order = noise(60), np.random.default_rng(1).permutation(60)
    frames = chosen(score, num_frames=9)
    assert frames == sorted(np.argsort(-score)[:9].tolist())
    assert sorted(order[chosen(score[order], num_frames=9)].tolist()) == frames


@pytest.mark.parametrize("seed", range(5))
def test_fine_pass_never_lowers_a_score(seed):
    score = noise(200, seed)
    coarse, fine = (chosen(score, num_frames=6, candidates=20, fine=fine) for fine in (False, True))
    assert (score[fine] >= score[coarse]).all()
    assert score[fine].sum() > score[coarse].sum()


def test_every_frame_is_looked_at_once_and_few_of_a_long_clip_at_all():
    looked: list[int] = []

    def score(frames: np.ndarray) -> np.ndarray:
        looked.extend(frames.tolist())
        return noise(1000)[frames]

    KeyVideoLLM(num_frames=8, candidates=50).keyframes(1000, score)
    assert len(looked) == len(set(looked)) == 50 + 8 * 19


def test_all_frames_may_come_from_one_shot_where_aks_covers_the_clip():
    score = 0.1 * noise(64)
    score[40:50] += 1
    assert set(chosen(score, num_frames=8)) < set(range(40, 50))
    spread = AKS(num_frames=8, depth=3, gap=2.0).keyframes(score, 0, 64, 8, 0)
    assert sorted(frame // 8 for frame in spread) == list(range(8))


def test_frames_that_show_the_question_are_chosen_whatever_the_length_of_their_features(monkeypatch):
    judge, clip = frame_scorer("tiny-clip"), noise_clip(10)
    features = torch.randn(len(clip), 64, generator=torch.Generator().manual_seed(0))
    features[[3, 17]] = judge.text_feature(QUESTION) * torch.tensor([[0.01], [1000.0]])
    monkeypatch.setattr(judge, "features", lambda shown: features)
    assert KeyVideoLLM(num_frames=2).select_frames(clip, QUESTION).tolist() == [3, 17]


def test_chosen_frames_are_sorted_and_the_best_under_the_scorer():
    clip, long = noise_clip(6), QUESTION + " star" * 200
    for question in (QUESTION, long):
        scores = frame_scorer("tiny-clip").scores(clip, question)
        frames = KeyVideoLLM(num_frames=4).select_frames(clip, question)
        assert frames.tolist() == sorted(scores.topk(4).indices.tolist())


def test_short_clips_are_taken_whole_without_a_scorer():
    for num_frames in (4, 5):
        technique = KeyVideoLLM(num_frames=num_frames, scorer="nowhere")
        assert technique.select_frames(noise_clip(2), QUESTION).tolist() == [0, 1, 2, 3]


def test_only_the_chosen_steps_are_encoded():
    plan = Plan(KeyVideoLLM(num_frames=3))
    out = generate(random_family("qwen2_5_vl"), noise_clip(6), QUESTION, plan=plan, max_new_tokens=2)
    assert out.report.visual_tokens["encoded"] == 3 * 36


def test_missing_questions_and_values_out_of_range_are_refused():
    with pytest.raises(FitError, match="none was asked"):
        KeyVideoLLM(num_frames=2).select_frames(noise_clip(3), None)
    for options in ({"num_frames": 0}, {"candidates": 0}):
        with pytest.raises(BudgetError, match=next(iter(options))):
            KeyVideoLLM(**options)


@pytest.mark.parametrize("technique", [KeyVideoLLM(num_frames=2), KeyVideoLLM(num_frames=2, candidates=4)], ids=repr)
def test_chosen_frames_answer_more_than_evenly_spread_ones_on_a_trained_model(technique):
    chosen, spread = chosen_and_spread("tiny-llava", technique)
    assert chosen >= spread + 3
