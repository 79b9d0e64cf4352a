from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens, budget
from elvi.errors import BudgetError
from elvi.prefill.aim import AIM, importance

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


@torch.inference_mode()
def prefilled(kind: str, plan: Plan, layers: int = 8) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind, layers), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


def frame_of(hidden: torch.Tensor) -> Tokens:
    count = torch.arange(len(hidden), device=hidden.device)
    cell = torch.stack([torch.zeros_like(count), count, count], dim=1)
    return Tokens(hidden, count[None], count, cell, torch.ones_like(hidden[:, 0]), count)


def features(total: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, 5, generator=torch.Generator().manual_seed(seed))


def merged_by_hand(hidden: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Round by round, pair by pair; tokens stay in the order of the picture."""
    row = list(hidden)
    while len(row) > count:
        pairs = []
        for i in range(0, len(row), 2):
            alike = [(float(torch.cosine_similarity(row[i], row[j], dim=0)), -j) for j in range(1, len(row), 2)]
            if alike:
                pairs.append((max(alike)[0], i, -max(alike)[1]))
        pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[: min(len(row) - count, len(row) // 2)]
        into = {j: [row[j], *(row[i] for _, i, other in pairs if other == j)] for j in range(1, len(row), 2)}
        gone = {i for _, i, _ in pairs}
        row = [torch.stack(into[i]).mean(0) if i in into else token for i, token in enumerate(row) if i not in gone]
    return row


@pytest.mark.parametrize("total", [1, 2, 3, 9, 16])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.25, 0.6, 1.0])
def test_frames_are_merged_as_the_steps_say(total, keep_ratio, device):
    hidden = features(total)
    out = AIM(keep_ratio=keep_ratio).merge(frame_of(hidden.to(device)))
    expected = merged_by_hand(hidden, max(1, budget(keep_ratio, total)))
    torch.testing.assert_close(out.hidden.cpu(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert float(out.mass.sum()) == total


def test_target_of_two_sources_becomes_the_mean_of_three():
    hidden = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    out = AIM(keep_ratio=0.5).merge(frame_of(hidden))
    assert out.hidden.tolist() == [[2.0, 0.0], [0.0, 1.0]]
    assert out.row.tolist() == [1, 3]
    assert out.mass.tolist() == [3.0, 1.0]


def test_frames_do_not_mix():
    both = frame_of(features(8))
    both = replace(both, cell=torch.tensor([[i // 4, i % 4, 0] for i in range(8)]))
    parts = [AIM(keep_ratio=0.5).merge(frame_of(both.hidden[start : start + 4])) for start in (0, 4)]
    assert torch.equal(AIM(keep_ratio=0.5).merge(both).hidden, torch.cat([part.hidden for part in parts]))


def test_share_of_the_released_schedule():
    shares = [AIM().share(layer, 28) for layer in range(28)]
    assert shares == [1.0] * 14 + [1 - step / 8 for step in range(1, 9)] + [0.0] * 6


def test_layers_hold_what_the_schedule_leaves():
    run, _ = prefilled("qwen2_5_vl", Plan(AIM()))
    assert run.meter.layer_visual_tokens == [27, 27, 27, 27, 27, 18, 9, 0]
    rows = [set(store.row[0].tolist()) for store in run.store.layers]
    assert all(later <= earlier for earlier, later in pairwise(rows))


def test_importance_is_pagerank_over_the_sharpened_attention():
    noted = []

    class Spy(AIM):
        def reduce(self, tokens, seen):
            if seen.layer == 4:
                noted.append((seen, importance(seen, 0.1, 5)))
            return super().reduce(tokens, seen)

    prefilled("qwen2_5_vl", Plan(Spy(keep_ratio=1.0)))
    ((seen, score),) = noted
    total, ranks = seen.query.shape[1], []
    for head in range(6):
        logits = (seen.query[head].double() @ seen.key[head // 3].double().T) * seen.scaling / 0.1
        graph = logits.masked_fill(torch.ones(total, total).triu(1).bool(), float("-inf")).softmax(-1)
        ranks.append(torch.full((total,), 1 / total, dtype=torch.float64) @ torch.linalg.matrix_power(graph, 5))
        assert float(ranks[-1].sum()) == pytest.approx(1.0)
    expected = torch.stack(ranks).square().mean(0).sqrt().float()
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_equals_hiding_the_same_keys_in_each_layer(kind):
    run, logits = prefilled(kind, Plan(AIM(keep_ratio=1.0)))
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_and_dropping_nothing_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, Plan(AIM(keep_ratio=1.0, first=1.0)))[1], prefilled(kind, Plan())[1])


def test_compact_positions_have_no_gaps():
    run, _ = prefilled("llava", Plan(AIM(positions="compact")))
    row = run.store.layers[0].row[0]
    assert run.layout.position[0, row].tolist() == list(range(len(row)))


@pytest.mark.parametrize(
    "options",
    [{"keep_ratio": 0.0}, {"first": 1.1}, {"last": 0.4}, {"temperature": 0.0}, {"steps": -1}, {"positions": "other"}],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        AIM(**options)


def test_merged_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", AIM())
    assert chosen >= random + 3
