"""What training feeds equals what the unmodified models are given when asked: pixels, tower, positions, turns."""

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

from elvi.tiny import data, lessons, models, sight
from elvi.tiny.tokenizer import VOCABULARY, words


@pytest.fixture(scope="module")
def qwen():
    torch.manual_seed(0)
    return models.qwen(layers=2).eval()


def seconds(n, count):
    return data.sample(n, "shape", count).frames.reshape(count, 2, 96, 96, 3)


def test_packing_equals_the_image_processor_on_a_repeated_frame(tmp_path, qwen):
    models.save(qwen, words("qwen"), tmp_path, "qwen")
    frame = seconds(0, 1)[0, 0]
    official = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(images=[frame], return_tensors="pt")
    assert official["image_grid_thw"].tolist() == [[1, 12, 12]]
    assert torch.equal(official["pixel_values"], sight.patches(np.stack([frame, frame])[None])[0])


def test_images_equal_clips_image_processor(tmp_path):
    models.save(models.clip(), words("clip"), tmp_path, "clip")
    frames = seconds(0, 2)
    official = CLIPImageProcessorPil.from_pretrained(tmp_path)(images=list(frames[:, 0]), return_tensors="pt")
    assert torch.equal(official["pixel_values"], sight.images(frames))


def test_the_batched_tower_equals_the_unmodified_one(qwen):
    visual, packed = qwen.model.visual, sight.patches(seconds(1, 3))
    with torch.no_grad():
        official = visual(packed.flatten(0, 1), grid_thw=torch.tensor([[3, 12, 12]])).pooler_output
        assert torch.equal(visual.merger(sight.tower(visual, packed).flatten(0, 1)), official)


def test_labels_name_the_four_tokens_of_a_resting_thing():
    things = data.sample_scene(8, "color", 1).seconds[0]
    table = sight.labels(things, 4).reshape(6, 6, 7)
    assert (table[..., 0] != len(data.COLORS)).sum() == 4 * len(things)
    for rank, thing in enumerate(things, start=1):
        four = table[2 * thing.row : 2 * thing.row + 2, 2 * thing.column : 2 * thing.column + 2].reshape(4, 7)
        here = [
            list(data.COLORS).index(thing.color),
            data.SHAPES.index(thing.shape),
            rank,
            0,
            thing.row,
            thing.column,
            4,
        ]
        assert (four == here).all()


def test_positions_equal_transformers_m_rope(qwen):
    asked = words("qwen").encode("in frame 2 what color is at top left ?<a>", add_special_tokens=False)
    ids = torch.tensor([[VOCABULARY["<s>"], VOCABULARY["<|vision_start|>"], *[VOCABULARY["<|video_pad|>"]] * 72]])
    ids = torch.cat([ids, torch.tensor([[VOCABULARY["<|vision_end|>"], *asked]])], 1)
    kinds = (ids == VOCABULARY["<|video_pad|>"]).int() * 2
    official, _ = qwen.model.get_rope_index(
        ids, kinds, video_grid_thw=torch.tensor([[2, 12, 12]]), second_per_grid_ts=torch.ones(1)
    )
    assert torch.equal(lessons._positions(True, 2, torch.arange(len(asked))[None]), official)


def test_packed_turns_do_not_see_each_other(qwen):
    """The loss of two turns in a row is the mean of the losses of each alone."""
    lesson = lessons.draw_lesson("test/0", 1)
    features = lambda frames: torch.zeros(len(frames), models.PER_SECOND, models.WIDTH)  # noqa: E731

    def loss(kept):
        turn = torch.where(kept, lesson.turn, -1)
        goal = torch.where(kept, lesson.goal, -100)
        part = lessons.Lesson(lesson.frames, lesson.ids, turn, lesson.offset, goal, kept.float())
        with torch.no_grad():
            return lessons.lesson_loss(qwen, features, part), (goal != -100).sum()

    qwen.set_attn_implementation({"text_config": "eager"})
    both, count = loss(lesson.turn.ge(0) & lesson.turn.le(1))
    parts = [loss(lesson.turn == number) for number in (0, 1)]
    assert count == parts[0][1] + parts[1][1]
    torch.testing.assert_close(both, sum(value * n for value, n in parts) / count, atol=1e-5, rtol=1e-5)


def test_missing_tokens_are_read_by_nobody(qwen):
    """A lesson with tokens missing is the same whatever those tokens hold, and another one than the whole."""
    lesson = lessons.draw_lesson("test/1", 2)
    seen = lessons.glimpse("test/1", lesson)
    assert torch.equal(seen, lessons.glimpse("test/1", lesson))
    assert 0 < seen.sum() < seen.numel()
    hidden = torch.randn(seen.numel(), models.WIDTH)
    other = torch.where(seen.reshape(-1, 1), hidden, torch.randn(hidden.shape))
    qwen.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        losses = [
            lessons.lesson_loss(qwen, lambda _, tokens=tokens: tokens, lesson, there)
            for tokens, there in ((hidden, seen), (other, seen), (hidden, None))
        ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_augmentation_leaves_the_scene_recognisable():
    frames = seconds(5, 8)
    from random import Random

    treated = sight.augment(frames, Random(0))
    assert treated.shape == frames.shape
    assert 1 < np.abs(treated - frames).mean() < 20
