"""Frames of different size: what the seam hands to the model is what the model's own processor would have made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from support import LastSlots, native_family, noise_clip, random_family
from transformers import Qwen2_5_VLProcessor

import elvi
from elvi.bench.floor import twin
from elvi.core.facts import Fact
from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.stream import Stream
from elvi.errors import FitError, PlanError
from elvi.spec import whole

QUESTION = "what color is the star ?"
SHARES = (1.0, 0.0, 0.5, 1 / 3, 2 / 3)
SIZES = ((96, 96), (48, 48), (32, 32), (64, 64))  # of those that are not left out


@dataclass(frozen=True)
class Shares:
    shares: tuple[float, ...] = SHARES
    needs: ClassVar = frozenset({Fact.NATIVE_RESOLUTION})
    breaks: ClassVar = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False

    def resize(self, clip, question):
        return np.array(self.shares[: len(clip)])


@dataclass(frozen=True)
class Steps:
    steps: tuple[int, ...]
    needs: ClassVar = frozenset()
    breaks: ClassVar = frozenset()
    lossless: ClassVar[bool] = False

    def select_frames(self, clip, question):
        return np.array(self.steps)


@dataclass(frozen=True)
class PieceByPiece(LastSlots):
    count: int = 1_000_000
    streams: ClassVar[bool] = True


class Official(Qwen2_5_VLProcessor):
    """Without its video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        """Everything goes."""


def official(family, frames):
    """What transformers makes of a prompt with these images."""
    processor = Official(family.image_processor, family.tokenizer, chat_template=family.tokenizer.chat_template)
    content = [*({"type": "image"} for _ in frames), {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text], images=frames, return_tensors="pt")


def lanczos(frame, size):
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS))


def five_steps():
    """One clip, and the frames that are left of it at the sizes that are asked for."""
    clip = noise_clip(5)
    shown = [clip.frames[2 * step] for step, share in enumerate(SHARES) if share]
    return clip, [lanczos(frame, size) for frame, size in zip(shown, SIZES, strict=True)]


def ran(family, clip, *techniques) -> Run:
    run = Run(family, Plan(*techniques))
    with torch.inference_mode():
        prefill(run, clip, QUESTION)
    return run


def refused(plan, family) -> str:
    try:
        plan.check(family)
    except (PlanError, FitError) as error:
        return str(error)
    return ""


def test_prompt_pixels_and_positions_are_those_of_the_official_processor_for_as_many_images():
    family, (clip, frames) = native_family(), five_steps()
    resized = family.resized(family.steps(clip), np.array(SHARES))
    expected = official(family, frames)
    patches, grid = family.pixels(resized)
    assert torch.equal(patches, expected["pixel_values"])
    assert grid.tolist() == expected["image_grid_thw"].tolist()
    layout = ran(family, clip, Shares()).layout
    assert torch.equal(layout.token, expected["input_ids"][0])
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
    position, _ = family.model.model.get_rope_index(**{name: expected[name] for name in names})
    assert torch.equal(layout.position, position[:, 0])


def test_answers_are_those_of_the_unmodified_model_given_these_images():
    family, (clip, frames) = native_family(), five_steps()
    inputs = official(family, frames)
    expected = family.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ours = generate(family, clip, QUESTION, plan=Plan(Shares()), max_new_tokens=12)
    assert ours.tokens == expected.tolist()


def test_cells_are_a_grid_of_its_own_for_every_step():
    cell = ran(native_family(), noise_clip(5), Shares()).layout.cell
    grids = [
        torch.cartesian_prod(torch.tensor([step]), torch.arange(height // 16), torch.arange(width // 16))
        for step, (height, width) in enumerate(SIZES)
    ]
    assert torch.equal(cell[cell[:, 0] >= 0], torch.cat(grids))


@torch.inference_mode()
def test_steps_in_the_tower_see_nothing_of_each_other():
    family = native_family()
    resized = family.resized(family.steps(noise_clip(5)), np.array(SHARES))
    together = family.encode(resized, {-1, 0})
    alone = [family.encode(resized.take([step]), {-1, 0}) for step in range(len(resized))]
    torch.testing.assert_close(together.tokens.hidden, torch.cat([each.tokens.hidden for each in alone]))
    for layer in (-1, 0):
        received = torch.cat([each.tower.received(layer) for each in alone])
        torch.testing.assert_close(together.tower.received(layer), received)
    assert together.flops == pytest.approx(sum(each.flops for each in alone))


def test_what_is_counted_is_what_is_there():
    report = generate(native_family(), noise_clip(5), QUESTION, plan=Plan(Shares()), max_new_tokens=1).report
    count = sum(height * width // 256 for height, width in SIZES)
    assert report.visual_tokens == dict.fromkeys(("encoded", "reduced", "prefill_mean", "cache_mean"), float(count))


@pytest.mark.parametrize(("least", "expected"), [(4, 36 + 9 + 4 + 16), (16, 36 + 16 + 16 + 16), (36, 4 * 36)])
def test_pictures_below_the_least_size_of_the_model_are_enlarged_and_counted_so(least, expected):
    report = generate(native_family(least), noise_clip(5), QUESTION, plan=Plan(Shares()), max_new_tokens=1).report
    assert report.visual_tokens["encoded"] == expected


def test_shares_are_of_the_size_at_which_the_model_reads_a_picture():
    family, clip = native_family(), noise_clip(1, size=(480, 240))
    whole = family.pixels(clip)[1][0, 1:]
    assert whole.prod() < 480 * 240 // 64
    half = family.pixels(family.resized(clip, np.array([0.5])))[1][0, 1:]
    assert half.tolist() == (whole / 2 / 2).round().mul(2).tolist()


def test_where_nothing_is_resized_the_steps_stay_a_video():
    family, clip = native_family(), noise_clip(5)
    plain = generate(family, clip, QUESTION, max_new_tokens=8)
    whole = generate(family, clip, QUESTION, plan=Plan(Shares((1.0,) * 5)), max_new_tokens=8)
    assert whole.tokens == plain.tokens
    chosen = generate(family, clip, QUESTION, plan=Plan(Steps((1, 4))), max_new_tokens=8)
    left = generate(family, clip, QUESTION, plan=Plan(Shares((0, 1, 0, 0, 1))), max_new_tokens=8)
    assert left.tokens == chosen.tokens
    assert left.report.visual_tokens == chosen.report.visual_tokens


def test_steps_are_chosen_before_they_are_resized():
    family, clip = native_family(), noise_clip(5)
    run = ran(family, clip, Shares((0.5, 1.0)), Steps((1, 3)))
    assert run.clip is not None
    assert np.array_equal(run.clip.frames, clip.frames[[2, 6]])
    assert run.clip.scale.tolist() == [0.5, 1.0]


def test_a_clip_may_be_read_piece_by_piece():
    family, clip = native_family(), noise_clip(5)
    whole, pieces = ran(family, clip, Shares()), ran(family, clip, Shares(), PieceByPiece())
    assert torch.equal(pieces.layout.position, whole.layout.position)
    for ours, expected in zip(pieces.store.layers, whole.store.layers, strict=True):
        torch.testing.assert_close(ours.read()[1], expected.read()[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llava", "llava_onevision", "llama"])
def test_models_that_read_one_size_are_refused(kind):
    with pytest.raises(FitError, match="reads every picture at a size of its own, which is not so there"):
        Plan(Shares()).check(random_family(kind))


@pytest.mark.parametrize("technique", [Shares(), Steps((0,))])
def test_a_stream_has_no_frames_to_choose_among(technique):
    with pytest.raises(FitError, match=f"{type(technique).__name__} was asked to act in a stream"):
        Stream(native_family(), Plan(technique))


def test_only_one_technique_may_choose_sizes():
    with pytest.raises(PlanError) as error:
        Plan(Shares(), Shares()).check(native_family())
    assert error.value.culprits == ("Shares", "Shares")


@pytest.mark.parametrize("identifier", elvi.list_techniques())
def test_every_technique_works_on_frames_of_different_size_or_is_refused_by_name(identifier):
    family, parts = native_family(), whole(elvi.technique(identifier)())
    plan = Plan(Shares(), *parts)
    refusal = refused(plan, family)
    if refusal:
        assert any(type(part).__name__ in refusal for part in parts)
    else:
        assert generate(family, noise_clip(5), QUESTION, plan=plan, max_new_tokens=3).tokens


def test_a_random_twin_shows_as_many_random_steps_of_every_size():
    clip, ours = noise_clip(5), Counter(SHARES)
    draws = [twin(Shares(), seed).resize(clip.take(range(5)), QUESTION).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert all(Counter(draw) == ours for draw in draws)
