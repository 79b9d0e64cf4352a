from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kvsupport import view_of
from support import noise_clip, random_family

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.errors import BudgetError
from elvi.families.family import grid_cells
from elvi.prefill.mminference import PATTERNS, MMInference, by_patch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layout(cell: torch.Tensor) -> Tokens:
    rows = torch.arange(len(cell))
    return Tokens(torch.zeros(len(cell), 0), rows[None], rows, cell, torch.ones(len(cell)), rows)


TEXT = torch.full((4, 3), -1)
VIDEO = torch.cat([TEXT, grid_cells(9, 2, 4), TEXT])  # 80 tokens


def test_sorted_by_patch_text_comes_first_and_every_patch_runs_through_time():
    cell = VIDEO[by_patch(VIDEO)]
    assert (cell[:8] < 0).all()
    assert cell[8:17].tolist() == [[t, 0, 0] for t in range(9)]
    assert by_patch(TEXT).tolist() == [0, 1, 2, 3]


def planted(reads, seed: int = 0) -> torch.Tensor:
    """Keys and queries of one head in which row i attends to rows j with reads(i, j)."""
    rows = torch.arange(len(VIDEO))
    target = reads(rows[:, None], rows[None]).float()
    return torch.eye(len(VIDEO))[None], target[None] * 30


def chosen(reads, keep_ratio: float = 0.3):
    keys, query = planted(reads)
    view = replace(view_of(keys, query), layout=layout(VIDEO), scaling=1.0)
    technique = MMInference(keep_ratio=keep_ratio, block=8, probes=16)
    orders = torch.stack([torch.arange(80), by_patch(VIDEO)])
    _, recalls = technique.patterns(view, orders, VIDEO[:, 0] >= 0)
    return PATTERNS[int(recalls.argmax(0))], technique.attend(view)


def same_patch(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    return (VIDEO[i, 1:] == VIDEO[j, 1:]).all(-1) & (VIDEO[i, 0] >= 0) & (VIDEO[j, 0] >= 0)


def test_attention_along_a_patch_is_recognised_as_a_grid():
    # One patch whose columns all rows read: 9 keys, in prompt order spread over 9 blocks, sorted in 2.
    column = (torch.tensor([0, 1, 2]) == VIDEO).mul(torch.tensor([0, 1, 1])).sum(1) == 2
    pattern, blocks = chosen(lambda i, j: column[j].expand(len(i), -1), keep_ratio=0.25)
    assert pattern == "grid"
    assert blocks.order is not None
    assert blocks.order[0].tolist() == by_patch(VIDEO).tolist()


def test_attention_to_the_start_and_the_nearest_is_an_a_shape():
    pattern, blocks = chosen(lambda i, j: (j < 8) | ((i - j >= 0) & (i - j < 8)))
    assert pattern == "A-shape"
    assert blocks.order[0].tolist() == list(range(80))


def test_attention_to_a_distant_stretch_is_vertical():
    assert chosen(lambda i, j: (j >= 24) & (j < 32) & (i >= 0))[0] == "vertical-slash"


@pytest.mark.parametrize("keep_ratio", [0.0, 0.1, 0.5])
def test_a_share_of_the_legal_blocks_is_read_and_always_a_rows_own(keep_ratio):
    view = replace(view_of(noise(2, 80, 8), noise(4, 80, 8, seed=1)), layout=layout(VIDEO))
    blocks = MMInference(keep_ratio=keep_ratio, block=8, probes=16).attend(view)
    mask = blocks.mask(80)
    assert mask.diagonal(dim1=1, dim2=2).all()
    for head, order in enumerate(blocks.order):
        parts = order.split(8)
        for row, part in enumerate(parts):
            legal = sum(int(other.min() <= part.max()) for other in parts)
            assert int(blocks.read[head, row].sum()) == max(1, -(-int(keep_ratio * legal * 1000) // 1000))


def test_text_alone_has_one_order():
    view = replace(view_of(noise(2, 80, 8), noise(4, 80, 8, seed=1)), layout=layout(torch.full((80, 3), -1)))
    blocks = MMInference(block=8).attend(view)
    assert (blocks.order == torch.arange(80)).all()


def test_short_prompts_and_the_full_ratio_are_dense():
    view = replace(view_of(noise(2, 80, 8), noise(4, 80, 8, seed=1)), layout=layout(VIDEO))
    assert MMInference(keep_ratio=1.0, block=8).attend(view) is None
    assert MMInference(keep_ratio=0.1, block=40).attend(view) is None


@torch.inference_mode()
def test_prefill_skips_what_it_would_mask_in_any_order():
    family, technique = random_family("qwen2_5_vl"), MMInference(keep_ratio=0.3, block=16)
    orders = []

    class Masks(MMInference):
        def attend(self, view):
            blocks = technique.attend(view)
            orders.extend(blocks.order)
            return blocks.mask(view.query.shape[1])

    skipped, masked, plain = (
        prefill(Run(family, Plan(*parts)), noise_clip(), "what ?")[1] for parts in ([technique], [Masks()], [])
    )
    torch.testing.assert_close(skipped, masked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(skipped, plain, atol=1e-3)
    assert any((order.diff() < 0).any() for order in orders)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.5}, {"block": 0}, {"probes": 0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        MMInference(**options)
