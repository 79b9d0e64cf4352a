"""MEDA against dense entropies and loops over rows; its budgets against the formula."""

import pytest
import torch
from kvsupport import Masked, held, prefilled, stepwise, view_of

from elvi.core.scores import WHOLE_PROMPT, column_sums
from elvi.decode.meda import MEDA, across_modalities, floored, spread
from elvi.errors import BudgetError

ENTROPY = torch.tensor([2.0, 2.4, 1.1, 2.9])
LENGTHS = torch.tensor([200] * 4)


class Everything:
    """Remembers the views of the whole prompt."""

    needs = breaks = frozenset()
    lossless, rolling, window = True, False, WHOLE_PROMPT

    def keep(self, views):
        self.views = views
        return [None] * len(views)


def test_shares_are_the_softmax_of_entropies_and_add_up():
    budgets = MEDA(keep_ratio=0.2).budgets(ENTROPY, LENGTHS)
    assert budgets.sum() == 160
    assert (budgets - ENTROPY.softmax(0) * 160).abs().max() < 1


def test_a_higher_temperature_evens_the_layers_out():
    plain, warm = (MEDA(temperature=t).budgets(ENTROPY, LENGTHS).double() for t in (1.0, 8.0))
    assert warm.std() < plain.std() / 4
    assert warm.sum() == plain.sum()


def test_equal_entropies_give_equal_budgets():
    assert MEDA(keep_ratio=0.25).budgets(torch.full((4,), 3.3), LENGTHS).tolist() == [50] * 4


@pytest.mark.parametrize("ratio", [0.004, 0.05, 0.3, 0.7, 0.999])
def test_clamped_layers_are_settled_with_the_others(ratio):
    entropy = torch.tensor([9.0, 1.0, 0.0, 2.0, 2.5])
    lengths = torch.tensor([300, 300, 300, 120, 120])
    budgets = MEDA(keep_ratio=ratio).budgets(entropy, lengths)
    assert budgets.sum() == sum(int(ratio * n + 0.5) for n in lengths.tolist())
    assert (budgets <= lengths).all()
    assert (budgets >= (lengths * min(ratio, 0.01)).long()).all()


def test_the_released_clamp_misses_the_total():
    """One layer much more spread out than the others: they are lifted to 1 %, and it cannot take more than it has."""
    budgets = MEDA(keep_ratio=0.5, exact=False).budgets(torch.tensor([12.0, 1.0, 1.0, 1.0]), LENGTHS)
    assert budgets.tolist() == [200, 2, 2, 2]
    assert budgets.sum() < 0.5 * LENGTHS.sum()


def test_where_nothing_is_clamped_the_released_budgets_are_the_formulas_rounded_down_in_halves():
    share = ENTROPY.double().softmax(0) * 4 * 0.2
    expected = [2 * int(200 * float(rho) / 2) for rho in share]
    assert MEDA(keep_ratio=0.2, exact=False).budgets(ENTROPY, LENGTHS).tolist() == expected


def test_a_floor_is_reached_by_taking_from_the_others():
    weight = torch.tensor([100.0, 50.0, 1.0, 0.0])
    parts = floored(weight, 60, torch.full((4,), 50), torch.full((4,), 5))
    assert parts.tolist() == [33, 17, 5, 5]


def modalities(device, kinds, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    keys, query = (torch.randn(n, len(kinds), 8, generator=generator).to(device, dtype) for n in (2, 4))
    return view_of(keys, query, visual=torch.tensor([kind == "v" for kind in kinds], device=device))


def entropy_by_rows(view, kinds):
    """The restricted softmaxes one by one, each over the keys of the other modality that its row may see."""
    means = 0.0
    for kind in "tv":
        found = []
        for head, queries in enumerate(view.query.float()):
            for row, query in enumerate(queries):
                seen = [key for key in range(row + 1) if kinds[key] != kind]
                if kinds[row] == kind:
                    p = (view.keys[head // 2, seen].float() @ query * view.scaling).softmax(0)
                    found.append(float(-(p * p.log()).sum()))
        means += sum(found) / len(found)
    return means


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entropy_across_modalities_is_that_of_restricted_softmaxes(dtype, device, monkeypatch):
    monkeypatch.setattr("elvi.core.scores.CHUNK", 7)
    kinds = "ttt" + "v" * 11 + "tt" + "v" * 6 + "tttt"
    view = modalities(device, kinds, dtype)
    assert float(across_modalities(view)) == pytest.approx(entropy_by_rows(view, kinds), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_entropy_in_chunks_is_that_of_the_whole_matrix(dtype, device, monkeypatch):
    monkeypatch.setattr("elvi.core.scores.CHUNK", 7)
    view = modalities(device, "t" * 9 + "v" * 30 + "tttt", dtype)
    weights = view.attention().double()
    assert float(spread(view)) == pytest.approx(float(torch.special.entr(weights).sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize("kind", "tv")
def test_prompts_of_one_modality_have_no_entropy_across_and_even_budgets(kind, device):
    view = modalities(device, kind * 20)
    assert across_modalities(view) == 0
    kept = MEDA(keep_ratio=0.5, entropy="cross_modal", merging="none").keep([view, view])
    assert [slots.shape for slots in kept] == [(2, 10)] * 2


@torch.inference_mode()
def test_a_layer_that_looks_at_one_row_gets_the_least(device):
    even, sharp = modalities(device, "t" * 40), modalities(device, "t" * 40)
    sharp.query.mul_(50)
    kept = MEDA(keep_ratio=0.3, merging="none").keep([even, sharp, even])
    assert len(kept[1][0]) < len(kept[0][0]) == len(kept[2][0])


@pytest.mark.parametrize("entropy", ["full", "cross_modal"])
@torch.inference_mode()
def test_each_layer_keeps_its_latest_rows_then_text_then_what_is_attended_to(entropy):
    everything = Everything()
    whole = prefilled(everything)
    measure = {"full": spread, "cross_modal": across_modalities}[entropy]
    total = len(whole.layout)
    technique = MEDA(keep_ratio=0.4, entropy=entropy, temperature=0.05)
    entropies = torch.stack([measure(view) for view in everything.views])
    counts = technique.budgets(entropies, torch.tensor([total] * 3)).tolist()
    assert len(set(counts)) > 1
    visual = whole.layout.visual.tolist()
    for rows, view, count in zip(held(prefilled(technique)), everything.views, counts):
        recent = int(count / 2 + 0.5)
        for kept, score in zip(rows, column_sums(view).tolist()):
            ranked = sorted(range(total - recent), key=lambda row, s=score: (visual[row], -s[row], row))
            assert kept.tolist() == sorted(ranked[: count - recent]) + list(range(total - recent, total))


@torch.inference_mode()
def test_without_merging_decoding_equals_the_full_cache_with_the_evicted_rows_masked():
    run = prefilled(MEDA(keep_ratio=0.3, merging="none"))
    full = prefilled(Masked(tuple(held(run))))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)
    merged = stepwise(prefilled(MEDA(keep_ratio=0.3)))
    assert not torch.allclose(merged, stepwise(prefilled(MEDA(keep_ratio=0.3, merging="none"))), atol=1e-2)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(MEDA(keep_ratio=1.0))), stepwise(prefilled()))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.9])
@torch.inference_mode()
def test_bytes_are_the_mean_budget_exactly(ratio):
    run = prefilled(MEDA(keep_ratio=ratio))
    count = int(ratio * len(run.layout) + 0.5)
    assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4


@torch.inference_mode()
def test_a_second_prompt_is_treated_as_if_it_were_the_first():
    used = MEDA(keep_ratio=0.3)
    prefilled(used, seed=1)
    again, fresh = held(prefilled(used, seed=5)), held(prefilled(MEDA(keep_ratio=0.3), seed=5))
    assert all(torch.equal(one, two) for a, b in zip(again, fresh) for one, two in zip(a, b))


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"entropy": "half"}, {"temperature": 0.0}, {"merging": "mean"}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        MEDA(**fields)
