"""AdaKV against plain loops over the attention, SnapKV, and a full cache behind a mask."""

import pytest
import torch
from kvsupport import TOKENS, Look, Masked, held, prefilled, stepwise, view_of
from support import LastSlots

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.rows import Ragged
from elvi.core.scores import observed
from elvi.decode.adakv import AdaKV
from elvi.decode.snapkv import SnapKV
from elvi.errors import BudgetError


def by_loops(scores, window, mean, floor_ratio, normalise):
    """Rows that every head keeps of scores (lists), `mean` besides the window; budgets not rounded."""
    total = len(scores[0]) + window
    if normalise:
        scores = [[s * sum(sorted(head)[-mean:]) / sum(head) for s in head] for head in scores]
    entries = sorted((-s, head, slot) for head, row in enumerate(scores) for slot, s in enumerate(row))
    winners = [head for _, head, _ in entries[: mean * len(scores)]]
    share = (mean - int(floor_ratio * mean)) / mean
    budgets = [share * winners.count(head) + int(floor_ratio * mean) for head in range(len(scores))]
    ranked = [sorted(range(len(row)), key=lambda slot: (-row[slot], slot)) for row in scores]
    return budgets, lambda head, count: sorted(ranked[head][:count]) + list(range(total - window, total))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("floor_ratio", [0.0, 0.2])
@torch.inference_mode()
def test_kept_rows_are_those_of_the_paper_by_plain_loops(floor_ratio, normalise):
    look = Look()
    prefilled(look)
    run = prefilled(AdaKV(keep_ratio=0.3, floor_ratio=floor_ratio, normalise=normalise))
    for view, rows in zip(look.views, held(run)):
        score, total = observed(view, 32, 5), view.keys.shape[1]
        window = total - score.shape[1]
        mean = int(0.3 * total + 0.5) - window
        budgets, best = by_loops(score.tolist(), window, mean, floor_ratio, normalise)
        counts = [len(row) - window for row in rows]
        assert sum(counts) == mean * len(rows)
        assert all(abs(count - wanted) < 1 for count, wanted in zip(counts, budgets))
        assert [row.tolist() for row in rows] == [best(head, count) for head, count in enumerate(counts)]


@torch.inference_mode()
def test_heads_differ_in_length_and_the_bytes_are_those_of_equal_shares():
    for ratio in (0.02, 0.1, 0.3, 0.9):
        run = prefilled(AdaKV(keep_ratio=ratio))
        count = int(ratio * len(run.layout) + 0.5)
        assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4
        assert any(isinstance(layer.rows, Ragged) for layer in run.store.layers) == (ratio > 0.1)


@torch.inference_mode()
def test_a_whole_floor_is_snapkv_token_by_token():
    for ratio in (0.05, 0.3):
        run, snapkv = prefilled(AdaKV(ratio, floor_ratio=1.0)), prefilled(SnapKV(ratio))
        assert all(torch.equal(one, two) for a, b in zip(held(run), held(snapkv)) for one, two in zip(a, b))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked(kind):
    run = prefilled(AdaKV(keep_ratio=0.2, floor_ratio=0.0), kind=kind)
    full = prefilled(Masked(tuple(held(run))), kind=kind)
    assert run.next_position == full.next_position
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_rows_appended_later_join_every_head():
    run = prefilled(AdaKV(keep_ratio=0.2))
    before = held(run)
    stepwise(run, TOKENS[:3])
    new = torch.arange(len(run.layout), len(run.layout) + 3)
    assert all(torch.equal(torch.cat([a, new]), b) for old, now in zip(before, held(run)) for a, b in zip(old, now))


@torch.inference_mode()
def test_a_draft_reads_over_ragged_heads_what_single_steps_read():
    single, drafted = prefilled(AdaKV(keep_ratio=0.2)), prefilled(AdaKV(keep_ratio=0.2))
    logits = verify(drafted, TOKENS[0], Draft.chain(TOKENS[1:]))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(AdaKV(keep_ratio=1.0))), stepwise(prefilled()))


def two_heads(device):
    """60 keys; queries of head 0 look at slot 20 alone, those of head 1 at slots 10 to 39 alike."""
    keys = torch.zeros(2, 60, 4, device=device)
    keys[0, 20, 0] = keys[1, 10:40, 0] = 16.0
    query = torch.zeros(2, 8, 4, device=device)
    query[..., 0] = 2.0
    return view_of(keys, query)


def test_a_head_that_looks_at_one_key_leaves_its_slots_to_the_other(device):
    technique = AdaKV(keep_ratio=18 / 60, window=8, kernel=1, floor_ratio=0.0, normalise=False)
    ((sharp, broad),) = technique.keep([two_heads(device)])
    assert sharp.tolist() == [20, *range(52, 60)]
    assert broad.tolist() == [*range(10, 29), *range(52, 60)]


def test_the_floor_is_kept_free_for_every_head(device):
    technique = AdaKV(keep_ratio=18 / 60, window=8, kernel=1, floor_ratio=0.5, normalise=False)
    ((sharp, broad),) = technique.keep([two_heads(device)])
    assert (len(sharp), len(broad)) == (8 + 5 + 1, 8 + 5 + 9)  # half of 10 for either, the rest by 1 to 19: 0.5 and 9.5


def test_one_head_alone_is_snapkv(device):
    generator = torch.Generator().manual_seed(0)
    keys, query = (torch.randn(heads, rows, 8, generator=generator).to(device) for heads, rows in ((1, 50), (3, 8)))
    ((ours,),) = AdaKV(0.4, window=8).keep([view_of(keys, query)])
    ((snapkv,),) = SnapKV(0.4, window=8).keep([view_of(keys, query)])
    assert torch.equal(ours, snapkv)


@torch.inference_mode()
def test_a_cache_that_is_shorter_than_the_window_keeps_its_latest_rows():
    run = prefilled(LastSlots(5), AdaKV(keep_ratio=0.4))
    assert all(torch.equal(row, run.layout.row[-2:]) for layer in held(run) for row in layer)


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"window": 0}, {"kernel": 4}, {"floor_ratio": 1.5}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        AdaKV(**fields)
