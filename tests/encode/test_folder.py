from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.match import matched
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.folder import FOLDER
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(kind: str, **options) -> tuple[Tokens, Seen]:
    family = random_family(kind)
    encoding = family.encode(family.steps(noise_clip(**options)), FOLDER.tower_layers)
    return encoding.tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), encoding.tower)


def folded_by_hand(hidden, keys, cost, gone: int) -> tuple[list[torch.Tensor], list[int]]:
    """The paper's loop over one frame with lists: what is left, and how many patches each holds."""
    hidden, keys, cost, size = list(hidden), list(keys), cost.tolist(), [1] * len(hidden)
    while gone > 0:
        now = min(gone, len(hidden) // 2)
        proposals = []
        for a in range(0, len(hidden), 2):
            odd = range(1, len(hidden), 2)
            likeness, b = min((-float(torch.cosine_similarity(keys[a], keys[b], dim=0)), b) for b in odd)
            proposals.append((likeness + cost[a], a, b))
        groups = {i: [i] for i in range(len(hidden))}
        for _, a, b in sorted(proposals)[:now]:
            groups[b] += groups.pop(a)
        total = {i: sum(size[j] for j in group) for i, group in groups.items()}
        hidden, keys, cost = (
            [sum(size[j] * part[j] for j in group) / total[i] for i, group in groups.items()]
            for part in (hidden, keys, cost)
        )
        size, gone = list(total.values()), gone - now
    return hidden, size


@pytest.mark.parametrize(("kind", "alpha", "layer"), [("llava", 0.0, -2), ("llava", 5.0, -2), ("qwen2_5_vl", 5.0, -1)])
@pytest.mark.parametrize("ratio", [0.75, 0.34, 0.1])
def test_frames_are_folded_as_the_paper_says(kind, alpha, layer, ratio):
    tokens, seen = encoded(kind)
    out = FOLDER(keep_ratio=ratio, alpha=alpha).reduce(tokens, seen)
    keys, cost = seen.tower.keys(layer), torch.zeros(len(tokens))
    if kind == "llava":
        cost = alpha * 30 * seen.tower.cls_attention(layer)
    hidden, mass = [], []
    for frame in range(3):
        part = slice(36 * frame, 36 * frame + 36)
        left, size = folded_by_hand(tokens.hidden[part], keys[part], cost[part], 36 - int(36 * ratio + 0.5))
        hidden, mass = [*hidden, *left], [*mass, *size]
    torch.testing.assert_close(out.hidden, torch.stack(hidden), rtol=1e-4, atol=1e-4)
    assert out.mass.tolist() == mass
    assert (out.row.diff() > 0).all()


def test_a_fold_of_less_than_half_is_one_step_of_matching():
    tokens, seen = encoded("llava")
    out = FOLDER(keep_ratio=0.75).reduce(tokens.keep(tokens.cell[:, 0] == 0), seen)
    owner = matched(seen.tower.keys(-2)[:36], 9)
    assert out.row.tolist() == owner.unique().tolist()


def test_what_the_class_token_attends_to_most_is_not_merged_away():
    tokens, seen = encoded("llava")
    best = seen.tower.cls_attention(-2).view(3, 36).argmax(1) + torch.tensor([0, 36, 72])
    out = FOLDER(keep_ratio=0.75, alpha=1000.0).reduce(tokens, seen)
    assert set(best.tolist()) <= set(out.row.tolist())


@pytest.mark.parametrize(("ratio", "left"), [(1.0, 36), (0.5, 18), (0.34, 12), (0.05, 2), (0.0, 1)])
def test_just_as_many_go_as_asked_for(ratio, left):
    tokens, seen = encoded("llava")
    out = FOLDER(keep_ratio=ratio).reduce(tokens, seen)
    assert out.cell[:, 0].bincount().tolist() == [left] * 3
    torch.testing.assert_close(out.mass @ out.hidden, tokens.hidden.sum(0), rtol=1e-4, atol=1e-4)


def test_where_the_tower_shows_no_keys_features_are_compared():
    tokens, seen = encoded("llava_onevision", seconds=1, still=True, size=(84, 60))
    out = FOLDER(keep_ratio=0.75).reduce(tokens, seen)
    gone = len(tokens) - int(0.75 * len(tokens) + 0.5)
    assert out.row.tolist() == matched(tokens.hidden, gone).unique().tolist()


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits(kind):
    plans = Plan(FOLDER(keep_ratio=1.0)), Plan()
    merged, plain = (prefill(Run(random_family(kind), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(merged, plain)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"alpha": -1.0}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        FOLDER(**options)


def test_folded_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", FOLDER(keep_ratio=0.25))
    assert chosen >= random + 3
