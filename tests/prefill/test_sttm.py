from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError, FitError
from elvi.prefill.sttm import STTM, cells, levels

SIZES = [(6, 6), (7, 7), (14, 14), (13, 9), (5, 12), (1, 9), (2, 2), (3, 16)]
SEEN = Seen(None, torch.empty(0, dtype=torch.long))


def blotched(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Frames [T, h, w, D] of few different patches that hang together, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (frames, -(-height // 3), -(-width // 3)), generator=generator)
    kinds = kinds.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width]
    noise = torch.randn(frames, height, width, 8, generator=generator)
    return torch.eye(8)[kinds] + 0.1 * noise


def shown(grid: torch.Tensor) -> Tokens:
    """One text token, then frames [T, h, w, D] of tokens, then one text token."""
    frames, height, width = grid.shape[:3]
    cell = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).to(grid.device)
    cell = torch.nn.functional.pad(cell, (0, 0, 1, 1), value=-1)
    hidden = torch.nn.functional.pad(grid.flatten(0, 2), (0, 0, 1, 1), value=1.0)
    count = torch.arange(len(hidden), device=grid.device)
    return Tokens(hidden, count[None], count, cell, torch.ones_like(hidden[:, 0]), count)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def pyramid(frame: torch.Tensor, root_level: int) -> list[dict[tuple[int, int, int, int], dict]]:
    """Levels of boxes (top, left, bottom, right) with their features and their children's boxes, finest first."""
    height, width = frame.shape[:2]
    at = {(y, x): (y, x, y + 1, x + 1) for y in range(height) for x in range(width)}
    found = [{box: {"mean": frame[place], "children": []} for place, box in at.items()}]
    while min(height, width) > 2:
        rows, columns = (
            [range(1)] * (side % 2) + [range(start, start + 2) for start in range(side % 2, side, 2)]
            for side in (height, width)
        )
        level, above = {}, {}
        for y, down in enumerate(rows):
            for x, across in enumerate(columns):
                children = [at[i, j] for i in down for j in across]
                box = (*children[0][:2], *children[-1][2:])
                means = [found[-1][child]["mean"] for child in children]
                level[box], above[y, x] = {"mean": torch.stack(means).mean(0), "children": children}, box
        found.append(level)
        at, height, width = above, len(rows), len(columns)
    return found[: max(1, len(found) - root_level)]


def split(levels_: list, number: int, box: tuple, threshold: float) -> list[tuple]:
    """Top-down: the boxes that a box is split into, with their features."""
    node = levels_[number][box]
    alike = [cosine(node["mean"], levels_[number - 1][child]["mean"]) >= threshold for child in node["children"]]
    if not number or (all(alike) and len(alike) > 1):
        return [(box, node["mean"])]
    return [part for child in node["children"] for part in split(levels_, number - 1, child, threshold)]


def by_hand(grid: torch.Tensor, technique: STTM) -> dict[int, tuple[float, torch.Tensor]]:
    """Mass and features of what is left, by row: a recursive quadtree, and components grown pair by pair."""
    height, width = grid.shape[1:3]
    nodes = []
    for number, frame in enumerate(grid):
        tree = pyramid(frame, technique.root_level)
        boxes = [part for box in tree[-1] for part in split(tree, len(tree) - 1, box, technique.spatial_threshold)]
        nodes += [(number, *part) for part in sorted(boxes, key=lambda part: part[0][:2])]
    group = list(range(len(nodes)))
    for i, (before, box, mean) in enumerate(nodes):
        for j, (after, other, its) in enumerate(nodes):
            meet = after == before + 1 and (inside(box, other) or inside(other, box))
            if meet and cosine(mean, its) >= technique.temporal_threshold:
                low, high = sorted((group[i], group[j]))
                group = [low if each == high else each for each in group]
    left = {0: (1.0, torch.ones(8)), grid[..., 0].numel() + 1: (1.0, torch.ones(8))}
    for root in set(group):
        members = [nodes[i] for i in range(len(nodes)) if group[i] == root]
        mass = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, _ in members)
        row = 1 + (nodes[root][0] * height + nodes[root][1][0]) * width + nodes[root][1][1]
        left[row] = mass, torch.stack([mean for *_, mean in members]).mean(0)
    return left


def inside(box: tuple, other: tuple) -> bool:
    return other[0] <= box[0] and other[1] <= box[1] and box[2] <= other[2] and box[3] <= other[3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [(0.9, 0.8, 1), (0.6, 0.5, 0), (0.9, 2.0, 2), (2.0, 0.9, 1)])
def test_what_is_left_is_what_the_paper_says(size, options, device):
    grid = blotched(3, *size)
    technique = STTM(2, *options)
    expected = by_hand(grid, technique)
    out = technique.reduce(shown(grid.to(device)), SEEN)
    assert out.row.tolist() == sorted(expected)
    assert out.mass.tolist() == [expected[row][0] for row in sorted(expected)]
    features = torch.stack([expected[row][1] for row in sorted(expected)])
    torch.testing.assert_close(out.hidden.cpu(), features, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.position[0], out.row)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("root_level", [0, 1])
def test_cells_are_boxes_that_tile_the_frame(size, root_level):
    corner, share = cells(blotched(4, *size), 0.9, root_level)
    for frame, weight in zip(corner, share):
        for first in frame.unique():
            y, x = (frame.view(size) == first).nonzero().T
            assert first == y.min() * size[1] + x.min()
            assert len(y) == (y.max() - y.min() + 1) * (x.max() - x.min() + 1)
            assert weight[frame == first].sum() == pytest.approx(1)


def test_sides_are_halved_until_one_is_two():
    assert [levels(side, side) for side in (1, 2, 3, 4, 5, 7, 14, 27)] == [0, 0, 1, 1, 2, 2, 3, 4]
    assert levels(2, 40) == 0


@pytest.mark.parametrize("root_level", [0, 1, 2, 9])
def test_a_video_that_never_changes_is_left_with_the_cells_of_its_root(root_level):
    out = STTM(root_level=root_level).reduce(shown(torch.ones(5, 7, 14, 8)), SEEN)
    assert len(out) - 2 == [2 * 4, 4 * 7, 7 * 14, 7 * 14][min(root_level, 3)]
    assert float(out.mass.sum()) == 5 * 7 * 14 + 2


@pytest.mark.parametrize("size", SIZES)
def test_masses_count_patches_per_frame_before_and_over_all_frames_after_time(size):
    tokens = shown(blotched(4, *size))
    frames = STTM(temporal_threshold=2.0).reduce(tokens, SEEN)
    for step in range(4):
        assert float(frames.mass[frames.cell[:, 0] == step].sum()) == size[0] * size[1]
    assert float(STTM().reduce(tokens, SEEN).mass.sum()) == len(tokens)


def test_a_single_leftover_is_looked_into_before_it_merges():
    """Of 7 x 7 the first cell of the top level holds the first token alone, and one level of 14 x 14 its four."""
    grid = blotched(1, 14, 14)
    grid[0, :2, :2] = torch.eye(8)[:4].view(2, 2, 8)
    corner, _ = cells(grid, 0.9, 1)
    assert corner[0, [0, 1, 14, 15]].tolist() == [0, 1, 14, 15]


@pytest.mark.parametrize(("threshold", "left"), [(0.0, 1), (1e-6, 2)])
def test_cells_exactly_at_the_threshold_are_merged_over_time(threshold, left):
    grid = torch.eye(8)[:2].view(2, 1, 1, 8)
    assert int(STTM(temporal_threshold=threshold).reduce(shown(grid), SEEN).visual.sum()) == left


@pytest.mark.parametrize(("threshold", "left"), [(0.5, 4), (0.51, 16)])
def test_cells_exactly_at_the_threshold_are_merged_in_space(threshold, left):
    """The mean of four directions at right angles is at cosine 1 / 2 to each."""
    grid = torch.eye(8)[:4].view(1, 2, 2, 8).repeat(1, 2, 2, 1)
    technique = STTM(spatial_threshold=threshold, temporal_threshold=2.0, root_level=0)
    assert int(technique.reduce(shown(grid), SEEN).visual.sum()) == left


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits_and_keeping_few_moves_no_position(kind):
    family = random_family(kind)
    runs = [Run(family, Plan(*parts)) for parts in ((), (STTM(**STTM.full),), (STTM(2, 0.5, 0.3, 0),))]
    logits = [prefill(run, noise_clip(), "what color is the star ?")[1] for run in runs]
    assert torch.equal(logits[0], logits[1])
    kept = runs[2].store.layers[2].row[0]
    assert len(kept) < len(runs[0].layout) == runs[2].store.layers[1].length
    assert torch.equal(runs[2].layout.position[:, kept], runs[0].layout.position[:, kept])
    assert runs[2].next_position == runs[0].next_position


@torch.inference_mode()
def test_what_is_cached_of_the_video_is_the_same_for_every_question():
    caches = []
    for question in ("what color is the star ?", "how many circles are there ?"):
        run = Run(random_family("qwen2_5_vl"), Plan(STTM(2, 0.5, 0.3, 0)))
        prefill(run, noise_clip(), question)
        store = run.store.layers[2]
        count = int((store.row[0] < int(run.layout.visual.nonzero()[-1]) + 1).sum())
        caches.append((store.row[:, :count], store.read()[0][:, :count]))
    assert torch.equal(caches[0][0], caches[1][0])
    torch.testing.assert_close(caches[0][1], caches[1][1])


@torch.inference_mode()
def test_an_image_in_tiles_is_refused():
    wide = noise_clip(1, still=True, size=(42, 84))
    with pytest.raises(FitError, match="no grid of height x width"):
        prefill(Run(random_family("llava_onevision"), Plan(STTM())), wide, "what color is the star ?")


@pytest.mark.parametrize("options", [{"layer": -1}, {"spatial_threshold": 2.1}, {"root_level": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        STTM(**options)


def test_merged_tokens_answer_more_than_random_ones():
    chosen, random = chosen_and_random("tiny-qwen", STTM())
    assert chosen >= random + 3
