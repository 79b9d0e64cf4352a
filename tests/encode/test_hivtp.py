from __future__ import annotations

import copy

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Seen
from elvi.encode.hivtp import HIVTP, chosen
from elvi.errors import BudgetError
from elvi.families.family import grid_cells

QUESTION = "what color is the star ?"


def frames(steps: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    cell = grid_cells(steps, height, width)
    return torch.rand(len(cell), generator=torch.Generator().manual_seed(seed)), cell


def by_hand(score, cell, share: float, regions: int, window: int) -> list[int]:
    """Both passes with dictionaries of regions and windows."""
    height, width = (int(size) + 1 for size in cell[:, 1:].amax(0))
    large, small = {}, {}
    for i, (t, y, x) in enumerate(cell.tolist()):
        large.setdefault((t, y * regions // height, x * regions // width), []).append(i)
        small.setdefault((t, y // window, x // window), []).append(i)
    kept = set()
    for members in large.values():
        kept |= set(sorted(members, key=lambda i: (-float(score[i]), i))[: int(share * len(members) + 0.5)])
    for members in small.values():
        rest = [i for i in members if i not in kept]
        kept |= set(sorted(rest, key=lambda i: (-float(score[i]), i))[:1])
    return sorted(kept)


@pytest.mark.parametrize("grid", [(1, 24, 24), (3, 6, 6), (2, 5, 7), (1, 1, 9)])
@pytest.mark.parametrize("options", [(0.25, 2, 2), (0.5, 3, 2), (0.1, 1, 3), (0.0, 2, 2), (1.0, 2, 2)])
def test_regions_then_windows_choose_as_the_paper_says(grid, options, device):
    score, cell = frames(*grid)
    stays = chosen(score.to(device), cell.to(device), *options)
    assert stays.nonzero()[:, 0].tolist() == by_hand(score, cell, *options)


@pytest.mark.parametrize("seed", range(5))
def test_with_the_papers_settings_252_to_288_of_576_stay(seed):
    assert 252 <= int(chosen(*frames(1, 24, 24, seed), 0.25, 2, 2).sum()) <= 288


@pytest.mark.parametrize("grid", [(2, 6, 6), (1, 5, 7)])
def test_every_window_keeps_a_token_and_without_a_global_share_exactly_one(grid):
    score, cell = frames(*grid)
    windows = torch.cat([cell[:, :1], cell[:, 1:] // 2], dim=1)
    for share in (0.0, 0.3):
        kept = windows[chosen(score, cell, share, 2, 2)]
        assert torch.equal(kept.unique(dim=0), windows.unique(dim=0))
        assert share or len(kept) == len(windows.unique(dim=0))


def test_equal_scores_keep_the_first_of_each_area(device):
    stays = chosen(torch.ones(16, device=device), grid_cells(1, 4, 4).to(device), 0.25, 2, 2)
    assert stays.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


@torch.inference_mode()
def test_scores_are_columns_of_the_eager_maps_of_middle_blocks():
    family = random_family("llava")
    clip = family.steps(noise_clip())
    encoding = family.encode(clip, HIVTP.tower_layers)
    tower = copy.deepcopy(family.model.model.vision_tower)
    tower.set_attn_implementation("eager")
    maps = tower(family.pixels(clip), output_attentions=True).attentions
    middle = [maps[int(len(maps) * block / 24)] for block in (6, 7, 8)]
    score = torch.stack(middle).mean((0, 2, 3))[:, 1:].flatten()  # blocks, heads and query rows, the class token's too
    out = HIVTP().reduce(encoding.tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), encoding.tower))
    assert out.row.tolist() == by_hand(score, encoding.tokens.cell, 0.25, 2, 2)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "llava_onevision"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits(kind):
    plans = Plan(HIVTP(global_ratio=1.0)), Plan()
    pruned, plain = (prefill(Run(random_family(kind), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(pruned, plain)


@pytest.mark.parametrize("options", [{"global_ratio": 1.1}, {"regions": 0}, {"window": 0}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        HIVTP(**options)


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_chosen_tokens_answer_more_than_random_ones_on_a_trained_model(name):
    chosen, random = chosen_and_random(name, HIVTP(global_ratio=0.1))
    assert chosen >= random + 3
