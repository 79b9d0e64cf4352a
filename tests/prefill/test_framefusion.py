"""FrameFusion: merging against runs averaged in plain lists, pruning against masking, and the budget to the token."""

from __future__ import annotations

import pytest
import torch
from kvsupport import eager_attention
from support import hiding, noise_clip, random_family
from trained import chosen_and_random
from videosupport import noise, shown

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError, FitError
from elvi.prefill.framefusion import FrameFusion

QUESTION = "what color is the star ?"


def before_the_model(layers: int = 12) -> Seen:
    return Seen(None, torch.empty(0, dtype=torch.long), family=random_family("llava", layers))


def walked(technique: FrameFusion, tokens: Tokens, layers: int = 12) -> list[Tokens]:
    """What every layer would read if the layers changed nothing."""
    seen, out = before_the_model(layers), []
    for layer in range(layers):
        query, key = noise(2, len(tokens), 4, seed=layer), noise(2, len(tokens), 4, seed=100 + layer)
        tokens = technique.reduce(
            tokens,
            Seen(None, tokens.row[-1:], query=query, key=key, layer=layer, family=seen.family, memory=seen.memory),
        )
        out.append(tokens)
    return out


def visual(rows: list[Tokens]) -> list[int]:
    return [int(tokens.visual.sum()) for tokens in rows]


def by_hand(hidden: torch.Tensor, threshold: float) -> dict[int, list[int]]:
    """Which tokens each token that is left is the mean of, by row."""
    frames, length, _ = hidden.shape
    runs = {}
    for place in range(length):
        start = place + 1
        runs[start] = [start]
        for frame in range(1, frames):
            row = 1 + frame * length + place
            if float(torch.cosine_similarity(hidden[frame - 1, place], hidden[frame, place], dim=0)) >= threshold:
                runs[start].append(row)
            else:
                start = row
                runs[start] = [row]
    return dict(sorted(runs.items()))


def drifting() -> torch.Tensor:
    """Six frames of ten tokens that change a little, and some of them now and then a lot."""
    steps = noise(6, 10, 8)
    steps[1:] *= torch.where(noise(5, 10, 1, seed=1) > 0, 1.0, 0.1)
    return steps.cumsum(0)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_runs_of_alike_tokens_become_their_plain_mean_at_the_earliest_place(threshold, device):
    hidden = drifting()
    runs = by_hand(hidden, threshold)
    seen = Seen(None, torch.empty(0, dtype=torch.long), family=random_family("llava", 12))
    out = FrameFusion(keep_ratio=0.1, threshold=threshold, least=0.0).reduce(shown(hidden.to(device)), seen)
    assert out.row.tolist() == [0, *runs, 61]
    assert out.mass.tolist() == [1, *map(len, runs.values()), 1]
    states = shown(hidden).hidden
    torch.testing.assert_close(out.hidden[1:-1].cpu(), torch.stack([states[rows].mean(0) for rows in runs.values()]))
    assert torch.equal(out.hidden[[0, -1]].cpu(), states[[0, -1]])
    assert any(len(rows) > 2 for rows in runs.values())


def test_a_token_is_compared_with_the_last_one_left_at_its_place():
    hidden = noise(1, 3, 8).repeat(3, 1, 1)
    hidden[1] = -hidden[1]
    tokens = shown(hidden).keep(torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10]))  # of frame 1 only its first place
    out = FrameFusion(keep_ratio=0.1, least=0.0).reduce(tokens, before_the_model())
    assert out.row.tolist() == [0, 1, 2, 3, 4, 7, 10]


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.8, 2.0])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_the_layers_read_the_budget_on_average_to_half_a_token(keep_ratio, threshold, frames):
    rows = walked(FrameFusion(keep_ratio=keep_ratio, threshold=threshold), shown(drifting()[:frames]))
    assert sum(visual(rows)) / 12 == pytest.approx(keep_ratio * frames * 10, abs=0.5)


def test_a_clip_that_stands_still_is_merged_to_the_budget_at_once():
    rows = walked(FrameFusion(keep_ratio=0.3), shown(noise(1, 10, 8).sign().repeat(5, 1, 1)))
    assert visual(rows) == [15] * 12
    assert rows[0].row.tolist() == [0, *range(1, 11), *range(46, 51), 51]  # of equals the earlier were merged


def test_one_frame_has_nothing_to_merge_and_is_pruned_after_the_first_layer():
    rows = walked(FrameFusion(keep_ratio=0.5), shown(noise(1, 22, 8)))
    assert visual(rows) == [22] + [10] * 11


def test_merging_goes_on_while_it_pays_and_the_budget_lasts():
    hidden = torch.ones(2, 100, 4)
    hidden[1, 30:] *= -1
    assert visual(walked(FrameFusion(keep_ratio=0.3), shown(hidden)))[:3] == [170, 170, 38]  # nothing more is alike
    assert visual(walked(FrameFusion(keep_ratio=0.3, least=0.0), shown(hidden)))[:5] == [170, 170, 170, 170, 5]
    assert visual(walked(FrameFusion(keep_ratio=0.3, least=0.2), shown(hidden)))[:3] == [170, 50, 50]


@torch.inference_mode()
def prefilled(kind: str, *techniques, layers: int = 3) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind, layers), Plan(*techniques))
    return run, prefill(run, noise_clip(), QUESTION)[1]


@torch.inference_mode()
def test_pruning_keeps_what_the_last_four_rows_attend_to_in_the_layer_before():
    run, _ = prefilled("qwen2_5_vl", FrameFusion(keep_ratio=0.5, threshold=2.0))
    score = eager_attention(run, "qwen2_5_vl")[0][:, -4:].mean((0, 1))
    rows = run.layout.visual.nonzero()[:, 0].tolist()
    best = sorted(sorted(rows, key=lambda row: -float(score[row]))[:27])  # (1.5 - 1) 108 / 2
    text = (~run.layout.visual).nonzero()[:, 0].tolist()
    assert run.store.layers[1].row[0].tolist() == sorted([*text, *best])


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_pruning_equals_hiding_and_moves_no_position(kind):
    run, logits = prefilled(kind, FrameFusion(keep_ratio=0.5, threshold=2.0))
    torch.testing.assert_close(logits, hiding(run), atol=1e-4, rtol=1e-4)
    assert run.store.lengths[0] > run.store.lengths[1] == run.store.lengths[2]
    plain, _ = prefilled(kind)
    assert torch.equal(run.layout.position, plain.layout.position)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_the_full_budget_gives_the_same_bits_whatever_is_alike(kind, threshold):
    technique = FrameFusion(keep_ratio=1.0, threshold=threshold)
    assert torch.equal(prefilled(kind, technique)[1], prefilled(kind)[1])


def test_a_budget_below_one_layer_is_refused_before_anything_runs():
    with pytest.raises(FitError, match=r"keep_ratio=0.3 .* over the 3 layers of random-llava.* use 0.333 or more"):
        Plan(FrameFusion()).check(random_family("llava"))
    Plan(FrameFusion()).check(random_family("llava", 4))


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"threshold": -2}, {"least": 2.0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        FrameFusion(**options)


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_merged_tokens_answer_more_than_random_ones_on_trained_models(name):
    chosen, random = chosen_and_random(name, FrameFusion(keep_ratio=0.3))
    assert chosen >= random + 3
