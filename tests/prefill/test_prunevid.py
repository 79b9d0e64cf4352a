from __future__ import annotations

from itertools import combinations

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random

from elvi.bench.floor import RandomCuts, twin
from elvi.core.cluster import density_peaks
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError
from elvi.prefill.prunevid import PruneVid, refined, scenes, steadiness

QUESTION = "what color is the star ?"
UNMERGED = {"threshold": 1.0, "cluster_ratio": 1.0}


def shown(hidden: torch.Tensor) -> Tokens:
    """One text token, then frames of tokens [T, n, D]."""
    frames, length, width = hidden.shape
    count = torch.arange(frames * length + 1, device=hidden.device)
    cell = torch.stack([torch.div(count - 1, length, rounding_mode="floor"), count, count], dim=1)
    cell[0] = -1
    states = torch.cat([hidden.new_zeros(1, width), hidden.flatten(0, 1)])
    return Tokens(states, count[None], count, cell, torch.ones_like(states[:, 0]), count)


def seen_at(layer: int, **more) -> Seen:
    return Seen(QUESTION, torch.tensor([0]), layer=layer, family=random_family("llava"), **more)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def prefilled(kind: str, technique=None) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*([technique] if technique else [])))
    return run, prefill(run, noise_clip(), QUESTION)[1]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, PruneVid(**PruneVid.full))[1], prefilled(kind)[1])


def test_a_video_that_stands_still_becomes_one_frame(device):
    frame = noise(1, 12, 8).to(device)
    out = PruneVid(scene_ratio=0.1).reduce(shown(frame.repeat(6, 1, 1)), seen_at(0))
    assert out.row.tolist() == list(range(13))
    assert out.mass.tolist() == [1.0] + [6.0] * 12
    torch.testing.assert_close(out.hidden[1:], frame[0])


def test_static_places_become_their_mean_and_dynamic_ones_stay_per_frame():
    hidden = noise(1, 5, 16).repeat(4, 1, 1) + 0.1 * noise(4, 5, 16, seed=1)
    hidden[:, 3] = noise(4, 16, seed=2)
    out = PruneVid(scene_ratio=0.1).reduce(shown(hidden), seen_at(0))
    assert out.row.tolist() == [0, 1, 2, 3, 4, 5, 9, 14, 19]
    for place, row in ((0, 1), (1, 2), (2, 3), (4, 5)):
        torch.testing.assert_close(out.hidden[row], hidden[:, place].mean(0))
    torch.testing.assert_close(out.hidden[[4, 6, 7, 8]], hidden[:, 3])


def test_more_than_fourteen_tokens_become_the_means_of_half_as_many_clusters():
    hidden = noise(2, 15, 8)
    out = PruneVid(threshold=1.0).reduce(shown(hidden), seen_at(0))
    for frame in range(2):
        centre, group = density_peaks(hidden[frame], 7, 7)
        mine = out.keep((out.cell[:, 0] == frame).nonzero()[:, 0])
        assert mine.row.tolist() == (centre + 1 + 15 * frame).tolist()
        means = [hidden[frame][group == number].mean(0) for number in range(7)]
        torch.testing.assert_close(mine.hidden, torch.stack(means))
    assert float(out.mass.sum()) == 31


def test_steadiness_is_the_mean_cosine_over_pairs_of_frames():
    hidden = noise(5, 3, 8)
    pairs = [torch.cosine_similarity(hidden[a], hidden[b], dim=-1) for a, b in combinations(range(5), 2)]
    torch.testing.assert_close(steadiness(hidden), torch.stack(pairs).mean(0))
    assert (steadiness(hidden[:1]) < -1).all()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),
        ([0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),
        ([0, 0, 2, 1, 1], [0, 0, 0, 1, 1]),
        ([0, 0, 2, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
        ([2, 0, 0, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1]),
        ([3, 2, 1], [0, 0, 0]),
        ([5], [0]),
        ([], []),
    ],
)
def test_stray_frames_join_the_longer_neighbour(labels, expected):
    assert refined(labels) == expected


def test_refined_scenes_cover_the_clip_once_and_stay_as_they_are():
    for seed in range(200):
        labels = torch.randint(3, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
        once = refined(labels)
        assert once == refined(once) == sorted(once)
        assert len(once) == 9
        assert min(once.count(label) for label in once) >= 2


def test_scenes_are_parted_where_what_is_shown_changes():
    one, two = noise(1, 8), noise(1, 8, seed=1)
    assert scenes(torch.cat([one.repeat(5, 1), two.repeat(3, 1)]) + 0.01 * noise(8, 8, seed=2), 0.25) == [
        (0, 5),
        (5, 8),
    ]


def test_each_part_keeps_its_share_of_what_the_question_attends_to_most():
    tokens = shown(noise(2, 4, 8))
    query, key = noise(2, 9, 4), noise(2, 9, 4, seed=1)
    seen = Seen(QUESTION, torch.tensor([7, 8]), query=query, key=key, layer=1, family=random_family("llava"))
    seen.memory["parts"] = [torch.tensor([1, 3, 5, 7]), torch.tensor([2, 4]), torch.tensor([6, 8])]
    out = PruneVid(keep_ratio=0.5).reduce(tokens, seen)
    logits = query @ key.mT
    worth = [
        max(float(logits[h, r, : r + 1].softmax(0)[i]) if i <= r else 0 for h in (0, 1) for r in (7, 8))
        for i in range(9)
    ]
    best = [
        row
        for part in seen.memory["parts"]
        for row in sorted(part.tolist(), key=lambda row: -worth[row])[: len(part) // 2]
    ]
    assert out.row.tolist() == sorted([0, *best])


class FirstHalf:
    """What a technique does while the prompt is read, without what it does to the cache."""

    def __init__(self, of):
        self.of, self.at, self.needs, self.breaks, self.lossless = of, of.at, of.needs, of.breaks, False

    def reduce(self, tokens, seen):
        return self.of.reduce(tokens, seen)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_dropping_equals_hiding_the_same_rows_from_the_later_layers_on(kind):
    technique = PruneVid(keep_ratio=0.2, depth=0.6, **UNMERGED)
    run, logits = prefilled(kind, FirstHalf(technique))
    assert run.store.lengths[0] == run.store.lengths[1] == len(run.layout) > run.store.lengths[2]
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)
    assert torch.equal(prefilled(kind, technique)[1], logits)


@pytest.mark.parametrize("technique", [PruneVid(), PruneVid(keep_ratio=0.0), PruneVid(depth=0.6), PruneVid(depth=1.0)])
def test_all_layers_hold_the_same_rows_and_the_answer_counts_on_from_the_whole_prompt(technique):
    run, plain = prefilled("qwen2_5_vl", technique)[0], prefilled("qwen2_5_vl")[0]
    rows = [layer.row[0].tolist() for layer in run.store.layers]
    assert rows[0] == rows[1] == rows[2]
    assert len(rows[0]) < len(plain.layout)
    assert run.next_position == plain.next_position


def test_random_selection_beside_it_leaves_about_as_many_rows_and_cuts_the_cache_too():
    chosen, drawn = (prefilled("llava", technique)[0] for technique in (PruneVid(), twin(PruneVid(), 0)))
    assert isinstance(twin(PruneVid(), 0), RandomCuts)
    assert len(set(drawn.store.lengths)) == 1
    assert abs(drawn.store.lengths[0] - chosen.store.lengths[0]) <= 3


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"depth": -0.1}, {"threshold": 2.0}, {"positions": "none"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        PruneVid(**options)


def test_chosen_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-qwen", PruneVid(keep_ratio=0.1))
    assert chosen >= random + 3
