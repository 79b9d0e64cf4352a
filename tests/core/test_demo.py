import json

import av
import numpy as np
import pytest

from elvi import demo
from elvi.families.load import load
from elvi.tiny.data import HELD_OUT, sample

scenes = pytest.mark.parametrize("scene", demo.SCENES, ids=lambda scene: scene.name)


@scenes
def test_shipped_clip_is_small_h264_at_two_frames_a_second(scene):
    assert scene.path.stat().st_size < 200_000
    with av.open(str(scene.path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert np.diff(demo.shipped(scene).times) == pytest.approx(0.5)


@scenes
def test_shipped_clip_shows_the_held_out_sample_it_names(scene):
    clip, original = demo.shipped(scene), sample(scene.number, scene.kind, scene.seconds)
    assert scene.number >= HELD_OUT
    assert (clip.question, clip.expected) == (original.question, original.expected)
    assert np.abs(clip.frames.astype(int) - original.frames).mean() < 8


@scenes
def test_rendering_writes_what_is_asked_and_answered(scene, tmp_path):
    demo.render(scene, tmp_path / "again.mp4")
    told = json.loads((tmp_path / "again.json").read_text())
    assert told == json.loads(scene.path.with_suffix(".json").read_text())


@pytest.mark.slow
@scenes
def test_composed_plan_answers_right_and_costs_less(scene):
    result = demo.compare(load(demo.MODEL), scene)
    report, baseline = result["report"], result["baseline"]["report"]
    assert result["answer"] == result["baseline"]["answer"] == result["expected"]
    assert len(result["plan"]) == len(scene.plan)
    assert report["kv_bytes"] < 0.5 * baseline["kv_bytes"]
    assert report["forwards"] <= baseline["forwards"]
