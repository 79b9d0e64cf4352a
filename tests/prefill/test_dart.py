from __future__ import annotations

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens, budget
from elvi.core.views import Seen
from elvi.errors import BudgetError
from elvi.prefill.dart import DART, least_alike, longest

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


@torch.inference_mode()
def prefilled(kind: str, plan: Plan) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept_by_hand(visual, text, count, pivots, text_pivots) -> set[int]:
    """The steps of the paper over (index, key, hidden) triples, token by token."""

    def ranked(tokens):
        return sorted(tokens, key=lambda token: (-float(token[1].abs().sum()), token[0]))

    chosen = ranked(visual)[: min(pivots, count)]
    askers = chosen + ranked(text)[:text_pivots]
    kept = {token[0] for token in chosen}
    left = count - len(kept)
    for place, (_, _, asker) in enumerate(askers):
        free = [token for token in visual if token[0] not in kept]
        free.sort(key=lambda token: (round(float(torch.cosine_similarity(token[2], asker, dim=0)), 6), token[0]))
        kept |= {token[0] for token in free[: left // len(askers) + (place < left % len(askers))]}
    return kept


@pytest.mark.parametrize("keep_ratio", [0.02, 0.05, 0.222, 0.6, 0.97])
@pytest.mark.parametrize("text_pivots", [0, 3])
def test_kept_tokens_are_those_of_the_papers_steps(keep_ratio, text_pivots):
    seen = []

    class Spy(DART):
        def reduce(self, tokens, view):
            seen.append((tokens, view.key, view.family.text.norm(tokens.hidden)))
            return super().reduce(tokens, view)

    run, _ = prefilled("qwen2_5_vl", Plan(Spy(keep_ratio=keep_ratio, text_pivots=text_pivots)))
    ((tokens, key, hidden),) = seen
    triples = [(i, key[:, i], hidden[i]) for i in range(len(tokens))]
    visual = [triple for triple, shows in zip(triples, tokens.visual) if shows]
    text = triples[visual[-1][0] + 1 :]
    expected = kept_by_hand(visual, text, budget(keep_ratio, len(visual)), 4, text_pivots)
    row = run.store.layers[2].row[0]
    assert set(row[run.layout.visual[row]].tolist()) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 2])
def test_dropping_at_a_layer_equals_hiding_the_same_keys_from_that_layer_on(kind, layer):
    run, logits = prefilled(kind, Plan(DART(layer=layer)))
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, Plan(DART(keep_ratio=1.0)))[1], prefilled(kind, Plan())[1])


@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 0.222, 0.5, 1.0])
def test_exactly_the_budget_stays(keep_ratio):
    run, _ = prefilled("qwen2_5_vl", Plan(DART(layer=1, keep_ratio=keep_ratio)))
    visual, total = int(run.layout.visual.sum()), len(run.layout)
    assert run.store.lengths == [total, *[total - visual + budget(keep_ratio, visual)] * 2]


def test_keys_that_are_looked_at_are_those_in_the_cache():
    keys = []

    class Spy(DART):
        def reduce(self, tokens, seen):
            keys.append(seen.key)
            return super().reduce(tokens, seen)

    run, _ = prefilled("qwen2_5_vl", Plan(Spy(layer=2)))
    torch.testing.assert_close(keys[0], run.store.layers[1].read()[0])


def test_copy_of_a_pivot_goes_before_what_is_orthogonal_to_it(device):
    pivot, other = torch.eye(4, device=device)[:2]
    likeness = pivot[None] @ torch.stack([pivot, pivot, other, pivot]).mT
    taken = least_alike(likeness, torch.tensor([True, False, False, False], device=device), 2)
    assert taken.tolist() == [True, False, True, False]


def test_order_of_the_pivots_decides_who_chooses_first():
    likeness = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.9, 0.1]])
    free = torch.zeros(3, dtype=torch.bool)
    assert least_alike(likeness, free, 2).tolist() == [True, False, True]
    assert least_alike(likeness.flip(0), free, 2).tolist() == [True, True, False]


def test_longest_keys_come_first_and_equals_by_index(device):
    length = torch.tensor([1.0, 3.0, 2.0, 3.0], device=device)
    assert longest(length, torch.tensor([0, 1, 2, 3], device=device), 3).tolist() == [1, 3, 2]


def test_prompt_that_ends_in_a_picture_has_no_text_pivots_and_keeps_its_last_row():
    count, family = torch.arange(7), random_family("qwen2_5_vl")
    cell = torch.full((7, 3), -1).index_fill(0, torch.tensor([2, 3, 4, 5, 6]), 0)
    key = torch.tensor([9.0, 9, 5, 1, 1, 1, 1])[None, :, None]
    hidden = noise(7, 192)
    tokens = Tokens(hidden, count[None], count, cell, torch.ones(7), count)
    out = DART(keep_ratio=0.2, visual_pivots=1).reduce(tokens, Seen(None, count, query=key, key=key, family=family))
    assert out.row.tolist() == [0, 1, 2, 6]


@pytest.mark.parametrize("options", [{"layer": 0}, {"keep_ratio": 1.5}, {"visual_pivots": 0}, {"text_pivots": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        DART(**options)


def test_kept_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", DART())
    assert chosen >= random + 3
