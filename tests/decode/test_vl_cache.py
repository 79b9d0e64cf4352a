"""VL-Cache against the eager attention matrix and plain loops, and a full cache behind a mask."""

from dataclasses import replace

import pytest
import torch
from kvsupport import TOKENS, Look, Masked, eager_attention, held, prefilled, stepwise, view_of
from support import LastSlots

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.decode.vl_cache import VLCache, chosen, density, layer_budgets
from elvi.errors import BudgetError


def density_by_loops(weights, first, threshold):
    """Share of active entries in rows from `first` on of weights [Hq, N, N], mean over heads."""
    shares = []
    for head in weights.tolist():
        rows = [row[: place + 1] for place, row in enumerate(head)][first:]
        active = sum(weight >= threshold * max(row) for row in rows for weight in row)
        shares.append(active / sum(map(len, rows)))
    return sum(shares) / len(shares)


def best_by_loops(weights, first, count):
    """Kept rows of one head: weights [G, N, N] of the query heads of its group."""
    total, recent = weights.shape[-1], int(count / 10 + 0.5)
    score = weights[:, first:].sum((0, 1)).tolist()
    earlier = sorted(range(total - recent), key=lambda slot: (-score[slot], slot))[: count - recent]
    return sorted(earlier) + list(range(total - recent, total))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_density_and_kept_rows_are_those_of_the_eager_matrix(kind):
    technique, look = VLCache(keep_ratio=0.3, threshold=0.1), Look()
    run, whole = prefilled(technique, kind=kind), prefilled(look, kind=kind)
    total = len(run.layout)
    first = int(run.layout.visual.nonzero().max()) + 1
    eager = eager_attention(run, kind)
    expected = [density_by_loops(weights, first, 0.1) for weights in eager]
    asked = run.layout.row[first:]
    for view, wanted in zip(look.views, expected):
        found = density(view.attention()[:, -len(asked) :], view.row, asked, 0.1)
        assert float(found) == pytest.approx(wanted, rel=1e-3)
    counts = [len(rows[0]) for rows in held(run)]
    assert counts == layer_budgets(torch.tensor(expected), [total] * 3, 0.3)
    assert len(set(counts)) > 1
    for rows, weights, count in zip(held(run), eager, counts):
        groups = weights.view(len(rows), -1, total, total)
        assert [row.tolist() for row in rows] == [best_by_loops(group, first, count) for group in groups]
    assert held(whole)[0][0].tolist() == list(range(total))


def test_an_entry_at_the_threshold_is_active_and_unreadable_ones_do_not_count(device):
    weights = torch.tensor([[[0.5, 0.25, 0.125, 0.125, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0]]], device=device)
    row, query_row = torch.arange(5, device=device)[None], torch.tensor([3, 4], device=device)
    assert float(density(weights, row, query_row, 0.25)) == pytest.approx(6 / 9)
    assert float(density(weights, row, query_row, 0.26)) == pytest.approx(4 / 9)


def test_layers_that_are_equally_dense_get_equally_much():
    assert layer_budgets(torch.ones(4), [200] * 4, 0.1) == [20] * 4


def test_a_layer_that_looks_at_one_key_gets_one_percent_and_the_others_what_it_leaves():
    assert layer_budgets(torch.tensor([1e-4, 1.0, 1.0]), [1000] * 3, 0.1) == [10, 145, 145]
    assert layer_budgets(torch.tensor([1e-4, 0.1, 1.0]), [1000] * 3, 0.5) == [10, 490, 1000]


@pytest.mark.parametrize("seed", range(20))
def test_denser_layers_get_no_less_and_the_sum_is_that_of_equal_shares(seed):
    densities = torch.rand(12, generator=torch.Generator().manual_seed(seed)) ** (1 + seed)
    for ratio in (0.004, 0.05, 0.4, 0.97):
        budgets = torch.tensor(layer_budgets(densities, [300] * 12, ratio))
        assert budgets.sum() == 12 * int(ratio * 300 + 0.5)
        assert (budgets[densities.argsort()].diff() >= 0).all()
        assert budgets.min() >= min(3, int(ratio * 300 + 0.5))


def test_layers_that_hold_fewer_rows_keep_no_more_than_these():
    budgets = layer_budgets(torch.tensor([1.0, 1.0, 1.0, 0.5]), [100, 100, 20, 20], 0.5)
    assert sum(budgets) == 120
    assert budgets == [52, 52, 11, 5]


def test_a_tenth_is_recent_and_equal_scores_keep_the_earliest():
    assert chosen(torch.zeros(1, 50), 20).tolist() == [[*range(18), 48, 49]]


def looked(visual, query, device):
    keys = torch.randn(2, len(visual), 8, generator=torch.Generator().manual_seed(0)).to(device)
    return view_of(keys, query, visual=visual)


def test_rows_of_visual_tokens_do_not_matter(device):
    visual = torch.arange(60, device=device) < 54
    query = torch.randn(4, 30, 8, generator=torch.Generator().manual_seed(1)).to(device)
    other = query.clone()
    other[:, :24] = other[:, :24].flip(1) * 5
    slots = [VLCache(0.3).keep([looked(visual, rows, device)])[0] for rows in (query, other)]
    assert torch.equal(*slots)
    other[:, -1] *= -1
    assert not torch.equal(VLCache(0.3).keep([looked(visual, other, device)])[0], slots[0])


@pytest.mark.parametrize("text", [0, 1, 60])
def test_prompts_without_pictures_or_without_text_behind_them_are_defined(text, device):
    visual = torch.arange(60, device=device) < 60 - text
    query = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(1)).to(device)
    view = looked(visual, query, device)
    rows = max(1, min(text, 50))
    alone = replace(view, query=view.query[:, -rows:], query_row=view.query_row[-rows:])
    assert torch.equal(*(VLCache(0.3).keep([each])[0] for each in (view, alone)))
    assert VLCache(0.3).keep([view])[0].shape == (2, 18)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3])
@torch.inference_mode()
def test_bytes_are_those_of_equal_shares_for_every_prompt(ratio):
    for seconds in (3, 1):
        run = prefilled(VLCache(keep_ratio=ratio), seconds=seconds)
        count = int(ratio * len(run.layout) + 0.5)
        assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4


@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked():
    run = prefilled(VLCache(keep_ratio=0.2))
    full = prefilled(Masked(tuple(held(run))))
    assert run.next_position == full.next_position
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_draft_reads_over_layers_of_different_length_what_single_steps_read():
    single, drafted = prefilled(VLCache(keep_ratio=0.2)), prefilled(VLCache(keep_ratio=0.2))
    logits = verify(drafted, TOKENS[0], Draft.chain(TOKENS[1:]))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(VLCache(keep_ratio=1.0))), stepwise(prefilled()))


@torch.inference_mode()
def test_a_cache_that_others_have_shortened_is_shared_out_as_it_is():
    run = prefilled(LastSlots(5), VLCache(keep_ratio=0.4))
    assert sum(len(layer[0]) for layer in held(run)) == 6


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"threshold": 0.0}, {"window": 0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        VLCache(**fields)
