"""TimeChat-Online's rule against loops over places, streams against whole clips, and dropping against hiding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from streamsupport import layers, watched
from support import hiding, noise_clip, random_family
from trained import chosen_and_random
from videosupport import noise, shown

from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError, FitError
from elvi.media import Clip
from elvi.prefill.timechat_online import TimeChatOnline, patches

QUESTION = "what color is the star ?"


def reduced(hidden: torch.Tensor, clip: Clip | None = None, **fields) -> Tokens:
    return TimeChatOnline(**fields).reduce(
        shown(hidden, rows=2), Seen(None, torch.empty(0, dtype=torch.long), clip=clip)
    )


def drifting() -> torch.Tensor:
    """Six frames of ten tokens that change a little, and some of them now and then a lot."""
    steps = noise(6, 10, 8)
    steps[1:] *= torch.where(noise(5, 10, 1, seed=1) > 0, 2.5, 0.3)
    return steps.cumsum(0)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("reference", ["frame", "kept"])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_what_is_too_much_like_the_token_before_it_is_dropped(reference, threshold, device):
    hidden, kept = drifting(), [0, *range(1, 11)]
    before = list(hidden[0])
    for frame in range(1, 6):
        for place in range(10):
            stays = cosine(hidden[frame, place], before[place]) <= threshold
            kept += [1 + 10 * frame + place] * stays
            if stays or reference == "frame":
                before[place] = hidden[frame, place]
    out = reduced(hidden.to(device), threshold=threshold, reference=reference)
    assert out.row.tolist() == [*kept, 61]
    assert 12 < len(out) < 62
    assert torch.equal(out.hidden.cpu(), shown(hidden, rows=2).hidden[out.row.cpu()])


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
def test_a_fixed_share_of_every_later_frame_stays_that_which_differs_most(ratio):
    hidden, kept = drifting(), [*range(11)]
    for frame in range(1, 6):
        alike = [cosine(hidden[frame - 1, place], hidden[frame, place]) for place in range(10)]
        kept += sorted(
            1 + 10 * frame + place for place in sorted(range(10), key=lambda i: alike[i])[: round(10 * ratio)]
        )
    assert reduced(hidden, keep_ratio=ratio).row.tolist() == [*kept, 61]


@pytest.mark.parametrize("reference", ["frame", "kept"])
def test_a_video_that_stands_still_is_its_first_frame(reference):
    assert reduced(noise(1, 6, 8).repeat(5, 1, 1), reference=reference).row.tolist() == [*range(7), 31]


def test_a_slow_change_disappears_unless_it_is_compared_with_what_stayed():
    angle = torch.linspace(0, torch.pi, 31)
    fade = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None].expand(31, 2, 2).contiguous()
    assert len(reduced(fade, threshold=0.9)) == 2 + 2
    assert reduced(fade, threshold=0.9, reference="kept").cell[1:-1:2, 0].tolist() == [0, 5, 10, 15, 20, 25, 30]


def test_what_stays_of_a_frame_does_not_depend_on_later_ones():
    hidden, other = drifting(), drifting()
    other[4:] = noise(2, 10, 8, seed=5)
    rows = [[row for row in reduced(each, reference="kept").row.tolist() if row <= 40] for each in (hidden, other)]
    assert rows[0] == rows[1]


def test_threshold_one_drops_nothing_not_even_what_is_exactly_equal():
    assert len(reduced(noise(1, 6, 8).repeat(5, 1, 1), threshold=1.0)) == 32


def test_pixels_are_compared_patch_by_patch_over_the_frames_of_a_step():
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)  # three steps of 2 x 3 tokens
    frames[2:4, :4, 4:8] = frames[:2, :4, 4:8] // 2 + 64
    clip, kept = Clip(frames, np.arange(6) / 2), [*range(7)]
    for step in (1, 2):
        for place in range(6):
            y, x = place // 3 * 4, place % 3 * 4
            now, before = (frames[2 * t : 2 * t + 2, y : y + 4, x : x + 4] / 255 for t in (step, step - 1))
            kept += [1 + 6 * step + place] * int(1 - np.abs(now - before).mean() <= 0.75)
    out = reduced(noise(3, 6, 8), clip, method="pixels", threshold=0.75)
    assert out.row.tolist() == [*kept, 19]
    assert 8 not in kept
    assert len(kept) > 13


def test_patches_of_frames_that_the_grid_does_not_divide_are_still_one_for_each_token():
    clip = Clip(np.full((2, 7, 5, 3), 51, np.uint8), np.arange(2) / 2)
    assert patches(clip, 1, 2, 3).shape[:2] == (1, 6)
    assert patches(clip, 2, 9, 9).unique().tolist() == pytest.approx([0.2])


@torch.inference_mode()
def prefilled(kind: str, *techniques, clip: Clip | None = None) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*techniques))
    return run, prefill(run, clip or noise_clip(), QUESTION)[1]


@pytest.mark.parametrize("method", ["features", "pixels"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_dropping_equals_hiding_and_moves_no_position(kind, method):
    run, logits = prefilled(kind, TimeChatOnline(keep_ratio=0.4, method=method))
    plain, _ = prefilled(kind)
    torch.testing.assert_close(logits, hiding(run), atol=1e-4, rtol=1e-4)
    assert run.store.lengths[0] < plain.store.lengths[0]
    assert torch.equal(run.layout.position, plain.layout.position)
    assert run.next_position == plain.next_position


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_threshold_one_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, TimeChatOnline(threshold=1.0))[1], prefilled(kind)[1])


def test_decoding_goes_on_from_the_full_length_of_a_clip_that_stands_still():
    clip = noise_clip()
    still = Clip(clip.frames[:1].repeat(6, 0), clip.times, QUESTION)
    run, _ = prefilled("qwen2_5_vl", TimeChatOnline(), clip=still)
    plain, _ = prefilled("qwen2_5_vl", clip=still)
    assert int(run.layout.visual[run.store.layers[0].row[0]].sum()) == 36
    assert run.next_position == plain.next_position
    plan = Plan(TimeChatOnline())
    assert len(generate(random_family("qwen2_5_vl"), still, plan=plan, max_new_tokens=4, ignore_eos=True).tokens) == 4


@pytest.mark.parametrize("reference", ["frame", "kept"])
def test_a_stream_is_read_as_the_whole_clip_is_but_for_the_last_row_of_each_piece(reference):
    technique = TimeChatOnline(keep_ratio=0.3, reference=reference)
    stream, (run, _) = watched(technique, 4), prefilled("qwen2_5_vl", technique, clip=noise_clip(4))
    piece = set(run.layout.visual.nonzero()[:, 0].tolist()[35::36])
    seen, whole = (set(store[0].row[0].tolist()) for store in (layers(stream), run.store.layers))
    assert seen - piece == {row for row in whole - piece if row <= max(piece)}
    assert piece <= seen
    assert stream.ask(QUESTION, max_new_tokens=2).tokens


def test_pixels_are_refused_in_a_stream():
    with pytest.raises(FitError, match="use method=features"):
        watched(TimeChatOnline(method="pixels"), 2)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"threshold": 2}, {"method": "sound"}, {"reference": "last"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        TimeChatOnline(**options)


def test_what_changes_answers_more_than_random_tokens_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", TimeChatOnline())
    assert chosen >= random + 3
