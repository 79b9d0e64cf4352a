from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.frames import spanned
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.encode.aks import AKS
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> str:
    """Folder of a freshly initialised CLIP model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    models.save(models.clip(), tokenizer.words("clip"), folder, "clip")
    return str(folder)


def chosen(score, **fields) -> list[int]:
    """What AKS takes of frames with these scores."""
    technique = AKS(**fields)
    score = spanned(np.asarray(score, dtype=np.float64))
    return sorted(technique.keyframes(score, 0, len(score), technique.num_frames, 0).tolist())


def noise(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(total)


def test_depth_zero_takes_the_best_frames():
    score = noise(40)
    assert chosen(score, num_frames=7, depth=0) == sorted(np.argsort(-score)[:7].tolist())


@pytest.mark.parametrize(("num_frames", "depth"), [(8, 3), (16, 2), (32, 5)])
def test_endless_gap_takes_the_best_of_each_of_equal_bins(num_frames, depth):
    score, bins = noise(64), 2**depth
    parts = score.reshape(bins, -1)
    best = np.argsort(-parts, axis=1)[:, : num_frames // bins] + np.arange(bins)[:, None] * (64 // bins)
    assert chosen(score, num_frames=num_frames, depth=depth, gap=float("inf")) == sorted(best.ravel().tolist())


def test_sharp_peak_takes_all_when_the_gap_is_small_and_one_share_when_it_is_large():
    score = np.zeros(64)
    score[20:28] = 1.0
    assert chosen(score, num_frames=8, gap=0.3) == list(range(20, 28))
    assert len([frame for frame in chosen(score, num_frames=8, depth=3, gap=1.0) if 20 <= frame < 28]) == 2


def test_flat_stretches_are_split_until_they_vary_enough():
    score = np.r_[np.zeros(16), np.tile([0.0, 1.0], 8)]
    assert chosen(score, num_frames=4, gap=0.3, depth=1, deviation=10.0) == [0, 1, 17, 19]
    assert chosen(score, num_frames=4, gap=0.3, depth=1) == [17, 19, 21, 23]


@pytest.mark.parametrize("total", [1, 2, 5, 17, 64, 101])
@pytest.mark.parametrize("num_frames", [1, 3, 10, 16, 63])
def test_exactly_as_many_different_frames_as_asked_for(total, num_frames):
    for seed in range(5):
        if num_frames <= total:
            frames = chosen(noise(total, seed), num_frames=num_frames)
            assert len(set(frames)) == len(frames) == num_frames
            assert 0 <= frames[0] <= frames[-1] < total


def test_a_single_frame_is_the_best_one():
    score = noise(37)
    assert chosen(score, num_frames=1) == [int(score.argmax())]


def test_scores_count_only_up_to_scale_and_offset():
    score = noise(50)
    assert chosen(score * 0.25 - 7, num_frames=9) == chosen(score, num_frames=9)


def test_equal_scores_cover_the_clip():
    frames = chosen(np.full(64, 0.3), num_frames=8)
    assert [frame // 8 for frame in frames] == list(range(8))


def test_short_clips_are_taken_whole_without_a_scorer():
    clip = noise_clip(2)
    for num_frames in (4, 5):
        assert AKS(num_frames=num_frames, scorer="nowhere").select_frames(clip, QUESTION).tolist() == [0, 1, 2, 3]


@torch.inference_mode()
def test_scores_are_cosines_of_the_unmodified_model(scorer):
    clip, judge = noise_clip(2), frame_scorer(scorer)
    pixels = judge.image_processor(images=[*clip.frames], return_tensors="pt")["pixel_values"]
    ids = judge.tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    out = judge.model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(judge.scores(clip, QUESTION) * judge.model.logit_scale.exp(), out.logits_per_image[:, 0])


def test_long_questions_are_cut_to_what_the_scorer_reads(scorer):
    scores = frame_scorer(scorer).scores(noise_clip(1), "star " * 200)
    assert scores.isfinite().all()


@pytest.mark.parametrize(("kind", "per_step"), [("qwen2_5_vl", 36), ("llava", 36), ("llava_onevision", 16)])
def test_only_the_chosen_steps_are_encoded(kind, per_step, scorer):
    plan = Plan(AKS(num_frames=3, scorer=scorer))
    out = generate(random_family(kind), noise_clip(6), QUESTION, plan=plan, max_new_tokens=2)
    assert out.report.visual_tokens["encoded"] == 3 * per_step


def test_chosen_frames_are_sorted_and_the_best_under_the_scorer(scorer):
    clip = noise_clip(6)
    scores = frame_scorer(scorer).scores(clip, QUESTION)
    frames = AKS(num_frames=4, depth=0, scorer=scorer).select_frames(clip, QUESTION)
    assert frames.tolist() == sorted(scores.topk(4).indices.tolist())


def test_missing_question_and_wrong_scorers_are_refused(tmp_path):
    clip = noise_clip(3)
    with pytest.raises(FitError, match="none was asked"):
        AKS(num_frames=2).select_frames(clip, None)
    with pytest.raises(FitError, match="cannot be loaded"):
        AKS(num_frames=2, scorer=str(tmp_path / "nothing")).select_frames(clip, QUESTION)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FitError, match="llama model"):
        AKS(num_frames=2, scorer=str(tmp_path)).select_frames(clip, QUESTION)


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"depth": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        AKS(**options)


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_chosen_frames_answer_more_than_random_ones_on_a_trained_model(name):
    chosen, random = chosen_and_random(name, AKS(num_frames=2))
    assert chosen >= random + 3
