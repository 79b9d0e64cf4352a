from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.longvu import LongVU, distinct, squares
from elvi.errors import BudgetError
from elvi.families.clip import frame_scorer
from elvi.families.family import grid_cells

QUESTION = "what color is the star ?"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def row(hidden: torch.Tensor, height: int, width: int, words: int = 3, seed: int = 9) -> tuple[Tokens, Seen]:
    """A prompt of one word, the frames [T, height * width, D], and so many words of a question."""
    steps, _, dim = hidden.shape
    cell = torch.cat([torch.full((1, 3), -1), grid_cells(steps, height, width), torch.full((words, 3), -1)])
    total = len(cell)
    everything = torch.cat([drawn(1, dim), hidden.flatten(0, 1), drawn(words, dim, seed=seed)])
    place = torch.arange(total)
    tokens = Tokens(everything, place[None], place, cell, torch.ones(total), place)
    return tokens, Seen(QUESTION, place[-words:])


# -- A: frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 3, 16])
def test_of_a_still_window_the_middle_frame_stays(total):
    assert np.flatnonzero(distinct(drawn(1, 20).repeat(total, 1), 0.83)).tolist() == [total // 2]


def test_unlike_frames_all_stay():
    assert distinct(drawn(16, 200), 0.83).all()


@pytest.mark.parametrize("total", [2, 7, 16])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_frames_go_whose_mean_cosine_with_the_others_reaches_the_threshold(total, threshold):
    features = drawn(1, 30) + drawn(total, 1, seed=1).abs() * drawn(total, 30, seed=2)
    expected = []
    for frame in range(total):
        others = [torch.cosine_similarity(features[frame], features[u], 0) for u in range(total) if u != frame]
        expected.append(bool(sum(others) / len(others) < threshold) or frame == total // 2)
    assert distinct(features, threshold).tolist() == expected


@pytest.mark.parametrize(("total", "kept"), [(40, [8, 24, 36]), (16, [8]), (5, [2]), (17, [8, 16])])
def test_still_clips_keep_the_middle_of_each_window(total, kept):
    clip = noise_clip(1).take(np.zeros(total, dtype=int))
    assert LongVU().select_frames(clip, None).tolist() == kept
    assert LongVU(keep_ratio=1.0, scorer="nowhere").select_frames(clip, None).tolist() == list(range(total))


def test_frames_that_differ_in_some_patches_stay_beside_still_ones(monkeypatch):
    features = drawn(1, 6, 6, 8).repeat(32, 1, 1, 1)
    features[[3, 26]] = drawn(2, 6, 6, 8, seed=1)
    clip = noise_clip(16)
    of_frames = {frames.tobytes(): feature for frames, feature in zip(clip.frames, features)}
    monkeypatch.setattr(
        frame_scorer("tiny-clip"),
        "patch_features",
        lambda part: torch.stack([of_frames[frame.tobytes()] for frame in part.frames]),
    )
    assert LongVU().select_frames(clip, QUESTION).tolist() == [3, 8, 24, 26]


def test_at_most_so_many_frames_are_left_spread_evenly():
    clip = noise_clip(10)
    technique = LongVU(frame_threshold=2.0, max_frames=5)
    assert technique.select_frames(clip, QUESTION).tolist() == [0, 4, 8, 12, 16]


# -- C: resolution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (6, 6)])
@pytest.mark.parametrize("keep_ratio", [0.45, 0.5, 0.61, 0.75, 0.99])
def test_the_frames_most_like_the_question_keep_their_tokens_and_all_others_are_pooled(height, width, keep_ratio):
    hidden = drawn(7, height * width, 16)
    tokens, seen = row(hidden, height, width)
    out = LongVU(keep_ratio=keep_ratio).reduce(tokens, seen)
    rows, columns = (torch.arange(height) // 2, torch.arange(width) // 2)
    block = (rows[:, None] * (width // 2 + 1) + columns).flatten().tolist()
    squares = [[place for place in range(height * width) if block[place] == each] for each in sorted(set(block))]
    pooled = torch.stack([hidden[:, square].mean(1) for square in squares], dim=1)  # [T, m, D]
    room, low, high = int(keep_ratio * 7 * height * width + 0.5), len(squares), height * width
    count = max(0, max(n for n in range(8) if n * high + (7 - n) * low <= room))
    products = pooled @ tokens.hidden[seen.question_index].T  # [T, m, words]
    best = products.mean((1, 2)).topk(count).indices.tolist()
    expected = torch.cat([hidden[frame] if frame in best else pooled[frame] for frame in range(7)])
    shown = out.visual
    torch.testing.assert_close(out.hidden[shown], expected)
    assert int(shown.sum()) == count * high + (7 - count) * low <= room
    assert float(out.mass.sum()) == len(tokens)
    assert (out.row.diff() > 0).all()
    assert torch.equal(out.hidden[~shown], tokens.hidden[~tokens.visual])


def test_pooled_tokens_stand_at_the_first_place_of_their_square():
    tokens, seen = row(drawn(2, 12, 8), 3, 4)
    owner = squares(tokens, 2) - 1
    assert owner[1:13].tolist() == [0, 0, 2, 2, 0, 0, 2, 2, 8, 8, 10, 10]
    assert owner[[0, -3, -2, -1]].tolist() == [-1, 24, 25, 26]
    out = LongVU(keep_ratio=0.34).reduce(tokens, seen)
    assert out.row[out.visual].tolist() == [1, 3, 9, 11, 13, 15, 21, 23]


# -- D: tokens --------------------------------------------------------------------------------------------------------


def test_of_equal_frames_the_first_of_each_chunk_stays():
    tokens, seen = row(drawn(1, 16, 8).repeat(20, 1, 1), 4, 4)
    out = LongVU(keep_ratio=0.2).reduce(tokens, seen)
    assert out.cell[out.visual, 0].tolist() == [0] * 4 + [8] * 4 + [16] * 4


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 2.0])
@pytest.mark.parametrize("room", [0, 5, 17, 26])
def test_tokens_go_that_repeat_the_first_frame_of_their_chunk_until_the_rest_fits(chunk, threshold, room):
    hidden = drawn(1, 3, 12) + 0.8 * drawn(9, 3, 12, seed=1)
    alike = []
    for t in range(9):
        for p in range(3):
            head = t // chunk * chunk
            cosine = float(torch.cosine_similarity(hidden[t, p], hidden[head, p], 0))
            alike.append(-9.0 if t == head else cosine)
    kept = [i for i in sorted(range(27), key=lambda i: (alike[i], i)) if alike[i] < threshold][:room]
    assert LongVU(chunk=chunk, token_threshold=threshold).news(hidden, room).tolist() == sorted(kept)


# -- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llava_onevision"])
@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 0.1, 0.25, 0.3, 0.6, 1.0])
@torch.inference_mode()
def test_what_is_left_always_fits(kind, keep_ratio):
    run = Run(random_family(kind), Plan(LongVU(keep_ratio=keep_ratio, frame_threshold=0.9)))
    clip, _ = prefill(run, noise_clip(6), QUESTION)
    assert len(clip) < 12 or keep_ratio == 1
    room = int(keep_ratio * run.meter.visual_tokens["encoded"] + 0.5)
    assert run.meter.layer_visual_tokens[0] <= room
    assert run.meter.layer_visual_tokens[0] == room or keep_ratio < 1


@torch.inference_mode()
def test_room_for_everything_gives_the_same_bits():
    runs = [Run(random_family("llava"), plan) for plan in (Plan(), Plan(LongVU(keep_ratio=1.0)))]
    logits = [prefill(run, noise_clip(3), QUESTION)[1] for run in runs]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    "options",
    [
        {"keep_ratio": 1.1},
        {"pool": 0},
        {"chunk": 0},
        {"frame_window": 0},
        {"token_threshold": -2},
        {"positions": "new"},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        LongVU(**options)


def test_what_is_left_answers_more_than_random_tokens_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", LongVU(keep_ratio=0.25))
    assert chosen >= random + 3
