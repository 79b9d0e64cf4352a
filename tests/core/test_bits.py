"""Packing: nothing is lost, nothing more is allocated than the bits ask for, and levels are the nearest ones."""

from itertools import product

import pytest
import torch

from elvi.core.bits import Levels, Pair, levels, pack_bits, pack_trits, signs, ternary, unpack_bits, unpack_trits


def random_codes(limit, *shape):
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 5, 32), (8,), (3, 0)])
def test_packing_bits_and_back_is_identity(bits, shape, device):
    codes = random_codes(2**bits, *shape).to(device)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    assert torch.equal(unpack_bits(packed, bits), codes)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_first_code_stands_in_the_lowest_bits(bits):
    codes = random_codes(2**bits, 8)
    packed = pack_bits(codes, bits)
    number = sum(int(code) << place * bits for place, code in enumerate(codes))
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 32, 1024])
def test_packing_trits_and_back_is_identity_at_five_a_byte(count, device):
    codes = random_codes(3, 2, count).to(device)
    packed = pack_trits(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, (count + 4) // 5)
    assert torch.equal(unpack_trits(packed, count), codes)


def test_every_five_trits_are_another_byte():
    everything = torch.tensor(list(product(range(3), repeat=5)), dtype=torch.uint8)
    assert sorted(pack_trits(everything)[:, 0].tolist()) == list(range(3**5))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_numbers_come_back_at_the_nearest_level_and_clipped_to_the_ends(bits, device):
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(device)
    low, high = torch.full((3, 1), -0.5, device=device), torch.full((3, 1), 1.0, device=device)
    steps = torch.linspace(-0.5, 1.0, 2**bits, device=device)
    nearest = steps[(x[..., None] - steps).abs().argmin(-1)]
    torch.testing.assert_close(levels(x, bits, low, high).restore(), nearest, atol=1e-6, rtol=1e-6)


def test_bytes_are_codes_lows_and_steps(device):
    x = torch.zeros(2, 3, 8, device=device).half()
    packed = levels(x, 2, x[..., :1], x[..., :1])
    assert isinstance(packed, Levels)
    assert packed.nbytes == 2 * 3 * (2 + 2 + 2)
    assert Pair(packed, packed).nbytes == 2 * packed.nbytes
    assert torch.equal(packed.restore(), x)


def test_signs_come_back_with_the_mean_magnitude_and_zero_as_positive(device):
    x = torch.tensor([[3.0, -1.0, 0.0, -4.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 8], device=device)
    packed = signs(x)
    assert packed.restore().tolist() == [[1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 8]
    assert packed.nbytes == 2 * (1 + 4)


def test_three_values_are_zero_up_to_half_the_mean_magnitude(device):
    x = torch.tensor([[3.0, -1.0, 1.5, -4.0, 1.0, 1.1, -1.1, 3.3], [0.0] * 8], device=device)
    packed = ternary(x)
    assert float(x[0].abs().mean()) == 2.0
    assert packed.restore().tolist() == [[2.0, 0.0, 2.0, -2.0, 0.0, 2.0, -2.0, 2.0], [0.0] * 8]
    assert packed.nbytes == 4 + 2 * 4  # 16 trits take 4 bytes


def test_errors_of_three_values_are_at_most_what_is_cut_off_at_either_end(device):
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(device)
    alpha = x.abs().mean(-1, keepdim=True)
    worst = torch.maximum(alpha / 2, x.abs().amax(-1, keepdim=True) - alpha)
    assert ((ternary(x).restore() - x).abs() <= worst + 1e-6).all()
