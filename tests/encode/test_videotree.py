from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from support import noise_clip, random_family
from trained import NEEDLES, Evenly, trained

import elvi
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.encode import videotree
from elvi.encode.videotree import VideoTree, typical
from elvi.errors import BudgetError, FitError
from elvi.media import Clip
from elvi.tiny.data import sample_scene

QUESTION = "what color is the star ?"


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shots(*lengths: int, seed: int = 0) -> np.ndarray:
    """Unit features of shots of so many frames, near orthogonal directions."""
    rng = np.random.default_rng(seed)
    shot = np.repeat(np.arange(len(lengths)), lengths)
    return unit(np.eye(len(lengths))[shot] + 0.05 * rng.standard_normal((len(shot), len(lengths))))


def scores(*parts: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(length, value) for value, length in parts])


def test_each_shot_of_a_clip_that_fits_nowhere_gives_one_frame():
    features = shots(5, 9, 3, 7)
    frames = VideoTree(clusters=4, max_clusters=4).leaves(features, np.zeros(24))
    starts = np.array([0, 5, 14, 17, 24])
    expected = [start + typical(features[start:stop]) for start, stop in pairwise(starts)]
    assert frames.tolist() == expected


def test_leaf_is_the_frame_nearest_to_the_mean_and_most_like_it():
    for seed in range(10):
        rows = unit(np.random.default_rng(seed).standard_normal((12, 5)))
        mean = rows.mean(0)
        nearest = min(range(12), key=lambda i: np.linalg.norm(rows[i] - mean))
        likest = max(range(12), key=lambda i: rows[i] @ mean / np.linalg.norm(mean))
        assert typical(rows) == nearest == likest


@pytest.mark.parametrize("relevant", range(4))
def test_only_the_relevant_cluster_is_opened_wherever_in_time_it_is(relevant):
    score = scores(*((float(shot == relevant), 20) for shot in range(4)))
    frames = VideoTree(clusters=4, max_clusters=4).leaves(shots(20, 20, 20, 20), score)
    counts = np.bincount(frames // 20, minlength=4).tolist()
    assert [counts[shot] for shot in range(4) if shot != relevant] == [1, 1, 1]
    assert counts[relevant] >= 10


def test_the_more_relevant_the_more_leaves():
    features = shots(20, 20)
    counts = [len(VideoTree().opened(features, np.arange(20), rating)) for rating in (1, 2, 3)]
    assert counts[:2] == [1, 1 + 4]
    assert counts[1] < counts[2] <= 1 + 4 + 16


def test_leaves_are_those_of_every_cluster_that_is_opened():
    features, members = shots(12), np.arange(12)
    tree = VideoTree(branches=3)
    expected = {typical(features)}
    part = videotree.ward(features, 3)
    for each in range(3):
        inner = members[part == each]
        expected.add(int(inner[typical(features[inner])]))
        finer = videotree.ward(features[inner], 3)
        for finest in range(finer.max() + 1):
            leaf = inner[finer == finest]
            expected.add(int(leaf[typical(features[leaf])]))
    assert set(tree.opened(features, members, 3)) == expected


def test_no_frame_is_lost_where_all_parts_are_single():
    assert sorted(set(VideoTree(branches=4).opened(shots(4), np.arange(4), 3))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "tried"),
    [
        ({}, [8, 16, 32]),
        ({"rate": 3}, [8, 24, 32]),
        ({"clusters": 2, "max_clusters": 5}, [2, 4, 5]),
        ({"max_clusters": 1000}, [8, 16, 32, 50]),
        ({"relevant": 0}, [8]),
        ({"max_clusters": 3}, [3]),
    ],
)
def test_clusters_grow_until_the_limit_where_too_few_are_relevant(options, tried, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(videotree, "k_means", lambda rows, count: seen.append(count) or np.arange(len(rows)) % count)
    VideoTree(**options).breadth(shots(25, 25), np.ones(50, dtype=int))
    assert seen == tried


def test_clusters_stop_growing_once_enough_are_relevant():
    features, score = shots(*[4] * 16), np.zeros(64)
    score[:16] = 1  # four shots of sixteen
    rating = 1 + np.minimum(2, (3 * score).astype(int))
    clusters = VideoTree().breadth(features, rating)
    assert len(clusters) == 16
    assert sorted(int(members[0]) // 4 for members, rated in clusters if rated == 3) == [0, 1, 2, 3]


def test_ratings_are_thirds_of_the_range_of_the_scores(monkeypatch):
    rated = []
    monkeypatch.setattr(
        VideoTree, "breadth", lambda self, features, rating: rated.append(rating) or [(np.arange(1), 1)]
    )
    VideoTree().leaves(shots(7), np.array([-1.0, 0.99, 1.01, 2.99, 3.01, 5.0, 0.0]) / 10)
    assert rated[0].tolist() == [1, 1, 2, 2, 3, 3, 1]


@pytest.mark.parametrize("seed", range(5))
def test_leaves_are_different_frames_in_order_the_same_in_every_run(seed):
    rng = np.random.default_rng(seed)
    features, score = unit(rng.standard_normal((70, 16))), rng.random(70)
    frames = VideoTree().leaves(features, score).tolist()
    assert frames == sorted(set(frames)) == VideoTree().leaves(features, score).tolist()
    assert 0 <= frames[0] <= frames[-1] < 70


def test_still_clips_are_one_frame():
    assert VideoTree().leaves(np.tile(unit(np.ones((1, 4))), (40, 1)), np.full(40, 0.3)).tolist() == [0]


def test_short_clips_are_taken_whole_without_a_scorer():
    technique = VideoTree(clusters=4, scorer="nowhere")
    assert technique.select_frames(noise_clip(2), QUESTION).tolist() == [0, 1, 2, 3]


def test_only_the_chosen_steps_are_encoded():
    family, clip, technique = random_family("qwen2_5_vl"), noise_clip(6), VideoTree(clusters=2, max_clusters=2)
    out = generate(family, clip, QUESTION, plan=Plan(technique), max_new_tokens=2)
    frames = technique.select_frames(family.one_per_step(family.steps(clip)), QUESTION)
    assert 2 <= len(frames) <= 6
    assert out.report.visual_tokens["encoded"] == 36 * len(frames)


@pytest.mark.parametrize("options", [{"clusters": 0}, {"rate": 1}, {"branches": 0}, {"relevant": -1}], ids=str)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        VideoTree(**options)


def test_missing_questions_are_refused():
    with pytest.raises(FitError, match="none was asked"):
        VideoTree(clusters=2).select_frames(noise_clip(3), None)


def shot_clip(number: int) -> Clip:
    """A needle clip of eight shots, each four seconds of stillness, but one second where the star is."""
    clip, scene = (draw(number, kind="needle", seconds=8) for draw in (elvi.sample, sample_scene))
    shown = ["star" in [thing.shape for thing in things] for things in scene.seconds]
    frames = np.concatenate([np.tile([2 * k, 2 * k + 1], 1 if star else 4) for k, star in enumerate(shown)])
    return replace(clip.take(frames), times=np.arange(len(frames)) / 2)


def test_the_one_short_shot_is_seen_where_evenly_spread_frames_miss_it_on_a_trained_model():
    model, technique = trained("tiny-llava"), VideoTree(max_clusters=8)
    chosen, spread = (
        sum(
            elvi.generate(model, clip, plan=Plan(each), max_new_tokens=3).text == clip.expected
            for clip in map(shot_clip, NEEDLES[::2])
        )
        for each in (technique, Evenly(technique))
    )
    assert chosen >= spread + 3
