"""MixKV against plain loops over keys and attention, SnapKV, AdaKV's split, and a full cache behind a mask."""

import pytest
import torch
from kvsupport import TOKENS, Look, Masked, held, prefilled, stepwise, view_of
from support import LastSlots, random_family

from elvi.core.accept import Draft
from elvi.core.budgets import over_heads
from elvi.core.generate import verify
from elvi.core.plan import Plan
from elvi.core.scores import observed
from elvi.decode.calibquant import CalibQuant
from elvi.decode.mixkv import MixKV, mixed, redundancy, scaled
from elvi.errors import BudgetError, PlanError


def dot(one, two):
    return sum(a * b for a, b in zip(one, two))


def units(keys):
    return [[x / dot(key, key) ** 0.5 for x in key] for key in keys]


def pairwise_cosine(keys):
    """Mean over all pairs of different keys, one by one."""
    unit = units(keys)
    cosines = [dot(a, b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    return sum(cosines) / len(cosines)


def onto(values, like):
    low, high = min(values), max(values)
    spread = [(value - low) / (high - low + 1e-8) for value in values]
    factor = (sum(like) / len(like)) / (sum(spread) / len(spread) + 1e-8)
    return [value * factor for value in spread]


def by_loops(attended, keys, values):
    """Scores of one head, lists in and out."""
    unit, prefix = units(keys), len(attended)
    mean = [sum(column) / len(unit) for column in zip(*unit)]
    diversity = onto([-dot(u, mean) for u in unit[:prefix]], attended)
    norms = onto([dot(value, value) ** 0.5 for value in values[:prefix]], attended)
    r = pairwise_cosine(keys)
    return [r * d + (1 - r) * (a + n) for a, d, n in zip(attended, diversity, norms)]


@torch.inference_mode()
def test_scores_and_kept_rows_are_those_of_plain_loops():
    look = Look()
    prefilled(look)
    run = prefilled(MixKV(keep_ratio=0.3))
    for view, rows in zip(look.views, held(run)):
        attended, total = observed(view, 32, 5), view.keys.shape[1]
        ours = mixed(attended, view.keys, view.values)
        for head, kept in enumerate(rows):
            theirs = by_loops(attended[head].tolist(), view.keys[head].tolist(), view.values[head].tolist())
            torch.testing.assert_close(ours[head], torch.tensor(theirs), atol=1e-6, rtol=1e-3)
            window = total - len(theirs)
            best = sorted(range(len(theirs)), key=lambda slot: (-float(ours[head, slot]), slot))
            expected = sorted(best[: int(0.3 * total + 0.5) - window]) + list(range(total - window, total))
            assert kept.tolist() == expected


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 10.0])
def test_the_closed_form_of_redundancy_is_the_mean_cosine_over_all_pairs(spread, device):
    generator = torch.Generator().manual_seed(0)
    keys = (torch.randn(1, 8, generator=generator) + spread * torch.randn(30, 8, generator=generator)).to(device)
    mean = (keys / keys.norm(dim=1, keepdim=True)).mean(0)
    found = redundancy(mean[None, None], 30)
    assert float(found) == pytest.approx(pairwise_cosine(keys.tolist()), abs=1e-5)


def test_identical_keys_repeat_wholly_and_are_ranked_without_nan(device):
    keys = torch.ones(2, 20, 4, device=device)
    assert redundancy(keys[:, :1] / 2, 20).flatten().tolist() == pytest.approx([1.0, 1.0])
    score = mixed(torch.rand(2, 12, device=device), keys, torch.rand(2, 20, 4, device=device))
    assert score.abs().max() < 1e-5
    assert (
        MixKV(0.7).keep([view_of(keys, torch.ones(2, 8, 4, device=device))])[0].tolist()
        == [[*range(6), *range(12, 20)]] * 2
    )


def test_a_single_slot_is_defined(device):
    one = torch.ones(1, 1, 4, device=device)
    assert redundancy(one / 2, 1).isfinite().all()
    assert mixed(torch.ones(1, 1, device=device), one, one).isfinite().all()
    assert mixed(torch.ones(1, 0, device=device), one, one).shape == (1, 0)


def random_inputs(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 40, 8, generator=generator).to(device) for _ in range(2))
    return torch.rand(2, 30, generator=generator).to(device), keys, values


def order(score):
    return score.argsort(dim=-1, descending=True, stable=True)


def test_heads_that_do_not_repeat_are_ranked_by_importance(device):
    attended, _, values = random_inputs(device)
    signs = torch.tensor([1.0, -1.0], device=device).repeat(20)  # pairs that cancel: the mean is zero
    keys = signs[None, :, None] * torch.ones(2, 1, 8, device=device)
    importance = attended + scaled(values[:, :30].norm(dim=-1), attended)
    torch.testing.assert_close(mixed(attended, keys, values), importance)


def test_heads_that_repeat_are_ranked_by_diversity(device):
    attended, noise, values = random_inputs(device)
    keys = torch.ones(2, 40, 8, device=device) + 1e-3 * noise
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    unlike = -(unit @ unit.mean(1, keepdim=True).mT)[..., 0]
    ours = mixed(attended.double(), keys.double(), values.double())
    assert torch.equal(order(ours)[:, :10], order(unlike[:, :30])[:, :10])


def test_scaling_attention_or_the_length_of_keys_leaves_the_ranking(device):
    attended, keys, values = random_inputs(device)
    score = mixed(attended, keys, values)
    torch.testing.assert_close(mixed(attended * 1000, keys, values), score * 1000, rtol=1e-4, atol=1e-4)
    longer = keys.clone()
    longer[:, 3] *= 50
    torch.testing.assert_close(mixed(attended, longer, values), score, rtol=1e-4, atol=1e-5)


def test_the_few_keys_unlike_all_others_are_kept(device):
    generator = torch.Generator().manual_seed(0)
    keys = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(1, 60, 1)
    unique = [5, 17, 23, 41]
    keys[0, unique] = torch.randn(4, 4, generator=generator) * torch.tensor([0.0, 1.0, 1.0, 1.0])
    query = torch.tensor([4.0, 0.0, 0.0, 0.0]).repeat(1, 8, 1)  # attends to the duplicates
    view = view_of(keys.to(device), query.to(device))
    (slots,) = MixKV(keep_ratio=14 / 60, window=8, kernel=1).keep([view])
    assert set(unique) <= set(slots[0].tolist())


@torch.inference_mode()
def test_adaptive_budgets_follow_the_best_scores_of_all_heads():
    look, technique = Look(), MixKV(keep_ratio=0.3, budgets="adaptive")
    prefilled(look)
    run = prefilled(technique)
    for view, rows in zip(look.views, held(run)):
        attended, total = observed(view, 32, 5), view.keys.shape[1]
        mean, window = int(0.3 * total + 0.5), total - attended.shape[1]
        shares = over_heads(mixed(attended, view.keys, view.values), mean - window, 0.2, normalise=True)
        assert [len(row) for row in rows] == (shares + window).tolist()
    assert run.store.nbytes == int(0.3 * len(run.layout) + 0.5) * 3 * 2 * 32 * 2 * 4
    assert any(len(rows[0]) != len(rows[1]) for rows in held(run))


def test_only_adaptive_budgets_end_that_heads_hold_equally_many():
    family = random_family("qwen2_5_vl")
    Plan(MixKV(), CalibQuant()).check(family)
    with pytest.raises(PlanError, match=r"CalibQuant needs that all heads .* MixKV"):
        Plan(MixKV(budgets="adaptive"), CalibQuant()).check(family)


@pytest.mark.parametrize("budgets", ["uniform", "adaptive"])
@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked(budgets):
    technique = MixKV(keep_ratio=0.2, budgets=budgets)
    run = prefilled(technique)
    full = prefilled(Masked(tuple(held(run))))
    logits = stepwise(run)
    assert run.next_position == full.next_position + len(TOKENS)
    torch.testing.assert_close(logits, stepwise(full), atol=1e-4, rtol=1e-4)
    drafted = verify(prefilled(technique), TOKENS[0], Draft.chain(TOKENS[1:]))
    torch.testing.assert_close(drafted, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budgets", ["uniform", "adaptive"])
@torch.inference_mode()
def test_small_budgets_keep_the_latest_rows_and_bytes_are_the_budget(budgets):
    for ratio in (0.02, 0.1, 0.5):
        run = prefilled(MixKV(ratio, budgets=budgets))
        count = int(ratio * len(run.layout) + 0.5)
        assert run.store.nbytes == count * 3 * 2 * 32 * 2 * 4
        if ratio < 0.1:
            assert all(torch.equal(row, run.layout.row[-count:]) for layer in held(run) for row in layer)
    run = prefilled(LastSlots(5), MixKV(0.4, budgets=budgets))
    assert all(torch.equal(row, run.layout.row[-2:]) for layer in held(run) for row in layer)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(MixKV(keep_ratio=1.0))), stepwise(prefilled()))


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"window": 0}, {"kernel": 4}, {"budgets": "even"}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        MixKV(**fields)
