"""The generator of tiny clips: the same bytes everywhere, answers that follow from the drawing, held-out keys kept."""

import hashlib
from random import Random

import numpy as np
import pytest

from elvi.errors import ElviError
from elvi.tiny import data, lessons, relevance, sight


def test_sample_seven_is_the_same_bytes_on_every_machine():
    clip = data.sample(7)
    assert (clip.question, clip.expected) == ("in frame 1 what color is at middle right ?", "red")
    assert hashlib.sha256(clip.frames.tobytes()).hexdigest()[:16] == "c763a03e86f0b9fd"


def test_kinds_take_turns_and_a_second_is_two_raw_frames():
    assert [data.sample(n).kind for n in range(6)] == list(data.KINDS)
    clip = data.sample(3, seconds=5)
    assert clip.frames.shape == (10, 96, 96, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.times.tolist() == [k / 2 for k in range(10)]


@pytest.mark.parametrize("kind", data.KINDS)
def test_the_answer_follows_from_the_scene(kind):
    for n in range(20):
        clip = data.sample(n, kind)
        assert (clip.question, clip.expected) in data.sample_scene(n, kind).turns(kind)


def test_count_is_what_was_drawn():
    clip, scene = data.sample(2), data.sample_scene(2)
    second = int(clip.question.split()[2])
    assert int(clip.expected) == len(scene.seconds[second - 1])


def test_the_thing_asked_about_has_its_colour_in_the_pixels():
    clip, scene = data.sample(10_001, "color", 4), data.sample_scene(10_001, "color", 4)
    second = int(clip.question.split()[2]) - 1
    thing = next(t for t in scene.seconds[second] if clip.question.endswith(f"at {t.place} ?"))
    x, y = thing.at[0]
    assert abs(clip.frames[2 * second, y, x].astype(int) - data.COLORS[clip.expected]).max() <= 15


def test_only_needle_clips_hold_a_star_and_only_one():
    for n in range(60):
        stars = [t for things in data.sample_scene(n).seconds for t in things if t.shape == "star"]
        assert len(stars) == (data.KINDS[n % 6] == "needle")


@pytest.mark.parametrize("n", range(8))
def test_the_mover_crosses_the_board_the_way_the_answer_says(n):
    scene = data.sample_scene(n, "motion")
    mine = [
        t for things in scene.seconds for t in things if (t.shape, t.color) == (scene.mover.shape, scene.mover.color)
    ]
    course = np.array([at for thing in mine for at in thing.at])
    way = np.array(data.DIRECTIONS[scene.direction])
    assert len(mine) == len(scene.seconds)
    assert ((np.diff(course, axis=0) @ way) > 0).all()
    assert (course[-1] - course[0]) @ way == 64


def test_captions_have_at_least_sixty_words():
    assert min(len(data.sample(n, "caption").expected.split()) for n in range(40)) >= 60


def test_the_bar_tells_the_second():
    frames = data.sample(4, "needle", 32).frames
    assert [(frame[-1] == 200).all(-1).sum() for frame in frames[::2]] == [3 * k for k in range(1, 33)]


@pytest.mark.parametrize(
    "given", [{"kind": "smell"}, {"kind": "motion", "seconds": 1}, {"kind": "shape", "seconds": 33}]
)
def test_an_impossible_sample_is_refused_in_one_sentence(given):
    with pytest.raises(ElviError, match=r"^[^.]*[:].*\.$"):
        data.sample(0, **given)


def test_training_never_draws_a_held_out_key(monkeypatch):
    keys = []

    def noted(n, stream, kind, seconds=None):
        keys.append((n, str(stream)))
        return draw(n, stream, kind, seconds)

    draw = data.draw
    monkeypatch.setattr(lessons, "draw", noted)
    monkeypatch.setattr(sight, "draw", noted)
    lessons.draw_lesson("0/tiny-qwen/5", 2)
    sight.seconds_batch("0/tower/5", 40)
    assert len(keys) == lessons.clips(2) + 40
    assert all(n < data.HELD_OUT and stream != "0" for n, stream in keys)


def test_a_text_fits_only_the_seconds_that_show_what_it_needs():
    scene = data.sample_scene(10_004, "needle", 8)
    texts = relevance.texts(
        Random(0), scene, next(k for k, s in enumerate(scene.seconds) if "star" in [t.shape for t in s])
    )
    question = texts[-1]
    assert question.words == "what color is the star ?"
    assert sum(question.fits(scene, second) for second in range(8)) == 1
