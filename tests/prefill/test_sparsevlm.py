from __future__ import annotations

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random

from elvi.core.cluster import density_peaks
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError
from elvi.prefill.sparsevlm import BUDGETS, SparseVLM, raters

QUESTION = "what color is the star ?"
VISUAL, TEXT = 40, 4


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown(hidden: torch.Tensor) -> Tokens:
    """Forty visual tokens and four of text."""
    count = torch.arange(VISUAL + TEXT, device=hidden.device)
    cell = torch.stack([torch.zeros_like(count), count, count], dim=1)
    cell[VISUAL:] = -1
    return Tokens(hidden, count[None], count, cell, torch.ones_like(hidden[:, 0]), count)


def seen_at(layer: int, device="cpu", rating=(1, 3), layers: int = 3) -> Seen:
    query, key = noise(2, VISUAL + TEXT, 4, seed=3).to(device), noise(2, VISUAL + TEXT, 4, seed=4).to(device)
    seen = Seen(
        QUESTION,
        torch.arange(VISUAL, VISUAL + TEXT, device=device),
        query=query,
        key=key,
        layer=layer,
        family=random_family("llava", layers),
        entered=VISUAL,
    )
    seen.memory["raters"] = torch.tensor([VISUAL + place for place in rating], device=device)
    return seen


def by_hand(hidden: torch.Tensor, keep: int, rating: list[int], tau: float, theta: float) -> dict[int, torch.Tensor]:
    """What is left after a stage, by row."""
    seen = seen_at(2)
    paid = torch.zeros(VISUAL + TEXT)
    for head in range(2):
        for row in rating:
            logits = (seen.key[head, : row + 1] @ seen.query[head, row]).softmax(0)
            paid[: row + 1] += logits / (2 * len(rating))
    order = sorted(range(VISUAL), key=lambda row: (-float(paid[row]), row))
    out = {row: hidden[row] for row in [*order[:keep], *range(VISUAL, VISUAL + TEXT)]}
    rest = order[keep:]
    some = sorted(rest[: int(tau * len(rest)) + 1])
    count = int(theta * len(some)) + 1
    centre, group = density_peaks(hidden[some], count, count)
    for number, place in enumerate(centre.tolist()):
        members = [row for row, joined in zip(some, group.tolist()) if joined == number]
        out[some[place]] = hidden[members].mean(0)
    return out


@pytest.mark.parametrize("theta", [0.1, 0.5])
def test_a_stage_keeps_what_the_raters_attend_to_and_recycles_some_of_the_rest(theta, device):
    hidden = noise(VISUAL + TEXT, 8)
    expected = by_hand(hidden, round(110 / 576 * VISUAL), [VISUAL + 1, VISUAL + 3], 0.3, theta)
    technique = SparseVLM(keep_ratio=192 / 576, cluster_ratio=theta)
    out = technique.reduce(shown(hidden.to(device)), seen_at(2, device))
    assert out.row.tolist() == sorted(expected)
    torch.testing.assert_close(out.hidden.cpu(), torch.stack([expected[row] for row in sorted(expected)]))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(("mean", "counts"), [(row[0], row[1:]) for row in BUDGETS.tolist()])
def test_the_listed_budgets_leave_the_listed_counts(stage, mean, counts):
    paid = torch.zeros(1, 576)
    assert SparseVLM(keep_ratio=mean / 576)._count(paid, stage, 576) == counts[stage]


def test_three_layers_act_at_the_depths_of_the_paper():
    hidden, technique = noise(VISUAL + TEXT, 8), SparseVLM(recycle_ratio=0.0)
    left = {layer: len(technique.reduce(shown(hidden), seen_at(layer, layers=32))) - TEXT for layer in range(1, 32)}
    assert {layer: count for layer, count in left.items() if count < VISUAL} == {3: 21, 7: 14, 16: 8}


def test_equal_tokens_are_recycled_as_what_they_were():
    hidden = noise(1, 8).repeat(VISUAL + TEXT, 1)
    out = SparseVLM(keep_ratio=0.1).reduce(shown(hidden), seen_at(2))
    torch.testing.assert_close(out.hidden, hidden[: len(out)])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_the_rank_of_what_raters_attend_to_sets_how_many_go_by_the_rule_of_the_paper(scale):
    technique = SparseVLM(recycle_ratio=0.0, rank_scale=scale)
    out = technique.reduce(shown(noise(VISUAL + TEXT, 8)), seen_at(2, rating=(0, 1, 3)))
    assert len(out) == TEXT + VISUAL - int(scale * (VISUAL - 3))


def test_raters_are_the_words_that_fit_the_picture_best():
    visual = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    text = torch.tensor([[4.0, 0.0], [-4.0, -4.0], [0.0, 4.0], [0.1, 0.1]])
    assert raters(visual, text).tolist() == [0, 2]


def test_words_that_are_all_alike_all_rate():
    assert raters(noise(5, 8), torch.ones(3, 8)).tolist() == [0, 1, 2]


@torch.inference_mode()
def prefilled(kind: str, *techniques, question: str = QUESTION) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*techniques))
    return run, prefill(run, noise_clip(), question)[1]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, SparseVLM(keep_ratio=1.0))[1], prefilled(kind)[1])


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_dropping_without_recycling_equals_hiding_the_same_rows_from_each_layer_on(kind):
    run, logits = prefilled(kind, SparseVLM(recycle_ratio=0.0))
    assert run.store.lengths[0] > run.store.lengths[1] > run.store.lengths[2]
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)


def test_recycled_tokens_stand_at_rows_and_positions_of_the_prompt():
    run, plain = prefilled("qwen2_5_vl", SparseVLM(keep_ratio=0.1))[0], prefilled("qwen2_5_vl")[0]
    for layer in run.store.layers:
        assert (layer.row[0].diff() > 0).all()
        assert torch.equal(run.layout.position[:, layer.row[0]], plain.layout.position[:, layer.row[0]])
    assert run.next_position == plain.next_position


def test_another_question_keeps_other_tokens_of_the_same_picture():
    questions = (QUESTION, "how many red squares are there ?")
    one, two = (prefilled("qwen2_5_vl", SparseVLM(keep_ratio=0.2), question=question)[0] for question in questions)
    shown, other = (run.store.layers[-1].row[0][run.layout.visual[run.store.layers[-1].row[0]]] for run in (one, two))
    assert shown.tolist() != other.tolist()


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"recycle_ratio": -1.0}, {"rank_scale": 2.0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        SparseVLM(**options)


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_chosen_tokens_answer_more_than_random_ones_on_a_trained_model(name):
    chosen, random = chosen_and_random(name, SparseVLM())
    assert chosen >= random + 3
