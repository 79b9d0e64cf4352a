from __future__ import annotations

import math

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random
from videosupport import noise, shown

from elvi.core.cluster import density_peaks
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen, TowerView
from elvi.errors import BudgetError
from elvi.prefill.holitom import HoliTom, merge_weights

QUESTION = "what color is the star ?"


def before_the_model(tokens: Tokens, seed: int = 0) -> Seen:
    score = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)).to(tokens.row.device)
    return Seen(None, tokens.row[-1:], TowerView(False, mean={-1: score}), family=random_family("llava"))


def inside_the_model(tokens: Tokens) -> Seen:
    query, key = noise(2, len(tokens), 4), noise(2, len(tokens), 4, seed=1)
    return Seen(None, tokens.row[-1:], query=query, key=key, layer=2, family=random_family("llava"))


def half_still() -> torch.Tensor:
    """Five frames of twelve tokens, of which eight stand still in the first three and last two."""
    hidden = noise(5, 12, 16)
    hidden[:3, :8] = noise(1, 8, 16, seed=1) + 0.05 * noise(3, 8, 16, seed=2)
    hidden[3:, :8] = noise(1, 8, 16, seed=3) + 0.05 * noise(2, 8, 16, seed=4)
    return hidden


def outer_by_hand(
    hidden: torch.Tensor, score: torch.Tensor, spans, ratio: float, beta: float
) -> dict[int, torch.Tensor]:
    """What is left of frames whose first eight places stand still in each of the segments, by row."""
    out = {0: torch.zeros(16), 61: torch.ones(16)}
    for start, stop in spans:
        mean, count = hidden[start:stop, :8].mean(0), math.floor(8 * ratio + 0.5)
        centre, group = density_peaks(mean, count, min(7, count))
        for number, place in enumerate(centre.tolist()):
            others = [i for i in range(8) if int(group[i]) == number and i != place]
            merged = beta * mean[place] + (1 - beta) * mean[others].mean(0) if others else mean[place]
            out[1 + 12 * start + place] = merged
        for frame in range(start, stop):
            rows = [1 + 12 * frame + place for place in range(8, 12)]
            for row in sorted(rows, key=lambda row: -float(score[row]))[: math.ceil(4 * ratio)]:
                out[row] = hidden[frame, row - 1 - 12 * frame]
    return out


@pytest.mark.parametrize("keep_ratio", [0.2, 0.3, 0.4])
def test_outer_half_merges_and_keeps_what_the_paper_says(keep_ratio, device):
    tokens = shown(half_still())
    seen = before_the_model(tokens)
    gain = 8 * 2 + 8 * 1
    ratio = keep_ratio / ((60 - gain) / 60)
    expected = outer_by_hand(half_still(), seen.tower.received(-1), [(0, 3), (3, 5)], ratio, 0.6)
    there = shown(half_still().to(device))
    out = HoliTom(keep_ratio=keep_ratio).reduce(there, before_the_model(there))
    assert out.row.tolist() == sorted(expected)
    torch.testing.assert_close(out.hidden.cpu(), torch.stack([expected[row] for row in sorted(expected)]))


def test_nothing_static_leaves_the_share_of_every_frame():
    tokens = shown(half_still())
    out = HoliTom(keep_ratio=0.3, threshold=1.0).reduce(tokens, before_the_model(tokens))
    assert torch.bincount(out.cell[out.visual, 0]).tolist() == [math.ceil(0.3 * 12)] * 5
    assert (out.mass == 1).all()


def test_a_clip_that_stands_still_becomes_one_frame_at_full_budget():
    tokens = shown(noise(1, 12, 16).repeat(6, 1, 1))
    out = HoliTom(keep_ratio=1.0).reduce(tokens, before_the_model(tokens))
    assert out.row.tolist() == [*range(13), 73]
    assert out.mass.tolist() == [1.0] + [6.0] * 12 + [1.0]
    torch.testing.assert_close(out.hidden[:13], tokens.hidden[:13])


def test_full_budget_leaves_every_token_static_ones_once_per_segment():
    tokens = shown(half_still())
    out = HoliTom(keep_ratio=1.0).reduce(tokens, before_the_model(tokens))
    assert len(out) == 62 - 24
    assert float(out.mass.sum()) == 62


@pytest.mark.parametrize("merging", ["halving", "mean"])
def test_inner_half_merges_one_token_after_another(merging):
    tokens = shown(noise(3, 6, 8))
    seen = inside_the_model(tokens)
    out = HoliTom(inner_keep_ratio=0.25, depth=0.67, merging=merging).reduce(tokens, seen)
    score = (seen.query[:, -1:] @ seen.key.mT).softmax(-1).mean(0)[0]
    visual = range(1, 19)
    kept = sorted(sorted(visual, key=lambda row: -float(score[row]))[:5])
    states, given = {row: tokens.hidden[row] for row in kept}, {row: [tokens.hidden[row]] for row in kept}
    for row in (row for row in visual if row not in kept):
        alike = [float(torch.cosine_similarity(tokens.hidden[row], tokens.hidden[other], dim=0)) for other in kept]
        best = kept[alike.index(max(alike))]
        states[best] = (states[best] + tokens.hidden[row]) / 2
        given[best].append(tokens.hidden[row])
    means = {row: torch.stack(rows).mean(0) for row, rows in given.items()}
    assert out.row.tolist() == [0, *kept, 19]
    torch.testing.assert_close(out.hidden[1:-1], torch.stack([*(states if merging == "halving" else means).values()]))
    assert out.mass[1:-1].tolist() == [len(rows) for rows in given.values()]


def test_weights_of_halving_sum_to_one_whatever_is_merged():
    kept, joined = merge_weights(torch.tensor([0, 2, 2, 0, 2]), 3, "halving")
    assert kept.tolist() == [0.25, 1.0, 0.125]
    assert joined.tolist() == [0.25, 0.125, 0.25, 0.5, 0.5]


def test_inner_half_that_keeps_all_or_none_leaves_text_alone():
    tokens = shown(noise(2, 4, 8))
    assert torch.equal(
        HoliTom(inner_keep_ratio=1.0, depth=0.67).reduce(tokens, inside_the_model(tokens)).hidden, tokens.hidden
    )
    assert HoliTom(inner_keep_ratio=0.0, depth=0.67).reduce(tokens, inside_the_model(tokens)).row.tolist() == [0, 9]


@torch.inference_mode()
def prefilled(kind: str, *techniques) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*techniques))
    return run, prefill(run, noise_clip(), QUESTION)[1]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, HoliTom(**HoliTom.full))[1], prefilled(kind)[1])


def test_both_halves_act_once_each():
    run, _ = prefilled("qwen2_5_vl", HoliTom(keep_ratio=0.5, threshold=1.0, depth=0.67))
    text = len(run.layout) - 108
    assert run.store.lengths == [text + 54, text + 54, text + 27]
    assert run.next_position == prefilled("qwen2_5_vl")[0].next_position


@pytest.mark.parametrize(
    "options", [{"keep_ratio": 1.1}, {"centre_weight": 2.0}, {"merging": "sum"}, {"positions": "x"}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        HoliTom(**options)


def test_merged_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-qwen", HoliTom(keep_ratio=0.25))
    assert chosen >= random + 3
