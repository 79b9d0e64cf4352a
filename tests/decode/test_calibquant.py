"""CalibQuant: what is packed, how exactly it comes back, and what calibration does to the logits."""

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from kvsupport import TOKENS, prefilled, stepwise, view_of
from support import random_family

from elvi.core.accept import Draft
from elvi.core.bits import unpack_bits
from elvi.core.generate import verify
from elvi.core.plan import Plan
from elvi.decode.calibquant import SHRINK_KEYS, SHRINK_VALUES, CalibQuant, calibrated, quantise
from elvi.decode.streamingllm import StreamingLLM
from elvi.errors import BudgetError, FitError, PlanError

BITS = (1, 2, 4, 8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_row(layer):
    """keys [H, K, d] of a layer in the order of their rows."""
    keys, values = layer.read()
    order = layer.row.argsort(dim=1)[..., None].expand_as(keys)
    return keys.gather(1, order), values.gather(1, order)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_nearest_levels_between_the_extremes_of_a_channel(bits, device):
    x = random(2, 40, 16).to(device)
    restored = quantise(x, bits, 1.0).restore()
    for head, channel in ((0, 3), (1, 15)):
        column = x[head, :, channel]
        levels = torch.linspace(float(column.min()), float(column.max()), 2**bits, device=device)
        nearest = levels[(column[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(restored[head, :, channel], nearest, atol=1e-5, rtol=1e-5)


def test_one_bit_levels_are_the_shrunken_extremes(device):
    x = random(1, 40, 8).to(device)
    restored = quantise(x, 1, 0.5).restore()
    torch.testing.assert_close(restored.amin(1), x.amin(1) * 0.5)
    torch.testing.assert_close(restored.amax(1), x.amax(1) * 0.5)


@pytest.mark.parametrize("count", [1, 5])
def test_constant_channels_are_exact(count, device):
    x = torch.full((1, count, 8), 0.7, device=device)
    assert torch.equal(quantise(x, 2, 1.0).restore(), x)


@torch.inference_mode()
def test_folding_scales_into_the_query_gives_the_logits_of_restored_keys():
    run = prefilled(CalibQuant(bits=2))
    keys = run.store.layers[1].packed[0].keys
    query = random(2, 3, 32)
    codes = unpack_bits(keys.codes, 2).float()
    folded = (query * keys.step) @ codes.mT + (query * keys.low).sum(-1, keepdim=True)
    restored = run.store.layers[1].read()[0][:, : codes.shape[1]]
    torch.testing.assert_close(folded, query @ restored.mT, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_text_stays_exact_and_pictures_are_packed(kind):
    run, plain = prefilled(CalibQuant(bits=4), kind=kind), prefilled(kind=kind)
    visual = run.layout.visual
    for layer, exact in zip(run.store.layers, plain.store.layers):
        assert layer.row[0].tolist() == [*visual.nonzero()[:, 0].tolist(), *(~visual).nonzero()[:, 0].tolist()]
        for restored, expected in zip(by_row(layer), exact.read()):
            assert torch.equal(restored[:, ~visual], expected[:, ~visual])
            step = (expected[:, visual].amax(1) - expected[:, visual].amin(1)) / 15
            assert ((restored - expected)[:, visual].abs() <= step[:, None] / 2 + 1e-5).all()


@torch.inference_mode()
def test_several_pictures_are_packed_and_the_text_between_them_is_not():
    run = prefilled(CalibQuant(bits=8), still=True, seconds=3)
    visual = run.layout.visual
    assert (visual.int().diff() == 1).sum() == 3
    count = run.store.layers[0].packed[0].keys.codes.shape[1]
    assert count == int(visual.sum())
    assert set(run.store.layers[0].row[0, :count].tolist()) == set(visual.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("bits", BITS)
@torch.inference_mode()
def test_bytes_are_the_codes_and_two_numbers_per_channel(bits):
    run = prefilled(CalibQuant(bits=bits))
    visual = int(run.layout.visual.sum())
    text = len(run.layout) - visual
    channels = 3 * 2 * 32 * 2  # layers, heads, width, keys and values
    assert run.store.nbytes == channels * visual * bits // 8 + channels * 2 * 4 + channels * text * 4


def test_half_precision_costs_bits_and_32_by_n_more_per_value(device):
    x = random(1, 64, 32).to(device).half()
    assert quantise(x, 1, 1.0).nbytes * 8 / x.numel() == 1 + 2 * 16 / 64


@torch.inference_mode()
def test_error_falls_with_every_bit_more():
    exact = stepwise(prefilled(), TOKENS[:4])
    plans = [CalibQuant(bits=bits, lowering=0.0) for bits in BITS]
    errors = [float((stepwise(prefilled(plan), TOKENS[:4]) - exact).square().mean()) for plan in plans]
    assert all(more > less for more, less in pairwise(errors))
    assert errors[-1] < 1e-3 * float(exact.square().mean())


def test_calibration_keeps_order_and_lowers_the_peak_only(device):
    logits = random(2, 3, 50).to(device) * 6
    mapped = calibrated(logits, 3.0)
    torch.testing.assert_close(mapped.amin(-1), logits.amin(-1))
    torch.testing.assert_close(mapped.amax(-1), logits.amax(-1) - 3)
    assert torch.equal(mapped.argsort(-1), logits.argsort(-1))


def test_calibration_never_turns_the_order_round(device):
    logits = torch.tensor([[0.0, 1.0, 2.0]], device=device)
    assert calibrated(logits, 3.0).tolist() == [[0.0, 0.0, 0.0]]
    assert calibrated(logits, 1.0).tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("lowering", [0.0, 3.0])
@pytest.mark.parametrize("count", [1, 4])
def test_equal_logits_stay_as_they_are(count, lowering, device):
    logits = torch.full((1, 2, count), 1.5, device=device)
    assert torch.equal(calibrated(logits, lowering), logits)


def packed_view(bits, seed=0):
    """A layer of 30 rows, 20 of them visual, packed; and the view of 3 later queries on it."""
    keys, query = random(2, 30, 16, seed=seed), random(4, 3, 16, seed=seed + 1) * 4
    view = view_of(keys, query, visual=(torch.arange(30) >= 5) & (torch.arange(30) < 25))
    CalibQuant(bits=bits).pack([view])
    return view_of(view.store.read()[0], query, visual=view.layout.visual, row=view.store.row)


def test_decode_bias_is_the_calibration_of_each_rows_visual_logits():
    view = packed_view(2)
    bias = CalibQuant(bits=2).attend(view)
    assert bias.shape == (4, 3, 30)
    for head in range(4):
        for row in range(3):
            logits = [float(view.query[head, row] @ key) * view.scaling for key in view.keys[head // 2, :20]]
            low, high = min(logits), max(logits)
            expected = [low + (logit - low) * max(0.0, high - 3 - low) / (high - low) - logit for logit in logits]
            torch.testing.assert_close(bias[head, row, :20], torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert (bias[..., 20:] == 0).all()


def test_more_than_two_bits_are_not_calibrated():
    assert CalibQuant(bits=4).attend(packed_view(4)) is None


@pytest.mark.parametrize("bits", [1, 4])
@torch.inference_mode()
def test_a_draft_gives_the_logits_of_single_steps(bits):
    first, *rest = TOKENS
    logits = verify(prefilled(CalibQuant(bits=bits)), first, Draft.chain(rest))
    torch.testing.assert_close(logits, stepwise(prefilled(CalibQuant(bits=bits))), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_one_bit_uses_the_shrunken_ranges_of_the_paper():
    run, plain = prefilled(CalibQuant(bits=1)), prefilled()
    visual = run.layout.visual
    keys, values = plain.store.layers[0].read()
    (packed,) = run.store.layers[0].packed
    torch.testing.assert_close(packed.keys.low, keys[:, visual].amin(1, keepdim=True) * SHRINK_KEYS)
    torch.testing.assert_close(packed.values.low, values[:, visual].amin(1, keepdim=True) * SHRINK_VALUES)


@torch.inference_mode()
def test_prompts_without_pictures_are_left_alone():
    run = prefilled(CalibQuant(), kind="llama")
    assert not any(layer.packed for layer in run.store.layers)
    assert torch.equal(stepwise(run), stepwise(prefilled(kind="llama")))


@dataclass(frozen=True)
class Uneven:
    """The first head drops the first 20 rows, the second the last 20: so the second holds more visual ones."""

    needs = breaks = frozenset()
    lossless = rolling = False
    window = 0

    def keep(self, views):
        slots = torch.arange(views[0].row.shape[1])
        return [torch.stack([slots[20:], slots[:-20]])] * len(views)


@torch.inference_mode()
def test_heads_with_more_visual_tokens_keep_the_surplus_exact():
    selected, both = prefilled(Uneven()), prefilled(Uneven(), CalibQuant(bits=2))
    visual = selected.layout.visual
    for before, after in zip(selected.store.layers, both.store.layers):
        counts = visual[before.row].sum(1)
        packed = after.packed[0].keys.codes.shape[1]
        assert packed == counts.min() < counts.max()
        assert visual[after.row[:, :packed]].all()
        assert torch.equal(after.row.sort(dim=1).values, before.row)
        for restored, exact in zip(by_row(after), before.read()):
            for head, row in enumerate(before.row):
                left = torch.isin(row, after.row[head, packed:])
                assert torch.equal(restored[head, left], exact[head, left])


def test_heads_that_do_not_fill_bytes_are_refused_before_anything_runs():
    narrow = SimpleNamespace(name="random-llama", head_dim=4)
    with pytest.raises(FitError, match="1 bits into heads 4 wide of random-llama"):
        CalibQuant(bits=1).fit(narrow)
    CalibQuant(bits=2).fit(narrow)


@pytest.mark.parametrize("fields", [{"bits": 3}, {"bits": 0}, {"lowering": -1.0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        CalibQuant(**fields)


def test_a_cache_that_goes_on_changing_cannot_be_packed():
    with pytest.raises(PlanError, match=r"CalibQuant needs that .* which StreamingLLM"):
        Plan(CalibQuant(), StreamingLLM()).check(random_family("qwen2_5_vl"))
