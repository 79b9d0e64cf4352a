"""AKVQ-VL: which rows take how many bits, what they come back as, and what the rotation does."""

from types import SimpleNamespace

import pytest
import torch
from kvsupport import TOKENS, in_rounds, prefilled, stepwise, view_of
from support import Copies, clip_for, random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.decode import akvq_vl
from elvi.decode.akvq_vl import AKVQVL, quantise, rotated, text_share
from elvi.decode.snapkv import SnapKV
from elvi.decode.streamingllm import StreamingLLM
from elvi.errors import BudgetError, FitError, PlanError

TEXT = {"text_share": 0.0}  # every layer counts as text-salient
PIVOTS = {"text_share": 1.0}  # none does


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_by_bits(layer):
    """Row numbers that the first head holds, by bits: packed parts in their order, then what is exact."""
    held, start = {}, 0
    for packed in layer.packed:
        count = packed.keys.levels.codes.shape[1]
        held.setdefault(packed.keys.levels.bits, []).extend(layer.row[0, start : start + count].tolist())
        start += count
    return held | {16: layer.row[0, start:].tolist()}


def sylvester(width):
    """The matrix entry by entry: the sign tells how many bits two places share."""
    entries = [[(-1) ** (row & column).bit_count() for column in range(width)] for row in range(width)]
    return torch.tensor(entries, dtype=torch.float32) / width**0.5


@pytest.mark.parametrize("width", [4, 32, 128])
def test_rotation_is_the_hadamard_matrix_and_undoes_itself(width, device):
    x = random(2, 5, width).to(device)
    torch.testing.assert_close(rotated(x), x @ sylvester(width).to(device), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotated(rotated(x)), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llama"])
@torch.inference_mode()
def test_rotating_keys_and_queries_after_rotary_positions_leaves_all_logits(kind):
    run = prefilled(kind=kind)
    keys = run.store.layers[1].read()[0]
    query = random(len(keys) * 3, 4, 32)  # three query heads share a key
    groups = keys.repeat_interleave(3, dim=0)
    torch.testing.assert_close(rotated(query) @ rotated(groups).mT, query @ groups.mT, atol=1e-3, rtol=1e-5)


@torch.inference_mode()
def test_rotating_queries_gives_the_logits_of_restored_keys_and_rotating_outputs_those_of_values():
    run = prefilled(AKVQVL(recent=16, **PIVOTS))
    layer = run.store.layers[1]
    keys, values = (half.levels.restore().flatten(-2) for half in (layer.packed[0].keys, layer.packed[0].values))
    restored_keys, restored_values = layer.packed[0].unpack()
    query, weights = random(2, 3, 32), random(2, 3, keys.shape[1]).softmax(-1)
    torch.testing.assert_close(rotated(query) @ keys.mT, query @ restored_keys.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotated(weights @ values), weights @ restored_values, atol=1e-4, rtol=1e-4)


def by_formula(x, bits, group, clip):
    """One rotated row [d], channel by channel."""
    out = []
    for start in range(0, len(x), group):
        part = x[start : start + group].tolist()
        a, c = clip * min(part), clip * max(part)
        step = (c - a) / (2**bits - 1)
        zero = -round(a / step)
        out += [step * (max(0, min(2**bits - 1, round(number / step) + zero)) - zero) for number in part]
    return torch.tensor(out)


@pytest.mark.parametrize(("bits", "group", "clip"), [(2, 128, 0.8), (2, 8, 0.8), (4, 16, 1.0), (4, 32, 1.0)])
def test_rows_come_back_as_the_formula_of_the_paper_says(bits, group, clip, device):
    x = random(2, 6, 32)
    restored = rotated(quantise(x.to(device), bits, group, clip).restore()).cpu()
    spread = x @ sylvester(32)
    for head in range(2):
        for row in range(6):
            expected = by_formula(spread[head, row], bits, min(group, 32), clip)
            torch.testing.assert_close(restored[head, row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("bits", "clip"), [(2, 0.8), (4, 1.0)])
def test_errors_inside_the_range_are_at_most_half_a_step(bits, clip, device):
    x = random(2, 50, 32).to(device)
    spread = rotated(x)
    low, high = spread.amin(-1, keepdim=True) * clip, spread.amax(-1, keepdim=True) * clip
    error = (rotated(quantise(x, bits, 32, clip).restore()) - spread).abs()
    inside = (spread >= low) & (spread <= high)
    assert inside.float().mean() > 0.5
    assert (error[inside] <= ((high - low) / (2**bits - 1) / 2).expand_as(error)[inside] + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.7, -300.0])
def test_constant_groups_are_safe(value, dtype, device):
    spread = torch.full((1, 3, 32), value, device=device)
    x = rotated(spread).to(dtype)
    restored = quantise(x, 4, 8, 1.0).restore()
    assert restored.dtype == dtype
    torch.testing.assert_close(restored, x, atol=abs(value) / 20, rtol=0)


def test_rotation_helps_where_a_channel_sticks_out_and_hurts_rows_that_are_nearly_flat(device):
    def errors(x):
        straight = rotated(quantise(rotated(x), 4, 32, 1.0).restore())  # rotated twice: not at all
        return float((straight - x).square().mean()), float((quantise(x, 4, 32, 1.0).restore() - x).square().mean())

    spiky = random(1, 20, 32).to(device)
    spiky[..., 3] = 30.0
    plain, spread = errors(spiky)
    assert spread < 0.5 * plain
    flat = 1 + random(1, 20, 32, seed=1).to(device) / 100
    plain, spread = errors(flat)
    assert plain < 0.5 * spread


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_text_salient_layers_hold_earlier_text_in_four_bits_and_pictures_in_two(kind):
    run = prefilled(AKVQVL(recent=5, **TEXT), kind=kind)
    total, visual = len(run.layout), run.layout.visual
    for layer in run.store.layers:
        held = rows_by_bits(layer)
        assert held[16] == list(range(total - 5, total))
        assert held[4] == [row for row in range(total - 5) if not visual[row]]
        assert held[2] == [row for row in range(total - 5) if visual[row]]


@torch.inference_mode()
def test_pivot_salient_layers_hold_the_recent_tokens_and_the_pivots_exactly_once():
    run, plain = prefilled(AKVQVL(recent=100, pivots=15, **PIVOTS)), prefilled()
    total = len(run.layout)
    size = entering(plain).abs().amax(-1)
    pivots = sorted(sorted(range(total), key=lambda row: (-float(size[row]), row))[:15])
    assert any(row >= total - 100 for row in pivots)
    assert any(row < total - 100 for row in pivots)
    for layer, exact in zip(run.store.layers, plain.store.layers):
        held = rows_by_bits(layer)
        assert held[16] == [row for row in range(total) if row in pivots or row >= total - 100]
        assert sorted(held[2] + held[16]) == list(range(total))
        for restored, expected in zip(layer.read(), exact.read()):
            assert torch.equal(restored[:, len(held[2]) :], expected[:, held[16]])


def entering(run):
    """[N, D] what entered the first layer."""
    family = run.family
    clip = family.steps(clip_for("qwen2_5_vl"))
    encoding = family.encode(clip, set())
    return family.prompt(run.question, clip, encoding.slots).fill(family.project(encoding.tokens)).hidden


@torch.inference_mode()
def test_pivots_are_taken_where_the_first_pivot_salient_layer_begins_and_used_in_later_ones(monkeypatch):
    monkeypatch.setattr(akvq_vl, "text_share", lambda view, window: (0.9, 0.1, 0.2)[view.layer])
    technique = AKVQVL(recent=16)
    run = prefilled(technique)
    clip = run.family.steps(clip_for("qwen2_5_vl"))
    hidden = run.family.model(**run.family.inputs(clip, run.question), output_hidden_states=True).hidden_states
    largest = [set(state[0].abs().amax(-1).topk(15).indices.tolist()) for state in hidden]
    assert largest[0] != largest[1] != largest[2]
    noted = [run.memory[id(technique), layer]["pivots"] for layer in range(3)]
    assert noted[0] is None
    assert set(noted[1].tolist()) == set(noted[2].tolist()) == largest[1]
    assert [4 in rows_by_bits(layer) for layer in run.store.layers] == [True, False, False]


def test_text_share_is_what_the_last_rows_pay_text(device):
    keys, query = random(2, 40, 16), random(4, 12, 16, seed=1) * 3
    visual = (torch.arange(40) >= 4) & (torch.arange(40) < 32)
    view = view_of(keys.to(device), query.to(device), visual=visual.to(device))
    total = 0.0
    for head in range(4):
        for row in range(4, 12):  # eight rows of text follow the picture
            logits = [float(query[head, row] @ keys[head // 2, slot]) / 4 for slot in range(28 + row + 1)]
            weights = torch.tensor(logits).softmax(0)
            total += sum(float(weight) for slot, weight in enumerate(weights) if not visual[slot])
    assert text_share(view, 32) == pytest.approx(total / 32, abs=1e-5)


def bytes_of(slots, heads=2, width=32, group=32, number=4):
    """Of slots {bits: how many} of one layer: codes, two numbers per group, and exact rows as they are."""
    exact = 2 * heads * slots[16] * width * number
    packed = {bits: count for bits, count in slots.items() if bits != 16}
    codes = sum(2 * heads * count * width * bits // 8 for bits, count in packed.items())
    return exact + codes + 2 * heads * sum(packed.values()) * (width // group) * 2 * number


@pytest.mark.parametrize("fields", [{**TEXT, "recent": 9}, {**PIVOTS, "recent": 40}, {**PIVOTS, "group": 8}])
@torch.inference_mode()
def test_bytes_are_those_of_the_slots_by_their_bits(fields):
    technique = AKVQVL(**fields)
    run = prefilled(technique)
    for layer in run.store.layers:
        slots = {bits: len(rows) for bits, rows in rows_by_bits(layer).items()}
        assert sum(slots.values()) == len(run.layout)
        assert len(slots) > 1 or technique.recent >= len(run.layout)
        assert layer.nbytes == bytes_of(slots, group=min(technique.group, 32))


@pytest.mark.parametrize(("more", "pivots"), [(0, 15), (40, 0)])
def test_bits_of_half_precision_are_two_and_what_other_rows_take_more(more, pivots, device):
    """The mean over a layer of T rows: 2 + 14 n16 / T + 2 n4 / T + two numbers of 16 bits per packed group."""
    total, width, group = 400, 128, 128
    parts = [(total - more - pivots, 2), (more, 4)]
    x = random(1, total, width).to(device).half()
    stored = sum(quantise(x[:, :count], bits, group, 0.8).nbytes * 8 for count, bits in parts if count)
    stored += pivots * width * 16
    metadata = (total - pivots) / total * 32 / group
    assert stored / x.numel() == pytest.approx(2 + 14 * pivots / total + 2 * more / total + metadata)


@torch.inference_mode()
def test_a_prompt_within_the_recent_tokens_is_exact():
    run = prefilled(AKVQVL(recent=1000))
    assert not any(layer.packed for layer in run.store.layers)
    assert torch.equal(stepwise(run), stepwise(prefilled()))


@pytest.mark.parametrize("fields", [TEXT, PIVOTS])
@torch.inference_mode()
def test_decoded_tokens_leave_the_recent_ones_a_block_at_a_time(fields):
    technique = AKVQVL(recent=4, block=3, **fields)
    run = prefilled(technique)
    total = len(run.layout)
    before = [rows_by_bits(layer) for layer in run.store.layers]
    pivots = [] if fields is TEXT else run.memory[id(technique), 0]["pivots"].tolist()
    first = run.store.layers[0].packed[0]
    for count, token in enumerate(TOKENS[:10], start=1):
        stepwise(run, [token])
        left = count // 3 * 3  # rows that have left the recent ones since
        for layer, then in zip(run.store.layers, before):
            leaving = [row for row in range(total - 4, total - 4 + left) if row not in then[16][:-4]]
            held = rows_by_bits(layer)
            packed = held.get(4 if fields is TEXT else 2, [])
            assert all((row in packed) != (row in pivots) for row in leaving)
            assert held[16][-(4 + count - left) :] == list(range(total - 4 + left, total + count))
    assert run.store.layers[0].packed[0] is first


@pytest.mark.parametrize("fields", [TEXT, PIVOTS])
@torch.inference_mode()
def test_rounds_of_drafts_give_the_logits_of_single_steps(fields):
    technique = AKVQVL(recent=4, block=5, **fields)
    single, rounds = prefilled(technique), prefilled(technique)
    torch.testing.assert_close(in_rounds(rounds, 4), stepwise(single), atol=1e-4, rtol=1e-4)


def test_speculation_emits_what_plain_decoding_emits_while_tokens_leave():
    family, clip, options = random_family("llava"), clip_for("llava"), {"max_new_tokens": 30, "ignore_eos": True}
    technique = AKVQVL(recent=4, block=6)
    plain = generate(family, clip, plan=Plan(technique), **options).tokens
    fast = generate(family, clip, plan=Plan(technique, Copies(tuple(plain), depth=8)), **options)
    assert fast.tokens == plain
    assert fast.report.forwards < 10


@torch.inference_mode()
def test_heads_with_more_tokens_of_a_kind_keep_the_surplus_exact():
    selected, both = prefilled(SnapKV(0.5)), prefilled(SnapKV(0.5), AKVQVL(recent=4, **TEXT))
    visual = selected.layout.visual
    for before, after in zip(selected.store.layers, both.store.layers):
        earlier = before.row[:, :-4]
        counts = {2: visual[earlier].sum(1), 4: (~visual[earlier]).sum(1)}
        assert torch.equal(after.row.sort(dim=1).values, before.row)
        for packed in after.packed:
            held = packed.keys.levels
            assert held.codes.shape[1] == counts[held.bits].min()


@torch.inference_mode()
def test_text_alone_is_text_salient():
    question = "what color is the star ? " * 8
    run = prefilled(AKVQVL(recent=10), kind="llama", question=question)
    assert all(sorted(rows_by_bits(layer)) == [4, 16] for layer in run.store.layers)


@pytest.mark.parametrize(
    ("width", "group", "fine"), [(96, 128, 0), (32, 12, 0), (32, 2, 0), (64, 128, 1), (128, 32, 1)]
)
def test_heads_that_cannot_be_rotated_or_grouped_are_refused_before_anything_runs(width, group, fine):
    family = SimpleNamespace(name="some-model", head_dim=width)
    if fine:
        AKVQVL(group=group).fit(family)
    else:
        with pytest.raises(FitError, match=f"{width} wide of some-model"):
            AKVQVL(group=group).fit(family)


@pytest.mark.parametrize(
    "fields", [{"recent": -1}, {"pivots": -1}, {"group": 0}, {"clip": 0.0}, {"text_share": 1.1}, {"block": 0}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        AKVQVL(**fields)


def test_a_cache_that_goes_on_changing_cannot_be_packed():
    with pytest.raises(PlanError, match=r"AKVQVL needs that .* which StreamingLLM"):
        Plan(AKVQVL(), StreamingLLM()).check(random_family("qwen2_5_vl"))
