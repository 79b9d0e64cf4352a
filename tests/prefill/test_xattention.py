from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support import noise_clip, random_family
from trained import trained

import elvi
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.store import LayerStore
from elvi.core.views import LayerView
from elvi.errors import BudgetError
from elvi.prefill.xattention import XAttention, antidiagonal, block_mass, select

QUESTION = "what color is the star ?"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view_of(query: torch.Tensor, keys: torch.Tensor) -> LayerView:
    rows = torch.arange(keys.shape[1], device=keys.device)
    store = LayerStore()
    store.write(keys, keys, rows)
    return LayerView(0, store, query, rows, 1.0, None)


def masses(logits: torch.Tensor, stride: int, block: int) -> torch.Tensor:
    """Share of each block of logits [N, N], by hand: mean on antidiagonals, softmax over earlier tiles, sum."""
    total = len(logits)
    tiles, blocks = -(-total // stride), -(-total // block)
    mass = torch.zeros(blocks, blocks)
    for a in range(tiles):
        score = torch.zeros(a + 1)
        for b in range(a + 1):
            for p in range(stride):
                i, j = a * stride + stride - 1 - p, b * stride + p
                if i < total and j < total:
                    score[b] += logits[i, j] / stride
        for b, share in enumerate(score.softmax(0)):
            mass[a * stride // block, b * stride // block] += share
    return mass / mass.sum(-1, keepdim=True)


@pytest.mark.parametrize("total", [32, 27, 9])
def test_block_mass_is_the_softmaxed_mean_over_antidiagonals(total, device):
    query, keys = noise(2, total, 4), noise(2, total, 4, seed=1)
    mass = block_mass(antidiagonal(query.to(device), keys.to(device), 4, 8), total, 4, 8).cpu()
    for head in range(2):
        torch.testing.assert_close(mass[head], masses(query[head] @ keys[head].T, 4, 8), rtol=1e-4, atol=1e-5)


def random_mass(blocks: int = 9, heads: int = 4) -> torch.Tensor:
    return (
        noise(heads, blocks, blocks)
        .mul(3)
        .exp()
        .tril()
        .div_(noise(heads, blocks, blocks).mul(3).exp().tril().sum(-1, True))
    )


def smallest(row: torch.Tensor, place: int, threshold: float) -> set[int]:
    """The first and the diagonal block, then the heaviest ones until their mass reaches the threshold."""
    chosen = {0, place}
    for block in sorted(range(1, place), key=lambda b: (-float(row[b]), b)):
        if float(row[list(chosen)].sum()) >= threshold:
            break
        chosen.add(block)
    return chosen


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9])
def test_selection_is_the_fewest_blocks_that_reach_the_threshold(threshold, device):
    mass = random_mass()
    read = select(mass.to(device), threshold)
    for head in range(4):
        for place in range(9):
            assert set(read[head, place].nonzero()[:, 0].tolist()) == smallest(mass[head, place], place, threshold)
    assert ((mass * read.cpu()).sum(-1) >= threshold - 1e-6).all()


def test_more_threshold_never_reads_less():
    reads = [select(random_mass(), threshold) for threshold in (0.1, 0.4, 0.7, 0.9, 0.99)]
    assert all((less <= more).all() for less, more in pairwise(reads))
    assert reads[0].sum() < reads[-1].sum()


def test_equally_heavy_blocks_are_taken_from_the_start():
    assert select(torch.full((1, 6, 6), 1 / 6), 0.5)[0, 5].tolist() == [True, True, False, False, False, True]


def blocks_read(pattern: torch.Tensor) -> list[set[int]]:
    """Blocks of 8 that are read when the logits [64, 64] are this pattern, by the rows of blocks from the fifth on."""
    mass = block_mass(antidiagonal(pattern[None], torch.eye(64)[None], 4, 8), 64, 4, 8)
    return [set(row.nonzero()[:, 0].tolist()) for row in select(mass, 0.9)[0, 4:]]


def slash(distance: int) -> torch.Tensor:
    rows = torch.arange(distance, 64)
    return torch.zeros(64, 64).index_put_((rows, rows - distance), torch.tensor(80.0))


def test_planted_column_is_found():
    assert blocks_read(torch.zeros(64, 64).index_fill_(1, torch.tensor(20), 80.0)) == [{0, 2, a} for a in range(4, 8)]


def test_planted_slash_is_found_at_odd_distance_and_slips_through_at_even():
    assert blocks_read(slash(25)) == [{0, a - 4, a - 3, a} for a in range(4, 8)]
    assert blocks_read(slash(24)) == blocks_read(torch.zeros(64, 64))


def test_mask_spans_whole_blocks_and_the_rest_of_the_last_one(device):
    query, keys = noise(4, 29, 8).to(device), noise(2, 29, 8, seed=1).to(device)
    mask = XAttention(block=8, stride=4, threshold=0.1).attend(view_of(query, keys)).mask(29).cpu()
    assert mask.shape == (4, 29, 29)
    assert torch.equal(mask[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :29, :29], mask)
    assert mask[:, :, :8].all()
    assert not mask.all()
    assert not (mask[:, ::8, ::8] & torch.ones(4, 4).triu(1).bool()).any()


def test_short_prompts_and_the_full_threshold_are_dense():
    view = view_of(noise(4, 16, 8), noise(2, 16, 8, seed=1))
    assert XAttention(block=8, stride=4, threshold=0.1).attend(view) is None
    assert XAttention(block=4, stride=4, threshold=1.0).attend(view) is None
    assert XAttention(block=4, stride=4, threshold=0.1).attend(view) is not None


@torch.inference_mode()
def test_prefill_equals_the_unmodified_model_under_the_same_masks():
    family, technique = random_family("qwen2_5_vl"), XAttention(block=16, stride=8, threshold=0.5)
    masks = []

    class Spy(XAttention):
        def attend(self, view):
            blocks = technique.attend(view)
            masks.append((blocks, view.query.shape[1]))
            return blocks

    _, logits = prefill(Run(family, Plan(Spy())), noise_clip(), QUESTION)
    waiting = (blocks.mask(rows) for blocks, rows in masks)

    def masked(module, args, kwargs):
        return args, kwargs | {"attention_mask": next(waiting).tril()[None]}

    hooks = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in family.text.layers]
    expected = family.model(**family.inputs(noise_clip(), QUESTION)).logits[0, -1]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, prefill(Run(family, Plan()), noise_clip(), QUESTION)[1], atol=1e-3)
    assert len(masks) == family.num_layers


@pytest.mark.parametrize("options", [{"block": 0}, {"stride": 0}, {"stride": 256}, {"threshold": 1.1}, {"stride": 24}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        XAttention(**options)


@torch.inference_mode()
def test_chosen_blocks_hold_more_attention_than_random_ones_on_a_trained_model():
    recalls = []

    class Spy(XAttention):
        def attend(self, view):
            weights, blocks = view.attention(), super().attend(view)
            read = blocks.mask(view.query.shape[1])
            places = read.shape[1] // self.block  # whole rows of blocks only
            grid = read[:, : places * self.block : self.block, : places * self.block : self.block]
            shuffled = torch.rand(grid.shape, generator=generator).masked_fill(
                ~torch.ones(places, places).tril().bool(), -1
            )
            shuffled[:, range(places), range(places)] = shuffled[:, :, 0] = 2
            random = shuffled.argsort(-1, descending=True).argsort(-1) < grid.sum(-1, keepdim=True)
            held = weights[:, : places * self.block, : places * self.block].unflatten(2, (places, -1)).sum(3)
            held = held.unflatten(1, (places, -1)).mean(2)
            recalls.append([float((held * part).sum(-1).mean()) for part in (grid, random)])
            return blocks

    generator = torch.Generator().manual_seed(0)
    clip = elvi.sample(10_000, kind="needle", seconds=16)
    prefill(Run(trained("tiny-qwen"), Plan(Spy(block=32, stride=8, threshold=0.7))), clip, clip.question)
    chosen, random = torch.tensor(recalls).mean(0)
    assert chosen > random + 0.05
