"""The shipped models: small files, measured accuracy above the bars, and right answers on a few clips here and now."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from elvi.errors import ElviError
from elvi.media import read_video, write_video
from elvi.tiny import data, evaluate, names, path

EVERY = (
    "smollm2-drafter",
    "tiny-clip",
    "tiny-drafter-bpe",
    "tiny-llava",
    "tiny-llava-drafter",
    "tiny-qwen",
    "tiny-qwen-drafter",
)
TARGETS = ("tiny-llava", "tiny-qwen")
ANSWERS = ("shape", "color", "count", "motion", "needle", "caption_shape", "caption_color", "caption_place")


def scores(name):
    return json.loads((path(name) / "accuracy.json").read_text())["scores"]


def test_every_model_is_shipped_with_small_files_and_a_card():
    assert names() == EVERY
    for name in EVERY:
        files = {file.name: file.stat().st_size for file in path(name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "accuracy.json"} <= set(files)
        assert max(files.values()) <= 12_000_000


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ElviError, match="tiny-qwen"):
        path("huge-qwen")


@pytest.mark.parametrize("name", TARGETS)
def test_measured_accuracy_is_above_the_bars(name):
    measured = scores(name)
    assert {kind: measured[kind] for kind in ANSWERS if measured[kind] < 0.95} == {}
    assert measured["needle_32s"] >= 0.90
    assert json.loads((path(name) / "accuracy.json").read_text())["clips"] >= 200


def test_clip_ranks_the_second_asked_about_first():
    measured = scores("tiny-clip")
    assert measured["question_needle_auc"] >= 0.95
    assert measured["question_place_auc"] >= 0.9


@pytest.mark.parametrize("name", TARGETS)
def test_the_shipped_weights_answer_held_out_clips(name):
    model = AutoModelForImageTextToText.from_pretrained(path(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path(name))
    right = 0
    for kind in ("shape", "color", "count", "motion", "needle"):
        clips = [data.sample(20_000 + n, kind, 4) for n in range(8)]
        said = evaluate.answers(model, tokenizer, clips, longest=4)
        right += sum(text == clip.expected for text, clip in zip(said, clips, strict=True))
    assert right >= 36


def test_answers_survive_h264(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(path("tiny-qwen"), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path("tiny-qwen"))
    clips = [data.sample(20_100 + n, "shape", 4) for n in range(8)]
    for n, clip in enumerate(clips):
        write_video(tmp_path / f"{n}.mp4", clip, frames_per_second=2, crf=23)
    films = [replace(clip, frames=read_video(tmp_path / f"{n}.mp4").frames) for n, clip in enumerate(clips)]
    said = evaluate.answers(model, tokenizer, films, longest=4)
    assert sum(text == clip.expected for text, clip in zip(said, clips, strict=True)) >= 7
