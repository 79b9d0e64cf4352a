"""MadaKV against loops over rows; its budgets against the recursion written out."""

import pytest
import torch
from kvsupport import Masked, held, prefilled, stepwise, view_of

from elvi.core.scores import observers, window_score
from elvi.decode.madakv import MadaKV, chosen, needed
from elvi.decode.snapkv import SnapKV
from elvi.errors import BudgetError

PROXIES = 4


def scene(device, kinds, pulls):
    """Two heads; the last 4 rows are proxies that attend to a row in proportion to exp(pull); kinds: v or t a row."""
    keys = torch.zeros(2, len(kinds), 4, device=device)
    keys[:, :, 0] = torch.tensor(pulls, device=device) * 2  # scaling is 1/2
    query = torch.zeros(4, PROXIES, 4, device=device)
    query[..., 0] = 1
    return view_of(keys, query, visual=torch.tensor([kind == "v" for kind in kinds], device=device))


def by_loops(score, visual, proxies, count):
    """Kept rows of one head, from its scores and modalities as lists."""
    total = len(score)
    earlier, own = range(total - proxies), min(proxies, count)
    modality = {kind: [row for row in earlier if visual[row] == kind] for kind in (True, False)}
    mass = {kind: sum(score[row] for row in rows) for kind, rows in modality.items()}
    rest = count - own
    num_visual = int(rest * mass[True] / (mass[True] + mass[False]) + 0.5)
    num_visual = min(max(num_visual, rest - len(modality[False])), len(modality[True]))
    kept = list(range(total - own, total))
    for kind, number in ((True, num_visual), (False, rest - num_visual)):
        kept += sorted(modality[kind], key=lambda row: (-score[row], row))[:number]
    return sorted(kept)


class Everything:
    """Remembers the views."""

    needs = breaks = frozenset()
    lossless, rolling, window = True, False, 32

    def keep(self, views):
        self.views = views
        return [None] * len(views)


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.8])
@torch.inference_mode()
def test_heads_keep_what_loops_over_the_rows_keep(ratio):
    everything = Everything()
    visual = prefilled(everything).layout.visual
    mixes = set()
    for rows, view in zip(held(prefilled(MadaKV(keep_ratio=ratio))), everything.views):
        proxies = observers(view.query_row, view.layout, 32)
        for kept, score in zip(rows, window_score(view, proxies).tolist()):
            assert kept.tolist() == by_loops(score, visual.tolist(), proxies, len(kept))
            mixes.add(int(visual[kept].sum()))
    assert len(mixes) > 1


@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked():
    run = prefilled(MadaKV(keep_ratio=0.3))
    full = prefilled(Masked(tuple(held(run))))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(MadaKV(keep_ratio=1.0))), stepwise(prefilled()))


@pytest.mark.parametrize("retention", ["plan", "demand"])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.95])
@torch.inference_mode()
def test_bytes_are_the_mean_budget_exactly(ratio, retention):
    run = prefilled(MadaKV(keep_ratio=ratio, retention=retention))
    count = int(ratio * len(run.layout) + 0.5)
    assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4


def test_a_head_with_all_its_mass_on_text_keeps_text_and_proxies(device):
    view = scene(device, "v" * 20 + "t" * 20 + "t" * PROXIES, [-60.0] * 20 + [1.0, 2.0] * 10 + [0.0] * PROXIES)
    assert chosen(view, PROXIES, 14).tolist() == [[*range(21, 40, 2), 40, 41, 42, 43]] * 2


def test_a_head_splits_in_proportion_to_the_masses(device):
    """10 visual rows of mass 3 and 10 of text of mass 1: three quarters of 8 rows are visual."""
    pulls = [1.0986123] * 10 + [0.0] * (10 + PROXIES)
    view = scene(device, "v" * 10 + "t" * 10 + "t" * PROXIES, pulls)
    kept = chosen(view, PROXIES, 8 + PROXIES)
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 22, 23]] * 2


def test_what_one_modality_cannot_fill_goes_to_the_other(device):
    view = scene(device, "vvv" + "t" * 20 + "t" * PROXIES, [9.0] * 3 + [0.0] * (20 + PROXIES))
    assert chosen(view, PROXIES, 9 + PROXIES)[0].tolist() == [0, 1, 2, *range(3, 9), 23, 24, 25, 26]
    view = scene(device, "v" * 20 + "ttt" + "t" * PROXIES, [0.0] * 20 + [9.0] * 3 + [0.0] * PROXIES)
    assert chosen(view, PROXIES, 9 + PROXIES)[0].tolist() == [*range(6), 20, 21, 22, 23, 24, 25, 26]


@pytest.mark.parametrize("kind", "tv")
def test_a_prompt_of_one_modality_keeps_what_is_attended_to_most(kind, device):
    view = scene(device, kind * 20 + "t" * PROXIES, [float(n % 7) for n in range(20)] + [0.0] * PROXIES)
    assert chosen(view, PROXIES, 4 + PROXIES)[0].tolist() == [5, 6, 12, 13, 20, 21, 22, 23]


def test_a_budget_below_the_proxies_keeps_their_latest(device):
    view = scene(device, "v" * 20 + "t" * PROXIES, [5.0] * 20 + [0.0] * PROXIES)
    assert chosen(view, PROXIES, 3).tolist() == [[21, 22, 23]] * 2
    assert chosen(view, PROXIES, 0).shape == (2, 0)


def test_needs_are_the_fewest_rows_that_hold_the_share(device):
    """Visual masses 8, 4, 2, 1, 1 and text masses 1, 1; proxies attend to themselves as little."""
    masses = [1.0, 8.0, 2.0, 4.0, 1.0, 1.0, 1.0]
    pulls = torch.tensor(masses).log().tolist() + [-9.0] * PROXIES
    view = scene(device, "vvvvvtt" + "t" * PROXIES, pulls)
    for theta, visual, text in ((0.4, 1, 1), (0.7, 2, 2), (0.8, 3, 2), (0.93, 4, 2), (1.0, 5, 2)):
        assert needed(view, PROXIES, theta) == PROXIES + visual + text


def recursion(needs, lengths, phi, floor):
    """phi(l) as the paper writes it, layer by layer, l from 1."""
    layers, phis = len(needs), []
    for layer in range(1, layers + 1):
        phi = min(max(phi, floor), lengths[layer - 1])
        phis.append(phi)
        if layer < layers:
            phi = phi - (needs[layer - 1] - phi) / (layers - layer)
    return phis


def test_layers_that_need_what_they_have_keep_the_budget():
    assert MadaKV().budgets([40.0] * 5, [200] * 5, 200, 8).tolist() == [40] * 5


@pytest.mark.parametrize("retention", ["plan", "demand"])
def test_a_layer_that_needs_more_leaves_less_to_those_after_it(retention):
    counts = MadaKV(retention=retention).budgets([60.0, 40.0, 40.0, 40.0], [200] * 4, 160, 8).tolist()
    fewer = MadaKV(retention=retention).budgets([20.0, 40.0, 40.0, 40.0], [200] * 4, 160, 8).tolist()
    assert counts == sorted(counts, reverse=True)
    assert fewer == sorted(fewer)
    assert counts[-1] < 40 < fewer[-1]
    assert sum(counts) == sum(fewer) == 160


def test_a_plan_above_the_total_is_scaled_down_to_it():
    needs, lengths = [10.0, 20.0, 35.0, 41.0, 10.0], [200] * 5
    phis = torch.tensor(recursion(needs, lengths, 40.0, 8), dtype=torch.double) - 8
    counts = MadaKV().budgets(needs, lengths, 200, 8)
    assert phis.sum() > 200 - 40
    assert (counts - (8 + phis / phis.sum() * (200 - 40))).abs().max() < 1
    assert counts.sum() == 200


def test_what_a_plan_leaves_of_the_total_is_shared_equally():
    needs, lengths = [90.0, 50.0, 75.0, 80.0, 10.0], [200] * 5
    phis = torch.tensor(recursion(needs, lengths, 40.0, 8), dtype=torch.double)
    counts = MadaKV().budgets(needs, lengths, 200, 8)
    assert phis.sum() < 200
    assert (counts - (phis + (200 - phis.sum()) / 5)).abs().max() <= 1
    assert counts.sum() == 200


def test_demanded_budgets_are_the_needs_and_the_last_layer_takes_the_rest():
    counts = MadaKV(retention="demand").budgets([50.0, 30.0, 45.0, 10.0], [200] * 4, 160, 8)
    assert counts.tolist() == [50, 30, 45, 35]


def test_demand_leaves_every_later_layer_its_proxies():
    counts = MadaKV(retention="demand").budgets([190.0] * 4, [200] * 4, 160, 8)
    assert counts.tolist() == [136, 8, 8, 8]


def test_what_exceeds_a_layer_goes_to_the_others():
    counts = MadaKV(retention="demand").budgets([10.0] * 4, [50] * 4, 160, 8)
    assert counts.sum() == 160
    assert counts.max() == 50


@torch.inference_mode()
def test_it_can_only_follow_what_left_heads_equally_long():
    run = prefilled(SnapKV(keep_ratio=0.6), MadaKV(keep_ratio=0.5))
    count = int(int(0.6 * len(run.layout) + 0.5) * 0.5 + 0.5)
    assert sum(run.store.lengths) == count * run.family.num_layers


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"window": 0}, {"theta": 0.0}, {"retention": "both"}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        MadaKV(**fields)
