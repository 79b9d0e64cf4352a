from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import noise_clip, random_family

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.tome import ToMe
from elvi.encode.tosa import ToSA, codes
from elvi.errors import BudgetError, FitError
from elvi.families.family import grid_cells

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(*techniques, kind: str = "llava") -> Tokens:
    family = random_family(kind)
    return family.encode_reduced(family.steps(noise_clip()), techniques).tokens


def frame(side: int = 6, seed: int = 0) -> tuple[Tokens, torch.Tensor]:
    """One frame of random features, and keys [2, N, 4]."""
    generator, cell = torch.Generator().manual_seed(seed), grid_cells(1, side, side)
    count = torch.arange(len(cell))
    hidden = torch.randn(len(cell), 5, generator=generator)
    keys = torch.randn(2, len(cell), 4, generator=generator)
    return Tokens(hidden, count[None], count, cell, torch.ones(len(cell)), count), keys


def seen(keys, block: int, blocks: int = 4, memory: dict | None = None) -> Seen:
    nothing = torch.empty(0, dtype=torch.long)
    return Seen(None, nothing, key=keys, block=block, blocks=blocks, memory={} if memory is None else memory)


def by_hand(keys, code, alpha: float, count: int) -> list[int]:
    """Rows that stay when the strongest mixed ties are taken, pair by pair."""
    proposals = []
    for a in range(0, len(code), 2):
        ties = []
        for b in range(1, len(code), 2):
            likeness = alpha * torch.cosine_similarity(keys[a], keys[b], dim=0)
            ties.append((-float(likeness + (1 - alpha) * torch.cosine_similarity(code[a], code[b], dim=0)), b))
        proposals.append((min(ties)[0], a))
    gone = {a for _, a in sorted(proposals)[:count]}
    return [i for i in range(len(code)) if i not in gone]


@pytest.mark.parametrize(
    ("block", "alpha", "weight"), [(1, None, 1 / 3), (2, None, 2 / 3), (1, 0.9, 0.9), (3, 0.25, 0.25)]
)
def test_ties_mix_keys_and_places_in_the_proportion_of_the_block(block, alpha, weight):
    tokens, keys = frame()
    out = ToSA(keep_ratio=0.5, alpha=alpha).reduce(tokens, seen(keys, block))
    expected = by_hand(keys.mean(0), codes(tokens.cell, None), weight, 18 * (block + 1) // 4 - 18 * block // 4)
    assert out.row.tolist() == expected


def test_keys_alone_are_plain_tome():
    tosa, tome = encoded(ToSA(keep_ratio=0.4, alpha=1.0)), encoded(ToMe(keep_ratio=0.4))
    assert torch.equal(tosa.row, tome.row)
    torch.testing.assert_close(tosa.hidden, tome.hidden)


def test_places_alone_look_at_nothing_else():
    one, other = frame(seed=1), frame(seed=2)
    rows = [ToSA(keep_ratio=0.5, alpha=0.0).reduce(tokens, seen(keys, 3)).row for tokens, keys in (one, other)]
    assert torch.equal(*rows)


def test_codes_of_merged_tokens_are_means_of_what_they_hold():
    (tokens, keys), memory = frame(), {}
    technique = ToSA(keep_ratio=0.5, alpha=0.5)
    first = technique.reduce(tokens, seen(keys, 0, memory=memory))
    torch.testing.assert_close(first.mass @ memory["code"], codes(tokens.cell, None).sum(0))
    second = technique.reduce(first, seen(keys[:, : len(first)], 1, memory=memory))
    torch.testing.assert_close(second.mass @ memory["code"], codes(tokens.cell, None).sum(0))
    assert len(memory["code"]) == len(second) < len(first) < 36
    assert float(second.mass.sum()) == 36


def test_equal_depth_everywhere_leaves_the_order_of_places_as_it_is(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((1, 12, 12), 77.0))
    cell = frame()[0].cell
    depth = ToSA(depth=str(tmp_path / "flat.npy"))._depth(cell)
    assert depth.tolist() == [round(77 * 6 / 256)] * 36
    deep, flat = codes(cell, depth), codes(cell, None)
    assert deep.shape == flat.shape == (36, 72)
    near = torch.nn.functional.cosine_similarity(deep[:1], deep[1:])
    assert float(near.argmax()) in (0.0, 5.0)  # the next one in the row, or in the column


def test_depth_parts_what_is_close_in_the_picture(tmp_path):
    halves = np.zeros((1, 6, 6))
    halves[:, :, 3:] = 255.0
    np.save(tmp_path / "depth.npy", halves)
    technique = ToSA(keep_ratio=0.5, alpha=0.0, depth=str(tmp_path / "depth.npy"))
    tokens, keys = frame()
    assert technique._depth(tokens.cell).view(6, 6)[0].tolist() == [0, 0, 0, 5, 5, 5]
    out = technique.reduce(replace(tokens, hidden=halves_of(tokens)), seen(keys, 0, blocks=1))
    assert set(out.hidden[:, 0].tolist()) == {0.0, 1.0}  # nothing was merged across the edge


def halves_of(tokens: Tokens) -> torch.Tensor:
    return (tokens.cell[:, 2:] >= 3).float()


@pytest.mark.parametrize(("shape", "words"), [((3, 4, 4), "1 time steps"), ((4, 4), "shape"), (None, "no file")])
def test_depth_that_does_not_fit_is_refused(shape, words, tmp_path):
    if shape:
        np.save(tmp_path / "depth.npy", np.zeros(shape))
    with pytest.raises(FitError, match=words):
        ToSA(depth=str(tmp_path / "depth.npy")).reduce(frame()[0], seen(frame()[1], 0))


@torch.inference_mode()
def test_behind_a_bound_tower_features_and_places_count_half_each():
    tokens, _ = frame()
    out = ToSA(keep_ratio=0.75).reduce(tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long)))
    assert out.row.tolist() == by_hand(tokens.hidden, codes(tokens.cell, None), 0.5, 9)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits(kind):
    plans = Plan(ToSA(keep_ratio=1.0)), Plan()
    merged, plain = (prefill(Run(random_family(kind), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(merged, plain)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"alpha": 2.0}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        ToSA(**options)
