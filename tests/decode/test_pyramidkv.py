"""PyramidKV against the integer arithmetic of the paper's code, SnapKV, and a full cache behind a mask."""

from itertools import pairwise

import pytest
import torch
from kvsupport import TOKENS, Masked, held, prefilled, stepwise
from support import LastSlots

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.plan import Layer
from elvi.decode.pyramidkv import PyramidKV, layer_budgets
from elvi.decode.snapkv import SnapKV
from elvi.errors import BudgetError


def released(layers, total, mean, window, beta):
    """Budgets with the window, as the released code reckons them in integers."""
    past = mean - window
    if total < 2 * past:
        return [mean] * layers
    low = past // beta
    high = 2 * past - low
    if high >= total - window:
        high, low = total - window, 2 * past - (total - window)
    step = (high - low) // (layers - 1)
    return [window + high - layer * step for layer in range(layers)]


def counts(run):
    return [len(layer[0]) for layer in held(run)]


@pytest.mark.parametrize("beta", [1, 4, 20])
@pytest.mark.parametrize(("ratio", "window"), [(0.04, 30), (0.1, 30), (0.25, 8), (0.5, 32), (0.51, 32), (0.9, 32)])
@pytest.mark.parametrize("layers", [2, 12, 28])
def test_budgets_are_those_of_the_released_code_but_for_what_it_loses_in_rounding(layers, ratio, window, beta):
    total = 1000
    ours = layer_budgets([total] * layers, [window] * layers, ratio, beta)
    theirs = released(layers, total, int(ratio * total), window, beta)
    assert sum(ours) == layers * int(ratio * total)
    assert all(first >= second >= window for first, second in pairwise(ours))
    assert max(abs(one - two) for one, two in zip(ours, theirs)) <= layers - 1
    assert sum(ours) <= sum(theirs) <= sum(ours) + layers * (layers - 1) / 2


def test_a_line_that_starts_above_the_prompt_starts_at_it_and_ends_higher():
    budgets = layer_budgets([100] * 5, [20] * 5, 0.68, 20)  # 48 before the window on average, 93.6 wanted at the bottom
    assert budgets == [100, 84, 68, 52, 36]


def test_long_shares_of_short_prompts_are_even():
    assert layer_budgets([100] * 5, [20] * 5, 0.71, 20) == [71] * 5


@pytest.mark.parametrize("layers", [1, 2])
def test_one_or_two_layers_are_defined(layers):
    budgets = layer_budgets([100] * layers, [10] * layers, 0.3, 20)
    assert budgets == [[30], [49, 11]][layers - 1]


def test_a_budget_of_the_window_keeps_it_alone_and_a_smaller_one_the_latest_rows():
    assert layer_budgets([100] * 3, [10] * 3, 0.1, 20) == [10] * 3
    assert layer_budgets([100] * 3, [10] * 3, 0.04, 20) == [4] * 3


def test_layers_that_hold_fewer_rows_keep_no_more_than_these_and_the_sum_stays():
    budgets = layer_budgets([100, 100, 20, 20], [10] * 4, 0.5, 4)
    assert sum(budgets) == 50 + 50 + 10 + 10
    assert budgets[0] > budgets[1] > budgets[2] >= budgets[3]
    assert layer_budgets([20, 100, 100, 100], [10] * 4, 0.5, 4)[0] <= 20


@torch.inference_mode()
def test_heads_keep_the_best_of_what_snapkv_ranks_at_the_budget_of_their_layer():
    run = prefilled(PyramidKV(keep_ratio=0.3))
    assert counts(run)[0] > counts(run)[1] > counts(run)[2]
    for layer, count in enumerate(counts(run)):
        alone = prefilled(SnapKV(count / len(run.layout)))
        assert all(torch.equal(one, two) for one, two in zip(held(run)[layer], held(alone)[layer]))


@pytest.mark.parametrize("technique", [PyramidKV(0.3, beta=1), PyramidKV(0.8)])
@torch.inference_mode()
def test_without_slope_or_on_short_prompts_it_is_snapkv(technique):
    run, snapkv = prefilled(technique), prefilled(SnapKV(technique.keep_ratio))
    assert all(torch.equal(one, two) for a, b in zip(held(run), held(snapkv)) for one, two in zip(a, b))


@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.3, 0.6])
@torch.inference_mode()
def test_bytes_are_those_of_equal_shares_and_rows_follow_the_prompt(ratio):
    technique = PyramidKV(keep_ratio=ratio)
    for seconds in (3, 1, 5):
        run = prefilled(technique, seconds=seconds)
        count = int(ratio * len(run.layout) + 0.5)
        assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4
        window = len(run.layout) - int(run.layout.visual.nonzero().max()) - 1
        assert counts(run) == layer_budgets([len(run.layout)] * 3, [window] * 3, ratio, 20)


@pytest.mark.parametrize("ratio", [0.02, 0.3])
@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked(ratio):
    run = prefilled(PyramidKV(keep_ratio=ratio))
    full = prefilled(Masked(tuple(held(run))))
    assert run.next_position == full.next_position
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_draft_reads_over_layers_of_different_length_what_single_steps_read():
    single, drafted = prefilled(PyramidKV(keep_ratio=0.2)), prefilled(PyramidKV(keep_ratio=0.2))
    logits = verify(drafted, TOKENS[0], Draft.chain(TOKENS[1:]))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(PyramidKV(keep_ratio=1.0))), stepwise(prefilled()))


class HalfThePicture:
    """Drops every other visual token on the way into layer 1."""

    needs = breaks = frozenset()
    lossless = False
    at = Layer(1)

    def reduce(self, tokens, seen):
        return tokens.keep(~tokens.visual | (tokens.row % 2 == 0))


@torch.inference_mode()
def test_shares_are_of_what_the_layers_hold_when_others_act_first():
    whole = prefilled(HalfThePicture())
    run = prefilled(HalfThePicture(), PyramidKV(keep_ratio=0.2))
    assert sum(counts(run)) == sum(int(0.2 * count + 0.5) for count in counts(whole))
    run = prefilled(LastSlots(5), PyramidKV(keep_ratio=0.4))
    assert counts(run) == [2] * 3


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"window": 0}, {"kernel": 4}, {"beta": 0.5}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        PyramidKV(**fields)
