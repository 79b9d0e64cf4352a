"""SnapKV against the eager attention matrix and plain loops."""

import pytest
import torch
from kvsupport import Masked, eager_attention, held, prefilled, stepwise, view_of
from support import random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.scores import SHORTEST, observers, window_score
from elvi.decode.snapkv import SnapKV
from elvi.errors import BudgetError


def by_loops(weights, window, count, kernel):
    """Kept rows of one head: weights [G, N, N] of the query heads of its group."""
    total = weights.shape[-1]
    earlier = total - window
    score = [float(weights[:, earlier:, j].sum(1).mean()) for j in range(earlier)]
    reach = kernel // 2
    smooth = [sum(score[max(0, j - reach) : j + reach + 1]) / kernel for j in range(earlier)]
    best = sorted(range(earlier), key=lambda j: (-smooth[j], j))[: count - window]
    return sorted(best) + list(range(earlier, total))


@pytest.mark.parametrize(("kind", "kernel"), [("qwen2_5_vl", 5), ("llava", 1)])
@torch.inference_mode()
def test_kept_rows_are_those_of_the_paper_from_the_eager_matrix(kind, kernel):
    technique = SnapKV(keep_ratio=0.4, window=10, kernel=kernel)
    run = prefilled(technique, kind=kind)
    total = len(run.layout)
    for layer, weights in zip(run.store.layers, eager_attention(run, kind)):
        groups = weights.view(layer.row.shape[0], -1, total, total)
        expected = [by_loops(group, 10, int(0.4 * total + 0.5), kernel) for group in groups]
        assert layer.row.tolist() == expected


@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked():
    run = prefilled(SnapKV(keep_ratio=0.3))
    full = prefilled(Masked(tuple(held(run))))
    assert run.next_position == full.next_position
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(SnapKV(keep_ratio=1.0))), stepwise(prefilled()))


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.25, 0.9])
@torch.inference_mode()
def test_bytes_are_budget_by_layers_heads_width_and_both_halves(ratio):
    run = prefilled(SnapKV(keep_ratio=ratio))
    count = int(ratio * len(run.layout) + 0.5)
    assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4
    assert run.store.lengths == [count] * run.family.num_layers


@torch.inference_mode()
def test_window_is_the_text_after_the_picture_and_always_stays():
    run = prefilled(SnapKV(keep_ratio=0.2))
    text = run.layout.row[int(run.layout.visual.nonzero().max()) + 1 :]
    assert SHORTEST <= len(text) < 32
    assert observers(run.layout.row[-32:], run.layout, 32) == len(text)
    assert all(torch.equal(row[-len(text) :], text) for layer in held(run) for row in layer)


@torch.inference_mode()
def test_a_budget_below_the_window_keeps_the_latest_rows():
    run = prefilled(SnapKV(keep_ratio=0.03, window=12))
    assert all(torch.equal(row, run.layout.row[-len(row) :]) for layer in held(run) for row in layer)
    assert run.store.lengths[0] == int(0.03 * len(run.layout) + 0.5) < 12


@pytest.mark.parametrize(("text", "window", "rows"), [(20, 32, 20), (20, 16, 16), (3, 32, 8), (3, 5, 5)])
def test_window_is_clamped_to_the_text_but_not_below_eight(text, window, rows):
    visual = torch.arange(60) < 60 - text
    view = view_of(torch.zeros(1, 60, 4), torch.zeros(1, 40, 4), visual=visual)
    assert observers(view.query_row, view.layout, window) == rows


def test_a_prompt_shorter_than_the_window_is_defined(device):
    view = view_of(torch.zeros(2, 6, 4, device=device), torch.zeros(4, 6, 4, device=device))
    (slots,) = SnapKV(keep_ratio=0.5).keep([view])
    assert slots.tolist() == [[3, 4, 5]] * 2


def needle_view(device, place=20, window=8):
    """One key among 60 points along all window queries; the others are orthogonal to them."""
    keys = torch.zeros(1, 60, 4, device=device)
    keys[:, place, 0] = 8.0
    query = torch.zeros(2, window, 4, device=device)
    query[..., 0] = 1.0
    return view_of(keys, query)


def test_a_needle_survives_at_one_slot_more_than_the_window(device):
    (slots,) = SnapKV(keep_ratio=9 / 60, window=8, kernel=1).keep([needle_view(device)])
    assert slots.tolist() == [[20, *range(52, 60)]]


def test_pooling_keeps_the_neighbours_of_a_needle(device):
    (slots,) = SnapKV(keep_ratio=13 / 60, window=8, kernel=5).keep([needle_view(device)])
    assert slots.tolist() == [[18, 19, 20, 21, 22, *range(52, 60)]]


def test_equal_scores_keep_the_earliest_slots(device):
    # Zero beyond the ends counts in the average, so slots 0 and 1 score less than those after them.
    view = view_of(torch.zeros(1, 60, 4, device=device), torch.zeros(1, 8, 4, device=device))
    (slots,) = SnapKV(keep_ratio=11 / 60, window=8).keep([view])
    assert slots.tolist() == [[2, 3, 4, *range(52, 60)]]


def test_order_of_query_heads_inside_a_group_does_not_matter(device):
    generator = torch.Generator().manual_seed(0)
    keys, query = (torch.randn(heads, rows, 8, generator=generator).to(device) for heads, rows in ((2, 50), (6, 8)))
    score = window_score(view_of(keys, query), 8)
    torch.testing.assert_close(window_score(view_of(keys, query[[2, 0, 1, 4, 5, 3]]), 8), score)
    assert not torch.allclose(window_score(view_of(keys, query[[3, 4, 5, 0, 1, 2]]), 8), score)


@pytest.mark.parametrize("fields", [{"keep_ratio": 1.1}, {"window": 0}, {"kernel": 4}, {"kernel": 0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        SnapKV(**fields)


@torch.inference_mode()
def test_text_alone_is_compressed_too():
    report = generate(
        random_family("llama"), None, "what color is the star ?", plan=Plan(SnapKV(0.5)), max_new_tokens=2
    ).report
    assert report.kv_bytes == int(report.prompt_tokens * 0.5 + 0.5) * 3 * 2 * 32 * 2 * 4
