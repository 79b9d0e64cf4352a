from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.cluster import density_peaks
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen, TowerView
from elvi.errors import BudgetError
from elvi.prefill.fastvid import FastVID, cut, slots

QUESTION = "what color is the star ?"


def shown(frames: int, length: int, device="cpu", seed: int = 0) -> tuple[Tokens, Seen]:
    """One text token, then frames of random tokens; the tower's attention is random, too."""
    generator, total = torch.Generator().manual_seed(seed), frames * length
    hidden = torch.randn(total + 1, 8, generator=generator).to(device)
    count = torch.arange(total + 1, device=device)
    cell = torch.stack([torch.div(count - 1, length, rounding_mode="floor"), count, count], dim=1)
    cell[0] = -1
    tower = TowerView(False, mean={-1: torch.rand(total + 1, generator=generator).to(device)})
    return Tokens(hidden, count[None], count, cell, torch.ones(total + 1, device=device), count), Seen(
        None, count, tower
    )


def by_hand(tokens: Tokens, seen: Seen, technique: FastVID, spans, quota: int, context: int) -> dict[int, torch.Tensor]:
    """The paper's steps token by token: what is left, by row."""
    length = (len(tokens) - 1) // int(tokens.cell[-1, 0] + 1)
    score, out, rest = seen.tower.received(-1), {0: tokens.hidden[0]}, {}
    for frame in range((len(tokens) - 1) // length):
        rows = range(1 + frame * length, 1 + (frame + 1) * length)
        salient = sorted(rows, key=lambda row: (-float(score[row]), row))[: quota - context]
        out |= {row: tokens.hidden[row] for row in salient}
        rest[frame] = [row for row in rows if row not in salient]
    for start, stop in spans:
        anchor_frames = [frame for frame in range(start, stop) if (stop - 1 - frame) % technique.stride == 0]
        each = context * (stop - start) // len(anchor_frames)
        members = [row for frame in range(start, stop) for row in rest[frame]]
        for frame in anchor_frames:
            peaks = density_peaks(tokens.hidden[rest[frame]], each, 4)[0].tolist()
            anchors = [rest[frame][peak] for peak in peaks]
            joined: dict[int, list[int]] = {anchor: [] for anchor in anchors}
            for row in members:
                alike = [float(torch.cosine_similarity(tokens.hidden[row], tokens.hidden[a], dim=0)) for a in anchors]
                joined[anchors[alike.index(max(alike))]].append(row)
            for anchor, rows in joined.items():
                weight = max(1 / (len(rows) + 1), technique.anchor_weight)
                out[anchor] = weight * tokens.hidden[anchor] + (1 - weight) * tokens.hidden[rows].mean(0)
    return out


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_what_is_left_is_what_the_paper_says(beta, device):
    tokens, seen = shown(6, 10)
    technique = FastVID(keep_ratio=0.4, segments=2, threshold=-1.0, context_ratio=0.5, stride=2, anchor_weight=beta)
    spans = cut(tokens.hidden[1:].view(6, 10, 8).mean(1), 2, -1.0)
    expected = by_hand(tokens, seen, technique, spans, quota=4, context=2)
    out = technique.reduce(*shown(6, 10, device))
    assert out.row.tolist() == sorted(expected)
    torch.testing.assert_close(out.hidden.cpu(), torch.stack([expected[row] for row in sorted(expected)]))


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
@pytest.mark.parametrize(("ratio", "context"), [(0.1, 0.4), (0.5, 0.5), (0.9, 1.0), (0.5, 0.0), (0.0, 0.4)])
def test_frames_times_their_budget_are_left_whatever_the_segments(frames, ratio, context):
    out = FastVID(keep_ratio=ratio, context_ratio=context, segments=3).reduce(*shown(frames, 10))
    assert len(out) == 1 + frames * round(10 * ratio)
    assert (out.row.diff() > 0).all()


def test_mass_is_conserved_where_there_are_anchors():
    out = FastVID(keep_ratio=0.5).reduce(*shown(5, 8))
    assert float(out.mass.sum()) == pytest.approx(41)
    assert (out.mass > 0).all()


def test_segments_are_cut_where_frames_differ_most_and_wherever_they_differ_much():
    angle = torch.tensor([0.0, 0.1, 0.9, 0.95, 1.0, 3.0])
    feature = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert cut(feature, 1, -1.0) == [(0, 6)]
    assert cut(feature, 3, -1.0) == [(0, 2), (2, 5), (5, 6)]
    assert cut(feature, 1, 0.9) == [(0, 2), (2, 5), (5, 6)]
    assert cut(feature, 2, 0.998) == [(0, 1), (1, 2), (2, 5), (5, 6)]


def test_a_video_that_stands_still_is_cut_at_its_first_frames():
    still = torch.ones(6, 4)
    assert cut(still, 3, 0.9) == [(0, 1), (1, 2), (2, 6)]
    assert len(cut(still, 9, 0.9)) == 6
    assert cut(still[:1], 9, 0.9) == [(0, 1)]


def test_anchor_frames_are_counted_from_the_end_and_become_more_where_tokens_are_few():
    assert slots(5, 100, 4, 4) == [(0, 10), (4, 10)]
    assert slots(3, 100, 1, 4) == [(2, 3)]
    assert slots(5, 100, 1, 2) == [(0, 2), (2, 2), (4, 1)]
    assert slots(4, 5, 5, 4) == [(0, 5), (1, 5), (2, 5), (3, 5)]
    assert slots(4, 5, 0, 4) == []


def test_equal_tokens_are_left_as_they_are():
    tokens, seen = shown(4, 6)
    tokens = tokens.with_hidden(torch.ones_like(tokens.hidden))
    out = FastVID(keep_ratio=0.5).reduce(tokens, seen)
    torch.testing.assert_close(out.hidden, torch.ones_like(out.hidden))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits_and_keeping_few_moves_no_position(kind):
    family = random_family(kind)
    runs = [Run(family, plan) for plan in (Plan(), Plan(FastVID(keep_ratio=1.0)), Plan(FastVID()))]
    logits = [prefill(run, noise_clip(), QUESTION)[1] for run in runs]
    assert torch.equal(logits[0], logits[1])
    kept = runs[2].store.layers[0].row[0]
    assert len(kept) < len(runs[0].layout)
    assert torch.equal(runs[2].layout.position[:, kept], runs[0].layout.position[:, kept])
    assert runs[2].next_position == runs[0].next_position


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"stride": 0}, {"segments": 0}, {"positions": "none"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        FastVID(**options)


def test_folded_tokens_answer_more_than_random_ones_on_a_trained_model_with_class_token():
    chosen, random = chosen_and_random("tiny-llava", FastVID(keep_ratio=0.25))
    assert chosen >= random + 3
