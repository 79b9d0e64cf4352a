from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import top
from elvi.errors import BudgetError
from elvi.prefill.g_prune import GPrune, collected, graph

QUESTION = "what color is the star ?"


def features(total: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed))


def collected_by_hand(hidden: torch.Tensor, threshold: float, temperature: float, steps: int) -> list[float]:
    """Edge by edge, with the matrix raised to the power, as the paper writes it."""
    total = len(hidden)
    matrix, degree = torch.zeros(total, total, dtype=torch.float64), []
    for i in range(total):
        cosine = [float(torch.cosine_similarity(hidden[i].double(), hidden[j].double(), dim=0)) for j in range(total)]
        near = [j for j in range(total) if cosine[j] >= threshold or i == j]
        share = torch.tensor([cosine[j] / temperature for j in near], dtype=torch.float64).softmax(0)
        matrix[i, near] = share
        degree.append(len(near))
    flow = hidden.double().norm(dim=-1) @ torch.linalg.matrix_power(matrix, steps)
    return [float(part) / count for part, count in zip(flow, degree)]


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_propagating_the_norms_equals_the_power_of_the_matrix(threshold, steps, device):
    hidden = features(24)
    score = collected(hidden.to(device), threshold, 0.3, steps).cpu()
    expected = torch.tensor(collected_by_hand(hidden, threshold, 0.3, steps))
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_nothing_is_lost_on_the_way():
    hidden = features(40)
    transition, degree = graph(hidden, 0.3, 0.1)
    torch.testing.assert_close(transition.sum(-1), torch.ones(40))
    total = (collected(hidden, 0.3, 0.1, 5) * degree).sum()
    torch.testing.assert_close(total, hidden.norm(dim=-1).sum())


def test_token_unlike_all_others_keeps_its_norm():
    hidden = torch.cat([features(5, 4).abs(), -torch.full((1, 4), 3.0), torch.zeros(1, 4)])
    assert collected(hidden, 0.5, 0.03, 5)[5:].tolist() == pytest.approx([6.0, 0.0])


def test_threshold_of_one_ranks_tokens_by_their_norm():
    hidden = features(30)
    assert torch.equal(top(collected(hidden, 1.0, 0.03, 5), 10), top(hidden.norm(dim=-1), 10))


def test_larger_crowd_does_not_take_every_place():
    hidden = torch.eye(2).repeat_interleave(torch.tensor([12, 3]), dim=0)
    score = collected(hidden, 0.5, 0.03, 5)
    assert score[12] > score[0]
    assert score.tolist() == pytest.approx([1 / 12] * 12 + [1 / 3] * 3)


@pytest.mark.parametrize("total", [1, 2, 7])
def test_equal_tokens_tie_and_the_first_ones_stay(total):
    score = collected(torch.ones(total, 4), 0.5, 0.03, 5)
    assert score.tolist() == pytest.approx([2 / total] * total)
    assert top(collected(torch.ones(total, 4).round(), 0.5, 0.03, 0), 1).tolist() == [0]


@torch.inference_mode()
def prefilled(plan: Plan) -> tuple[Run, torch.Tensor]:
    run = Run(random_family("qwen2_5_vl"), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


def test_keeping_all_gives_the_same_bits():
    assert torch.equal(prefilled(Plan(GPrune(keep_ratio=1.0)))[1], prefilled(Plan())[1])


@torch.inference_mode()
def test_every_picture_keeps_the_same_share_of_its_own_graph():
    family = random_family("qwen2_5_vl")
    visual = family.encode(family.steps(noise_clip())).tokens
    run, _ = prefilled(Plan(GPrune(keep_ratio=0.25, threshold=0.1)))
    row = run.store.layers[0].row[0]
    first = int(run.layout.visual.nonzero()[0])
    best = [top(collected(visual.hidden[start : start + 36], 0.1, 0.03, 5), 9) + start for start in (0, 36, 72)]
    assert row[run.layout.visual[row]].tolist() == (torch.cat(best) + first).tolist()


@torch.inference_mode()
def test_compact_positions_have_no_gaps():
    run = Run(random_family("llava"), Plan(GPrune(keep_ratio=0.25, positions="compact")))
    prefill(run, noise_clip(), QUESTION)
    row = run.store.layers[0].row[0]
    assert run.layout.position[0, row].tolist() == list(range(len(row)))
    assert run.next_position == len(row)


@pytest.mark.parametrize(
    "options", [{"keep_ratio": 1.2}, {"threshold": 1.1}, {"temperature": 0.0}, {"steps": -1}, {"positions": "other"}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        GPrune(**options)


def test_kept_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", GPrune(keep_ratio=0.25))
    assert chosen >= random + 3
