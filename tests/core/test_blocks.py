"""Block-sparse attention against dense attention under the same mask."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from elvi.core.blocks import Blocks, attend_blocks, fewest, reachable


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_blocks(heads: int, rows: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random blocks below the diagonal, with all that hold a row's own key."""
    tall, wide = -(-rows // height), -(-rows // width)
    read = noise(heads, tall, wide, seed=seed) > 0.5
    own = torch.zeros(tall, wide, dtype=torch.bool)
    for row in range(rows):
        own[row // height, row // width] = True
    return (read | own) & reachable(tall, wide, height, width)


def dense(query, keys, values, mask, scaling):
    causal = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
    return scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=(mask & causal)[None], scale=scaling, enable_gqa=True
    )[0]


@pytest.mark.parametrize(("rows", "height", "width"), [(64, 16, 16), (61, 16, 8), (50, 8, 16), (7, 16, 16)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_skipped_and_what_is_masked_give_the_same(rows, height, width, shuffled):
    query, keys, values = noise(4, rows, 8), noise(2, rows, 8, seed=1), noise(2, rows, 8, seed=2)
    read = some_blocks(4, rows, height, width)
    order = None
    if shuffled:  # a token's own block is read, since rows and columns are cut from one order
        order = torch.stack([torch.randperm(rows, generator=torch.Generator().manual_seed(head)) for head in range(4)])
    blocks = Blocks(read, height, width, order)
    out = attend_blocks(query, keys, values, blocks, 0.3)
    torch.testing.assert_close(out, dense(query, keys, values, blocks.mask(rows), 0.3), rtol=1e-4, atol=1e-5)


def test_all_blocks_are_plain_causal_attention_in_any_order():
    query, keys, values = noise(2, 40, 8), noise(2, 40, 8, seed=1), noise(2, 40, 8, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    everything = torch.ones(2, 5, 5, dtype=torch.bool)
    expected = dense(query, keys, values, torch.tensor(True), 0.3)
    for blocks in (Blocks(everything, 8, 8, order), Blocks(everything, 8, 8, skip_below=float("inf"))):
        torch.testing.assert_close(attend_blocks(query, keys, values, blocks, 0.3), expected, rtol=1e-4, atol=1e-5)


def test_a_block_far_below_the_running_maximum_adds_no_values_but_keeps_its_weight():
    query, values = torch.ones(1, 16, 1), noise(1, 16, 4)
    keys = torch.cat([torch.full((1, 8, 1), 5.0), torch.zeros(1, 8, 1)], dim=1)
    blocks = Blocks(torch.ones(1, 4, 4, dtype=torch.bool).tril(), 4, 4, skip_below=3.0)
    out = attend_blocks(query, keys, values, blocks, 1.0)[0, -1]
    weights = keys[0, :, 0].softmax(0)
    torch.testing.assert_close(out, weights[:8] @ values[0, :8])


def test_density_counts_what_can_be_read():
    assert Blocks(torch.ones(2, 3, 3, dtype=torch.bool).tril(), 4, 4).density == 1.0
    assert Blocks(torch.eye(4, dtype=torch.bool)[None], 4, 4).density == pytest.approx(0.4)


def test_fewest_takes_the_heaviest_until_the_share_is_reached_and_ties_from_the_start():
    mass = torch.tensor([[0.1, 0.4, 0.1, 0.4]])
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert fewest(mass, 0.4, nothing).tolist() == [[False, True, False, False]]
    assert fewest(mass, 0.8, nothing).tolist() == [[False, True, False, True]]
    assert fewest(mass, 1.0, nothing).all()
    first = torch.tensor([[True, False, False, False]])
    assert fewest(mass, 0.5, first).tolist() == [[True, True, False, False]]
