from __future__ import annotations

import pytest
import torch
from kvsupport import view_of
from support import noise_clip, random_family
from torch.nn.functional import normalize

from elvi.core.blocks import attend_blocks, reachable
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import BudgetError
from elvi.prefill.spargeattn import SpargeAttn, summary


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**options) -> SpargeAttn:
    return SpargeAttn(rows=8, keys=4, **options)


@pytest.mark.parametrize("total", [16, 15, 9])
def test_similarity_is_the_mean_cosine_of_all_pairs_and_means_are_over_real_tokens(total):
    rows = noise(2, total, 5)
    mean, similarity = summary(rows, 4)
    for head in range(2):
        for block, part in enumerate(rows[head].split(4)):
            unit = normalize(part, dim=-1)
            torch.testing.assert_close(similarity[head, block], (unit @ unit.T).mean(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mean[head, block], part.mean(0), rtol=1e-4, atol=1e-5)


def everything(total: int = 30) -> torch.Tensor:
    return reachable(-(-total // 8), -(-total // 4), 8, 4)


def test_nothing_trusted_reads_everything():
    blocks = small(similarity=1.0, threshold=0.1).attend(view_of(noise(2, 30, 8), noise(4, 30, 8, seed=1)))
    assert torch.equal(blocks.read, everything().expand(4, -1, -1))


def test_full_share_is_dense():
    view = view_of(noise(2, 30, 8), noise(4, 30, 8, seed=1))
    assert small(threshold=1.0).attend(view) is None
    assert torch.equal(small(top_k=1.0, similarity=-1.0).attend(view).read, everything().expand(4, -1, -1))


def test_everything_trusted_takes_the_fewest_blocks_of_the_pooled_softmax():
    keys, query = noise(2, 32, 8), noise(4, 32, 8, seed=1) * 3
    read = small(similarity=-1.0, threshold=0.7).attend(view_of(keys, query)).read
    for head in range(4):
        means = torch.stack([part.mean(0) for part in keys[head // 2].split(4)])
        for row, part in enumerate(query[head].split(8)):
            legal = range((row + 1) * 2)
            share = (part.mean(0) @ means[: len(legal)].T * view_of(keys, query).scaling).softmax(0)
            wanted, held = set(), 0.0
            for block in sorted(legal, key=lambda b: (-float(share[b]), b)):
                if held >= 0.7 - 1e-6:
                    break
                wanted.add(block)
                held += float(share[block])
            assert set(read[head, row].nonzero()[:, 0].tolist()) == wanted | {row * 2, row * 2 + 1}


def test_blocks_that_point_apart_are_read_by_all_rows_and_read_all_themselves():
    keys, query = torch.ones(1, 32, 8), torch.ones(1, 32, 8)
    keys[0, 8:12] = noise(4, 8)  # key block 2
    query[0, 24:32] = noise(8, 8, seed=1)  # row block 3
    read = small(similarity=0.9, threshold=0.1, smooth=False).attend(view_of(keys, query)).read[0]
    assert read[1:, 2].all()
    assert read[3].all()
    assert not read[2].all()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_top_k_reads_a_share_of_what_a_row_could_read(share):
    read = small(similarity=-1.0, top_k=share).attend(view_of(noise(2, 64, 8), noise(4, 64, 8, seed=1))).read
    wanted = (share * reachable(8, 16, 8, 4).sum(-1)).ceil()
    assert ((read.sum(-1) >= wanted) & (read.sum(-1) <= wanted + 2)).all()  # the row's own blocks, if not among them


def test_smoothing_judges_keys_without_what_they_share():
    keys = 10 + noise(1, 64, 8)
    blocks = [
        small(threshold=0.3, smooth=smooth).attend(view_of(keys, torch.ones(1, 64, 8))) for smooth in (True, False)
    ]
    assert blocks[0].read.sum() > blocks[1].read.sum()


def test_more_threshold_comes_closer_to_dense_attention():
    keys, query = noise(2, 64, 8), noise(4, 64, 8, seed=1) * 2
    view = view_of(keys, query)
    dense = attend_blocks(query, keys, keys, small(similarity=1.0).attend(view), view.scaling)
    errors = []
    for threshold in (0.2, 0.6, 0.95):
        out = attend_blocks(query, keys, keys, small(similarity=-1.0, threshold=threshold).attend(view), view.scaling)
        errors.append(float((out - dense).abs().sum() / dense.abs().sum()))
    assert errors[0] > errors[1] > errors[2]


@torch.inference_mode()
def test_prefill_skips_what_it_would_mask():
    family, technique = random_family("qwen2_5_vl"), SpargeAttn(rows=16, keys=8, similarity=-1.0, threshold=0.5)

    class Masks(SpargeAttn):
        def attend(self, view):
            blocks = technique.attend(view)
            return blocks.mask(view.query.shape[1])

    skipped, masked, plain = (
        prefill(Run(family, Plan(*parts)), noise_clip(), "what ?")[1] for parts in ([technique], [Masks()], [])
    )
    torch.testing.assert_close(skipped, masked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(skipped, plain, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"similarity": -2.0}, {"rows": 0}, {"keys": 0}, {"top_k": 2.0}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        SpargeAttn(**options)
