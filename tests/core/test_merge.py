"""Merging against loops over single rows, and ranks in tiers against a sort by pairs."""

import pytest
import torch

from elvi.core import merge
from elvi.core.merge import MERGING, merged
from elvi.core.scores import tiered

HEADS, TOTAL, WIDTH = 2, 40, 6


def rows(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(HEADS, TOTAL, WIDTH, generator=generator).to(device) for _ in range(2))


def some_slots(device, count=9):
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(TOTAL, generator=generator)[:count].sort().values for _ in range(HEADS)]).to(
        device
    )


def by_loops(keys, values, slots, merging):
    """One head: every kept row with the mean of itself and what it is given."""
    stays = slots.tolist()
    given = {c: [] for c in stays}
    for e in range(len(keys)):
        if e not in stays:
            cosines = [float(torch.cosine_similarity(keys[e], keys[c], dim=0)) for c in stays]
            best = max(cosines)
            given[stays[cosines.index(best)]].append((e, best))
    return [
        torch.stack(
            [
                torch.stack([part[c], *(gift(merging, part[e], part[c], cos) for e, cos in given[c])]).mean(0)
                for c in stays
            ]
        )
        for part in (keys, values)
    ]


def gift(merging, e, c, cosine):
    """What the leaving row e contributes to the kept row c."""
    return {"averaged": e, "pivot": (e + c) / 2, "weighted": cosine * e}[merging]


@pytest.mark.parametrize("merging", MERGING[1:])
def test_kept_rows_become_the_mean_of_themselves_and_what_is_merged_into_them(merging, device, monkeypatch):
    monkeypatch.setattr(merge, "CHUNK", 7)
    (keys, values), slots = rows(device), some_slots(device)
    kept = merged(keys, values, slots, merging)
    assert torch.equal(kept.slots, slots)
    for head in range(HEADS):
        expected = by_loops(keys[head], values[head], slots[head], merging)
        torch.testing.assert_close(kept.keys[head], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept.values[head], expected[1], atol=1e-5, rtol=1e-5)


def test_merging_none_drops_what_leaves(device):
    slots = some_slots(device)
    assert merged(*rows(device), slots, "none") is slots


@pytest.mark.parametrize("merging", MERGING[1:])
@pytest.mark.parametrize("count", [0, TOTAL])
def test_nothing_is_merged_where_nothing_or_everything_stays(merging, count, device):
    slots = torch.arange(count, device=device).expand(HEADS, -1)
    assert merged(*rows(device), slots, merging) is slots


def test_duplicates_leave_a_row_as_it_was_but_weighting_by_cosine_shortens_what_is_not_parallel(device):
    keys = torch.eye(4, device=device)[None, [0, 0, 1, 1]] * 3
    slots = torch.tensor([[0, 2]], device=device)
    for merging in MERGING[1:]:
        kept = merged(keys, keys, slots, merging)
        torch.testing.assert_close(kept.keys, keys[:, [0, 2]])
    tilted = keys.clone()
    tilted[:, 1, 2], values = 3.0, torch.ones_like(keys)  # cosine with row 0: sqrt(1/2)
    assert merged(tilted, values, slots, "weighted").values[0, 0, 0] == pytest.approx((1 + 0.5**0.5) / 2)
    assert merged(tilted, values, slots, "averaged").values[0, 0, 0] == 1
    assert merged(tilted, values, slots, "pivot").values[0, 0, 0] == 1


def test_a_row_alike_to_several_goes_to_the_first(device):
    keys = torch.ones(1, 4, 3, device=device)
    values = torch.arange(4.0, device=device)[None, :, None].expand(1, 4, 3)
    kept = merged(keys, values, torch.tensor([[1, 2]], device=device), "averaged")
    assert kept.values[0, :, 0].tolist() == [pytest.approx((1 + 0 + 3) / 3), 2]


def test_merging_is_done_in_float32_and_stored_in_the_dtype_given(device):
    keys, values = (part.half() for part in rows(device))
    kept = merged(keys, values, some_slots(device), "pivot")
    assert kept.keys.dtype == kept.values.dtype == torch.float16
    exact = merged(keys.float(), values.float(), some_slots(device), "pivot")
    torch.testing.assert_close(kept.values.float(), exact.values, atol=1e-3, rtol=1e-3)


def test_ranks_go_by_tier_then_score_then_place(device):
    generator = torch.Generator().manual_seed(2)
    tier = torch.randint(0, 3, (4, 50), generator=generator).to(device)
    score = (torch.randint(0, 9, (4, 50), generator=generator) / 7).to(device)
    for ranks, tiers, scores in zip(tiered(tier, score).tolist(), tier.tolist(), score.tolist()):
        best_first = sorted(range(50), key=lambda slot: (-tiers[slot], -scores[slot], slot))
        assert [ranks[slot] for slot in best_first] == list(range(50, 0, -1))
