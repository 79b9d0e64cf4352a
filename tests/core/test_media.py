import numpy as np
import pytest
from PIL import Image

from elvi.errors import ElviError
from elvi.media import Clip, read, read_images, read_video, uniform, write_video


def moving_square(frames: int = 16) -> Clip:
    pixels = np.zeros((frames, 64, 64, 3), dtype=np.uint8)
    for number in range(frames):
        pixels[number, 20:44, number : number + 16] = (200, 40, 40)
    return Clip(pixels, np.arange(frames) / 8)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_square(), frames_per_second=8)
    return path


def test_video_comes_back_with_its_times_and_nearly_its_pixels(video):
    clip = read_video(video)
    assert len(clip) == 16
    np.testing.assert_allclose(clip.times, np.arange(16) / 8, atol=1e-3)
    assert np.abs(clip.frames.astype(int) - moving_square().frames).mean() < 6


def test_video_is_sampled_uniformly_in_time(video):
    clip = read_video(video, frames_per_second=2)
    np.testing.assert_allclose(clip.times, [0.0, 0.5, 1.0, 1.5], atol=1e-3)
    assert len(read_video(video, max_frames=5)) == 5


def test_resampling_takes_the_nearest_frames():
    clip = moving_square()
    np.testing.assert_allclose(clip.at(4).times, np.arange(8) / 4)
    assert len(clip.at(100)) == 16
    assert len(clip.at(8, max_frames=3)) == 3


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (100, 1)])
def test_uniform_indices_are_ascending_and_within_range(total, count):
    index = uniform(total, count)
    assert len(index) == count
    assert index[0] == 0
    assert (np.diff(index) > 0).all()
    assert index[-1] < total


def test_images_become_still_frames_of_one_size(tmp_path):
    Image.new("RGB", (32, 24), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 128).save(tmp_path / "b.png")
    clip = read_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert clip.still
    assert clip.frames.shape == (2, 24, 32, 3)
    assert (clip.frames[0] == (255, 0, 0)).all()
    assert read(tmp_path / "a.png").still


def test_bad_files_are_named_in_one_sentence(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    (tmp_path / "notes.png").write_text("not an image")
    for attempt in (
        lambda: read_video(tmp_path / "missing.mp4"),
        lambda: read_video(text),
        lambda: read(tmp_path / "notes.png"),
        lambda: read_images([]),
        lambda: Clip(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0)),
    ):
        with pytest.raises(ElviError) as error:
            attempt()
        assert "\n" not in str(error.value)
        assert str(error.value).count(". ") == 0


@pytest.mark.slow
def test_a_long_video_is_sampled_over_its_whole_length(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (1800, 48, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "long.mp4", Clip(pixels, np.arange(1800) / 30), frames_per_second=30)
    clip = read_video(tmp_path / "long.mp4", frames_per_second=2)
    assert len(clip) == 120
    assert clip.times[-1] > 59
