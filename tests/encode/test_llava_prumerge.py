from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.plan import Plan
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.llava_prumerge import LLaVAPruMerge, shares
from elvi.errors import BudgetError, FitError

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(seconds: int = 3) -> tuple[Tokens, Seen]:
    family = random_family("llava")
    encoding = family.encode(family.steps(noise_clip(seconds)), LLaVAPruMerge.tower_layers)
    return encoding.tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), encoding.tower)


def planted(paid: list[float], width: int = 5) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    """One frame with that class-token attention, random features and random keys."""
    count, generator = torch.arange(len(paid)), torch.Generator().manual_seed(0)
    hidden, key = (torch.randn(len(paid), width, generator=generator) for _ in range(2))
    cell = torch.stack([count * 0, count * 0, count], dim=1)
    return Tokens(hidden, count[None], count, cell, torch.ones(len(paid)), count), torch.tensor(paid), key


def by_hand(hidden, paid, key, stays: list[int], neighbours: int) -> list[torch.Tensor]:
    """The paper's sums, token by token; the summary stands where the last token that is left out stood."""
    out = {}
    for i in stays:
        others = sorted((j for j in range(len(key)) if j != i), key=lambda j: (-float(cosine(key[i], key[j])), j))
        out[i] = hidden[i] + sum(paid[j] * hidden[j] for j in others[:neighbours])
    left = [j for j in range(len(key)) if j not in stays]
    if left:
        out[left[-1]] = sum(paid[j] * hidden[j] for j in left)
    return [out[i] for i in sorted(out)]


def cosine(one, two):
    return torch.cosine_similarity(one, two, dim=0)


@pytest.mark.parametrize("options", [{}, {"keep_ratio": 0.25}, {"neighbours": 3}, {"spatial": True, "keep_ratio": 0.1}])
def test_frames_are_merged_as_the_paper_says(options):
    tokens, seen = encoded()
    technique = LLaVAPruMerge(**options)
    out = technique.reduce(tokens, seen)
    paid, key = seen.tower.joint_cls_attention(-1), seen.tower.head_keys(-1).flatten(1)
    expected = []
    for step in range(3):
        part = slice(36 * step, 36 * step + 36)
        low, high = np.percentile(paid[part], [25, 75])
        count = int((paid[part].numpy() > high + 1.5 * (high - low)).sum())
        count = count if technique.keep_ratio is None else int(technique.keep_ratio * 36 + 0.5)
        stays = set(paid[part].topk(max(1, count)).indices.tolist())
        if technique.spatial:
            stays |= set(range(0, 36, 36 // count // 3))
        expected += by_hand(tokens.hidden[part], paid[part], key[part], sorted(stays), technique.neighbours)
    torch.testing.assert_close(out.hidden, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert float(out.mass.sum()) == len(tokens)
    assert (out.row.diff() > 0).all()


def test_planted_spikes_are_what_stays(device):
    paid = [0.01] * 40
    paid[7] = paid[23] = 0.3
    tokens, paid, key = planted(paid)
    out = LLaVAPruMerge()._frame(tokens, paid, key)
    assert out.row.tolist() == [7, 23, 39]
    assert out.mass.tolist() == [1, 1, 38]


def test_without_outliers_the_first_of_the_best_stays():
    out = LLaVAPruMerge()._frame(*planted([0.025] * 40))
    assert out.row.tolist() == [0, 39]


def test_if_all_stay_there_is_no_summary():
    tokens, paid, key = planted([0.1] * 6)
    out = LLaVAPruMerge(keep_ratio=1.0, neighbours=2)._frame(tokens, paid, key)
    assert out.row.tolist() == list(range(6))
    torch.testing.assert_close(out.hidden, torch.stack(by_hand(tokens.hidden, paid, key, list(range(6)), 2)))


@pytest.mark.parametrize(("total", "neighbours"), [(1, 32), (5, 32), (5, 2), (5, 0)])
def test_nobody_is_its_own_neighbour_and_there_are_no_more_than_there_are(total, neighbours):
    _, paid, key = planted([0.2] * total)
    weight = shares(torch.ones(total, dtype=torch.bool), paid, key, neighbours)
    assert weight.diagonal().tolist() == [1.0] * total
    assert ((weight > 0).sum(1) == 1 + min(neighbours, total - 1)).all()


def test_a_frame_is_merged_alike_alone_and_among_others():
    tokens, seen = encoded()
    together = LLaVAPruMerge().reduce(tokens, seen)
    for step in range(3):
        alone = LLaVAPruMerge().reduce(tokens.keep(tokens.cell[:, 0] == step), seen)
        assert torch.equal(alone.hidden, together.hidden[together.cell[:, 0] == step])


def test_towers_without_a_class_token_are_refused():
    with pytest.raises(FitError, match="class token"):
        Plan(LLaVAPruMerge()).check(random_family("qwen2_5_vl"))


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"factor": -1.0}, {"neighbours": -1}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        LLaVAPruMerge(**options)


def test_merged_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", LLaVAPruMerge(keep_ratio=0.25))
    assert chosen >= random + 3
