"""Clips: decoded frames with their times, from images (Pillow), videos (PyAV) or arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elvi.errors import ElviError

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


class MediaError(ElviError):
    """An image or video that cannot be read."""


@dataclass(frozen=True)
class Clip:
    """Frames in time order, with the question asked about them.

    frames: uint8 [F, H, W, 3]; times: float64 [F], seconds from the start. `still` marks separate images, which
    families encode as images and not as a video. `expected` is the right answer where it is known. scale: float [F],
    the share of its sides at which each of them is to be encoded (None: all whole); `frames` are whole nevertheless.
    """

    frames: np.ndarray
    times: np.ndarray
    question: str | None = None
    expected: str | None = None
    kind: str | None = None
    still: bool = False
    scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.frames) == 0:
            raise MediaError("The clip has no frames, so there is nothing to look at: give at least one frame.")

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, index: Sequence[int] | np.ndarray) -> Clip:
        """The clip with only these frames, in the order given."""
        index = np.asarray(index, dtype=np.int64)
        scale = None if self.scale is None else self.scale[index]
        return replace(self, frames=self.frames[index], times=self.times[index], scale=scale)

    def at(self, frames_per_second: float, max_frames: int | None = None) -> Clip:
        """Uniform sampling: the frames nearest to the ticks of the wanted rate; never more than `max_frames`."""
        if self.still or len(self) == 1:
            return self
        step = float(np.median(np.diff(self.times)))
        count = max(1, round((self.times[-1] - self.times[0] + step) * frames_per_second))
        if max_frames is not None:
            count = min(count, max_frames)
        if count >= len(self):
            return self
        return self.take(uniform(len(self), count))

    def ask(self, question: str) -> Clip:
        """The same frames with another question (whose answer is not known)."""
        return replace(self, question=question, expected=None, kind=None)


def uniform(total: int, count: int) -> np.ndarray:
    """`count` indices spread evenly over range(total): the first of each of `count` equal parts."""
    return (np.arange(count) * total) // count


def read_images(paths: Sequence[str | Path], question: str | None = None) -> Clip:
    """Images as one clip of still frames (all resized to the size of the first)."""
    from PIL import Image, UnidentifiedImageError

    images = []
    for path in map(Path, paths):
        _must_exist(path)
        try:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise MediaError(f"{path} cannot be read as an image ({error}): give a PNG, JPEG or WebP file.") from error
    if not images:
        raise MediaError("No image was given, so there is nothing to look at: name at least one file.")
    size = images[0].size
    frames = np.stack([np.asarray(image if image.size == size else image.resize(size)) for image in images])
    return Clip(frames, np.arange(len(images), dtype=np.float64), question, still=True)


def read_video(
    path: str | Path, question: str | None = None, *, frames_per_second: float | None = None, max_frames: int = 768
) -> Clip:
    """Decode a video with PyAV and sample it uniformly, keeping the timestamps of the frames taken.

    frames_per_second: sampling rate; None takes every frame up to `max_frames`, evenly spread.
    Raises MediaError when the file is missing, is no video, or holds no frame.
    """
    import av

    path = Path(path)
    _must_exist(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream, so it cannot be watched: give a video file.")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 1)
            wanted = min(frames_per_second or rate, rate)
            times, frames = [], []
            for number, frame in enumerate(container.decode(stream)):
                time = frame.time if frame.time is not None else number / rate
                if len(times) <= (time + 1e-6) * wanted:
                    times.append(time)
                    frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path} cannot be decoded as a video ({error}): give an MP4, WebM or similar file."
        ) from error
    if not frames:
        raise MediaError(f"{path} holds no video frame, so there is nothing to look at: give another file.")
    clip = Clip(np.stack(frames), np.asarray(times, dtype=np.float64), question)
    return clip if len(clip) <= max_frames else clip.take(uniform(len(clip), max_frames))


def write_video(path: str | Path, clip: Clip, *, frames_per_second: float, crf: int = 14) -> None:
    """Encode a clip as H.264 (yuv420p) at a constant rate."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(frames_per_second))
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf)}
        for image in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


def read(path: str | Path, question: str | None = None) -> Clip:
    """A clip from a file of either kind, told by its suffix."""
    return read_images([path], question) if Path(path).suffix.lower() in IMAGE_SUFFIXES else read_video(path, question)


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise MediaError(f"{path} does not exist or is not a file: check the path.")
