"""InfiniPot-V: the bound holds, redundancy is measured place by place, the two signals share the budget."""

import pytest
import torch
from streamsupport import layers, watched
from support import noise_clip, random_family
from torch.nn.functional import cosine_similarity

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.decode.infinipot_v import InfiniPotV, redundancy
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_cache_never_holds_more_than_target_and_block(kind):
    technique, counts = InfiniPotV(target=2, block=2), []

    def note(stream):
        layout = stream.pieces.run.layout
        per_step = int((layout.cell[:, 0] == 0).sum())
        held = [int(layout.visual[row].sum()) / per_step for row in layers(stream)[0].row]
        assert len(set(held)) == 1
        counts.append(held[0])

    stream = watched(technique, 9, kind, note)
    assert max(counts) < 4
    assert counts[3] == 2.0
    text = stream.pieces.run.layout.step < 0
    assert all(text.nonzero()[:, 0].tolist() == row[: int(text.sum())].tolist() for row in layers(stream)[0].row)


def test_text_between_pictures_leaves_with_its_step():
    stream = watched(InfiniPotV(target=1, block=1), 12, "llava")
    layout = stream.pieces.run.layout
    for layer in layers(stream):
        steps = layout.step[layer.row]
        between = steps[~layout.visual[layer.row] & (steps >= 0)].unique()
        assert set(between.tolist()) <= set(steps[layout.visual[layer.row]].tolist())


def test_kept_rows_are_those_of_the_full_cache():
    full, bounded = watched(None, 4), watched(InfiniPotV(target=2, block=2), 4)
    whole, cut = layers(full)[0], layers(bounded)[0]
    for head, row in enumerate(cut.row):
        for tensor, expected in zip(cut.read(), whole.read()):
            torch.testing.assert_close(tensor[head], expected[head, row])


def test_redundancy_is_the_mean_cosine_with_recent_keys_at_the_same_place():
    torch.manual_seed(0)
    keys = torch.randn(2, 12, 8)
    patch = torch.tensor([[0, 1, 2, 3] * 3, [3, 0, 1, 2] * 3])
    recent = torch.zeros(2, 12, dtype=torch.bool)
    recent[:, 4:] = True
    found = redundancy(keys, patch, recent, 4)
    for head in range(2):
        for place in range(12):
            rivals = [at for at in range(12) if recent[head, at] and patch[head, at] == patch[head, place]]
            expected = torch.stack([cosine_similarity(keys[head, place], keys[head, at], 0) for at in rivals]).mean()
            torch.testing.assert_close(found[head, place], expected)


def choice(technique, keys, values):
    """Places kept of 3 steps of 4 tokens each, as one head sees them, in a made-up view."""

    class View:
        pass

    view = View()
    cell = torch.stack([torch.arange(12) // 4, torch.arange(12) % 4 // 2, torch.arange(12) % 2], dim=1)
    view.keys, view.values, view.row = keys[None], values[None], torch.arange(12)[None]
    view.layout = type("Layout", (), {"cell": cell})
    return technique.choose(view, torch.arange(12)[None], 4)[0].tolist()


def test_a_single_changed_place_of_an_old_step_is_kept_by_redundancy():
    keys = torch.ones(12, 8)
    keys[2] = -1.0  # at its place, unlike all that came later
    values = torch.arange(12.0)[:, None].expand(-1, 8)  # by their values, 2 would be the third to go
    technique = InfiniPotV(target=2, block=1, tar_ratio=0.625, query_ratio=0.4)
    assert choice(technique, keys, values) == [2, 5, 6, 7, 8, 9, 10, 11]
    assert choice(technique, torch.ones(12, 8), values) == [0, 5, 6, 7, 8, 9, 10, 11]


def test_a_static_clip_keeps_the_recent_step_and_then_the_lowest_places():
    technique = InfiniPotV(target=2, block=1, tar_ratio=1.0, query_ratio=0.4)
    assert choice(technique, torch.ones(12, 8), torch.zeros(12, 8)) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_without_redundancy_the_largest_values_stay():
    values = torch.arange(12.0)[:, None].expand(-1, 8)
    keys = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    assert choice(InfiniPotV(target=1, tar_ratio=0.0), keys, values.flip(0)) == [0, 1, 2, 3]


def test_a_bound_that_is_never_reached_changes_nothing():
    family, clip = random_family("qwen2_5_vl"), noise_clip(4)
    plain = generate(family, clip, QUESTION, max_new_tokens=6, ignore_eos=True)
    bounded = generate(family, clip, QUESTION, plan=Plan(InfiniPotV(target=9)), max_new_tokens=6, ignore_eos=True)
    assert bounded.tokens == plain.tokens


def test_an_empty_target_is_refused():
    with pytest.raises(BudgetError, match="target=0"):
        InfiniPotV(target=0)
