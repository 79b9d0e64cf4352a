from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Seen
from elvi.encode.vispruner import VisPruner, chosen, distinct
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


def features(total: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(total, generator=generator), torch.randn(total, 6, generator=generator)


def by_hand(score, hidden, important: int, diverse: int) -> list[int]:
    """The paper's loop with lists; similarities are computed anew in every round."""
    order = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    left = order[important:]
    while diverse and len(left) > diverse:
        evens, odds = left[::2], left[1::2]

        def closest(i, odds=odds):
            return max(float(torch.cosine_similarity(hidden[i], hidden[j], dim=0)) for j in odds)

        drop = min(8, len(left) - diverse, len(odds))
        left = sorted(evens, key=lambda i: -closest(i))[drop:] + odds
    return sorted(order[:important] + left[:diverse])


@pytest.mark.parametrize("total", [9, 40, 41])
@pytest.mark.parametrize(("important", "diverse"), [(0, 3), (2, 2), (3, 4), (5, 1), (8, 0), (0, 1)])
def test_a_frame_is_pruned_as_the_paper_says(total, important, diverse, device):
    score, hidden = features(total)
    index = chosen(score.to(device), hidden.to(device), important, diverse)
    assert sorted(index.tolist()) == by_hand(score, hidden, important, diverse)


@pytest.mark.parametrize("total", [1, 2, 7, 24, 25])
def test_exactly_as_many_different_tokens_stay_as_asked_for(total, device):
    score, hidden = (part.to(device) for part in features(total))
    for count in range(total + 1):
        for important in range(count + 1):
            assert len(set(chosen(score, hidden, important, count - important).tolist())) == count


def test_one_token_of_each_kind_is_left_where_the_halves_let_duplicates_meet(device):
    kinds = torch.eye(3, device=device)[torch.tensor([0, 0, 1, 1, 2, 2])]
    assert sorted(kinds[distinct(kinds, 3)].argmax(1).tolist()) == [0, 1, 2]
    apart = torch.eye(3, device=device)[torch.tensor([0, 1, 0, 2])]  # the twins meet in one half: 0 is dropped as a tie
    assert distinct(apart, 3).tolist() == [2, 1, 3]


def test_scaling_all_features_changes_nothing():
    _, hidden = features(50)
    assert torch.equal(distinct(hidden * 8, 11), distinct(hidden, 11))


def test_equal_tokens_are_dropped_from_the_front(device):
    assert distinct(torch.ones(6, 2, device=device), 4).tolist() == [4, 1, 3, 5]


@pytest.mark.parametrize(("kind", "layer"), [("llava", -2), ("qwen2_5_vl", -1), ("llava_onevision", -1)])
@torch.inference_mode()
def test_every_frame_keeps_what_its_salience_and_its_features_choose(kind, layer):
    family = random_family(kind)
    encoding = family.encode(family.steps(noise_clip()), VisPruner.tower_layers)
    tokens, tower = encoding.tokens, encoding.tower
    out = VisPruner(keep_ratio=0.3).reduce(tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), tower))
    score = tower.cls_attention(layer) if kind == "llava" else tower.received(layer)
    expected = []
    for step in tokens.cell[:, 0].unique():
        frame = (tokens.cell[:, 0] == step).nonzero()[:, 0]
        count = int(0.3 * len(frame) + 0.5)
        local = by_hand(score[frame], tokens.hidden[frame], count // 2, count - count // 2)
        expected += frame[local].tolist()
    assert out.row.tolist() == expected
    assert torch.equal(out.hidden, tokens.hidden[expected])


def test_all_important_is_the_best_by_salience_alone():
    score, hidden = features(30)
    assert sorted(chosen(score, hidden, 7, 0).tolist()) == sorted(score.topk(7).indices.tolist())


@torch.inference_mode()
def test_keeping_all_gives_the_same_bits():
    plans = Plan(VisPruner(keep_ratio=1.0)), Plan()
    pruned, plain = (prefill(Run(random_family("llava"), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(pruned, plain)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"important_ratio": -0.5}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        VisPruner(**options)


def test_pruned_tokens_answer_more_than_random_ones_on_a_trained_model_with_class_token():
    chosen, random = chosen_and_random("tiny-llava", VisPruner(keep_ratio=0.2))
    assert chosen >= random + 3
