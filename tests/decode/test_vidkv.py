"""VidKV against its formulas written out, number by number, and against the exact cache."""

from itertools import pairwise

import pytest
import torch
from kvsupport import TOKENS, in_rounds, prefilled, stepwise
from support import Copies, clip_for, random_family

from elvi.core.bits import Levels, levels
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.decode.calibquant import CalibQuant
from elvi.decode.snapkv import SnapKV
from elvi.decode.streamingllm import StreamingLLM
from elvi.decode.vidkv import TERNARY, VidKV, inverse_spectrum, quantise, spectrum
from elvi.errors import BudgetError, PlanError

HEADS, WIDTH, GROUP = 2, 12, 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(rows=24, seed=0):
    """keys [H, m, d] of channels with different ranges, in no order."""
    return random(HEADS, rows, WIDTH, seed=seed) * torch.tensor([1, 9, 2, 4, 7, 3, 8, 1.5, 6, 5, 2.5, 0.5])


def by_formula(keys, values, key_bits):
    """Restored keys and values, group by group; spectra in full, as the paper has them."""
    ranges = [float(keys[..., c].max() - keys[..., c].min()) for c in range(WIDTH)]
    order = sorted(range(WIDTH), key=lambda c: (-ranges[c], c))
    hard = sorted(order[: int(WIDTH * (key_bits - 1))])
    easy = [c for c in range(WIDTH) if c not in hard]
    out_keys, out_values = torch.empty_like(keys), torch.empty_like(values)
    spectra = torch.fft.fft(keys[..., easy].double(), dim=-1) if easy else None
    for head in range(HEADS):
        for start in range(0, keys.shape[1], GROUP):
            rows = slice(start, start + GROUP)
            for c in hard:
                x = keys[head, rows, c]
                step = (x.max() - x.min()) / 3
                out_keys[head, rows, c] = x.min() + step * ((x - x.min()) / step).round()
            if easy:
                parts = torch.view_as_real(spectra[head, rows]).unbind(-1)
                coded = torch.view_as_complex(torch.stack([sign(part) for part in parts], dim=-1))
                out_keys[head, rows, easy] = torch.fft.ifft(coded).real.float()
            for c in range(WIDTH):
                x = values[head, rows, c]
                mean = x.abs().mean()
                out_values[head, rows, c] = torch.where(x.abs() > mean / 2, mean * x.sign(), 0.0)
    return out_keys, out_values


def sign(x):
    """Columns of x [g, n] as their mean magnitude with the signs of x; what rounding leaves of zeros is zero."""
    return x.abs().mean(0) * torch.where(x.abs() < 1e-9, 0.0, x.sign())


@pytest.mark.parametrize("key_bits", [1.0, 1.25, 1.5, 2.0])
def test_rows_come_back_as_the_formulas_of_the_paper_say(key_bits, device):
    keys, values = spread(), random(HEADS, 24, WIDTH, seed=1)
    packed = quantise(keys.to(device), values.to(device), GROUP, key_bits, TERNARY)
    for restored, expected in zip(packed.unpack(), by_formula(keys, values, key_bits)):
        torch.testing.assert_close(restored.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_the_widest_channels_take_two_bits_and_equal_ones_go_by_number(device):
    packed = quantise(spread().to(device), spread().to(device), GROUP, 1.5, TERNARY)
    assert packed.hard.tolist() == [1, 3, 4, 6, 8, 9]
    flat = torch.ones(HEADS, GROUP, WIDTH, device=device)
    assert quantise(flat, flat, GROUP, 1.5, TERNARY).hard.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", range(1, 18))
def test_the_spectrum_is_as_many_numbers_and_comes_back(count, device):
    x = random(3, 5, count).to(device)
    assert spectrum(x).shape == x.shape
    torch.testing.assert_close(inverse_spectrum(spectrum(x)), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_bits", [TERNARY, 2])
def test_errors_stay_within_half_a_step_or_what_three_values_leave(value_bits, device):
    keys, values = spread().to(device), random(HEADS, 24, WIDTH).to(device)
    restored = quantise(keys, values, GROUP, 2.0, value_bits).unpack()
    for x, back, ternary in zip((keys, values), restored, (False, value_bits == TERNARY)):
        groups, error = x.unflatten(1, (-1, GROUP)), (back - x).abs().unflatten(1, (-1, GROUP))
        alpha = groups.abs().mean(2, keepdim=True)
        bound = torch.maximum(alpha / 2, groups.abs().amax(2, keepdim=True) - alpha)
        step = (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 3
        assert (error <= (bound if ternary else step / 2) + 1e-5).all()


def test_groups_along_a_channel_beat_groups_along_a_token_where_channels_stick_out(device):
    x = random(1, 32, 32).to(device)
    x[..., 5] += 40.0

    def error(x):
        return float((levels(x, 2, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)).restore() - x).square().mean())

    assert error(x.mT) < 0.1 * error(x)


def test_more_bits_restore_better():
    keys = spread(64)
    errors = [
        float((quantise(keys, keys, 32, bits, TERNARY).unpack()[0] - keys).square().mean()) for bits in (1, 1.5, 2)
    ]
    assert all(more > less for more, less in pairwise(errors))


def bytes_of(rows, key_bits, size, number, heads=HEADS, width=WIDTH, value_bits=TERNARY):
    """Of `rows` packed together: codes, numbers per group and channel, two-bit channels."""
    hard, groups = int(width * (key_bits - 1)), heads * rows // size
    keys = heads * rows * (2 * hard + width - hard) // 8 + groups * number * (2 * hard + width - hard) + 2 * hard
    codes = -(-heads * rows * width // 5) if value_bits == TERNARY else heads * rows * width // 4
    return keys + codes + groups * width * number * (1 if value_bits == TERNARY else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key_bits", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("value_bits", [TERNARY, 2])
def test_bytes_are_codes_scales_and_channel_numbers(key_bits, value_bits, dtype, device):
    x = spread(32).to(device, dtype)
    packed = quantise(x, x, GROUP, key_bits, value_bits)
    assert packed.nbytes == bytes_of(32, key_bits, GROUP, x.element_size(), value_bits=value_bits)
    assert all(half.dtype == dtype for half in packed.unpack())


def test_half_precision_at_the_papers_setting_takes_less_than_a_seventh():
    x = random(8, 1024, 128).half()
    packed = quantise(x, x, 32, 1.5, TERNARY)
    assert packed.nbytes * 8 / (2 * x.numel()) == pytest.approx((1.5 + 0.75 + 1.6 + 0.5) / 2, abs=1e-3)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_complete_groups_of_the_prompt_are_packed_and_the_rest_is_exact(kind):
    run, plain = prefilled(VidKV(), kind=kind), prefilled(kind=kind)
    total = len(run.layout)
    count = total // 32 * 32
    for layer, exact in zip(run.store.layers, plain.store.layers):
        assert layer.row[0].tolist() == list(range(total))
        (packed,) = layer.packed
        keys, values = exact.read()
        for restored, expected in zip(layer.read(), (keys, values)):
            assert torch.equal(restored[:, count:], expected[:, count:])
            assert not torch.equal(restored[:, :count], expected[:, :count])
        assert packed.nbytes == bytes_of(count, 1.5, 32, 4, keys.shape[0], 32)
        assert layer.nbytes == packed.nbytes + 2 * keys.shape[0] * (total - count) * 32 * 4


@torch.inference_mode()
def test_a_prompt_shorter_than_a_group_stays_exact():
    short = {"kind": "llama", "question": "what color is the star ?"}
    run = prefilled(VidKV(), **short)
    assert not any(layer.packed for layer in run.store.layers)
    assert torch.equal(stepwise(run), stepwise(prefilled(**short)))


SMALL = VidKV(group_size=8, residual_length=16)


@torch.inference_mode()
def test_the_rest_and_what_is_decoded_are_packed_when_they_are_residual_length_rows():
    run = prefilled(SMALL)
    total = len(run.layout)
    rest = total % 8
    stepwise(run, (TOKENS * 3)[: 16 - rest - 1])
    assert all(len(layer.packed) == 1 for layer in run.store.layers)
    first = run.store.layers[0].packed[0]
    stepwise(run, TOKENS[:1])
    for layer in run.store.layers:
        assert len(layer.packed) == 2
        assert layer.rows.longest == 0
        assert layer.packed[1].values.alpha.shape[1] == 2
    assert run.store.layers[0].packed[0] is first
    assert run.due == 16


@torch.inference_mode()
def test_rounds_of_drafts_give_the_logits_of_single_steps():
    tokens = TOKENS * 3
    single, rounds = prefilled(SMALL), prefilled(SMALL)
    torch.testing.assert_close(in_rounds(rounds, 5, tokens), stepwise(single, tokens), atol=1e-4, rtol=1e-4)
    assert [len(layer.packed) for layer in rounds.store.layers] == [3] * 3


@torch.inference_mode()
def test_layers_of_different_length_flush_each_in_its_time():
    run = prefilled(SMALL)
    run.store.layers[1].rows.keep_last(1, [])  # as if a token less had reached this layer
    rows = [layer.rows.longest for layer in run.store.layers]
    stepwise(run, (TOKENS * 3)[: 16 - rows[0]])
    assert [len(layer.packed) for layer in run.store.layers] == [2, 1, 2]
    assert run.due == 1
    stepwise(run, TOKENS[:1])
    assert [len(layer.packed) for layer in run.store.layers] == [2, 2, 2]


def test_speculation_emits_what_plain_decoding_emits_across_flushes():
    family, clip, options = random_family("llava"), clip_for("llava"), {"max_new_tokens": 40, "ignore_eos": True}
    plain = generate(family, clip, plan=Plan(SMALL), **options).tokens
    fast = generate(family, clip, plan=Plan(SMALL, Copies(tuple(plain), depth=6)), **options)
    assert fast.tokens == plain
    assert fast.report.forwards < 15


@torch.inference_mode()
def test_selected_rows_are_packed_in_the_order_in_which_each_head_holds_them():
    selected, both = prefilled(SnapKV(0.4)), prefilled(SnapKV(0.4), VidKV(group_size=8))
    for before, after in zip(selected.store.layers, both.store.layers):
        count = before.length // 8 * 8
        assert torch.equal(after.row, before.row)
        assert not torch.equal(before.row[0], before.row[1])
        expected = quantise(*(x[:, :count] for x in before.read()), 8, 1.5, TERNARY).unpack()
        for restored, exact in zip(after.read(), expected):
            assert torch.equal(restored[:, :count], exact)


@torch.inference_mode()
def test_error_falls_with_more_bits_and_smaller_groups():
    exact = stepwise(prefilled(), TOKENS[:4])
    plans = [VidKV(1.0), VidKV(1.5, 2), VidKV(2.0, 2), VidKV(2.0, 2, group_size=8)]
    errors = [float((stepwise(prefilled(plan), TOKENS[:4]) - exact).square().mean()) for plan in plans]
    assert all(more > less for more, less in pairwise(errors))


def test_values_of_two_bits_are_levels():
    x = random(HEADS, GROUP, WIDTH)
    assert isinstance(quantise(x, x, GROUP, 1.5, 2).values, Levels)


@pytest.mark.parametrize(
    "fields",
    [
        {"key_bits": 0.9},
        {"key_bits": 2.1},
        {"value_bits": 1.5},
        {"group_size": 12},
        {"group_size": 0},
        {"residual_length": 31},
    ],
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        VidKV(**fields)


def test_a_cache_that_goes_on_changing_cannot_be_packed():
    family = random_family("qwen2_5_vl")
    with pytest.raises(PlanError, match=r"VidKV needs that .* which StreamingLLM"):
        Plan(VidKV(), StreamingLLM()).check(family)
    with pytest.raises(PlanError, match="both pack the cache"):
        Plan(VidKV(), CalibQuant()).check(family)
