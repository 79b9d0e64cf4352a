import numpy as np
import pytest
import torch

from elvi.core.tokens import Tokens, budget, outliers, top


def tokens(count: int = 6) -> Tokens:
    return Tokens(
        hidden=torch.arange(count * 2.0).view(count, 2),
        position=torch.arange(count).expand(3, count),
        token=torch.arange(count) + 100,
        cell=torch.tensor([[-1, -1, -1]] + [[0, 0, x] for x in range(count - 1)]),
        mass=torch.ones(count),
        row=torch.arange(count),
    )


def test_keep_takes_every_field_along():
    kept = tokens().keep(torch.tensor([0, 3]))
    assert kept.row.tolist() == [0, 3]
    assert kept.position[:, 1].tolist() == [3, 3, 3]
    assert kept.token.tolist() == [100, 103]
    assert kept.cell[1].tolist() == [0, 0, 2]
    assert kept.hidden.tolist() == [[0.0, 1.0], [6.0, 7.0]]
    assert kept.visual.tolist() == [False, True]


def test_keep_by_mask_equals_keep_by_index():
    mask = torch.tensor([True, False, False, True, False, True])
    assert torch.equal(tokens().keep(mask).row, tokens().keep(torch.tensor([0, 3, 5])).row)


def test_merge_is_the_mass_weighted_mean_at_the_anchor():
    group = torch.tensor([0, 1, 1, 1, 2, 2])
    merged = tokens().merge(group, torch.tensor([0, 2, 4]))
    assert merged.row.tolist() == [0, 2, 4]
    assert merged.mass.tolist() == [1.0, 3.0, 2.0]
    assert merged.hidden[1].tolist() == [4.0, 5.0]
    again = merged.merge(torch.tensor([0, 1, 1]), torch.tensor([0, 1]))
    torch.testing.assert_close(again.hidden[1], tokens().hidden[1:].mean(0))
    assert float(again.mass.sum()) == 6.0


def test_merge_with_weights_is_the_weighted_sum():
    merged = tokens(2).merge(torch.tensor([0, 0]), torch.tensor([0]), torch.tensor([1.0, 0.5]))
    assert merged.hidden.tolist() == [[1.0, 2.5]]


def test_top_breaks_ties_by_the_lowest_index():
    assert top(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), 2).tolist() == [1, 2]
    assert top(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 1).tolist() == [[1], [0]]
    assert top(torch.ones(3), 0).tolist() == []


@pytest.mark.parametrize(
    ("ratio", "total", "count"), [(0.5, 5, 3), (0.0, 7, 0), (1.0, 7, 7), (0.1, 4, 0), (0.25, 10, 3)]
)
def test_budget_rounds_half_up(ratio, total, count):
    assert budget(ratio, total) == count


def test_compact_closes_the_gaps_of_one_axis():
    row = tokens(8).keep(torch.tensor([0, 2, 5, 7]))
    left = Tokens(row.hidden, row.position[:1], row.token, row.cell, row.mass, row.row).compact()
    assert left.position.tolist() == [[0, 1, 2, 3]]
    assert left.row.tolist() == [0, 2, 5, 7]


def test_compact_ranks_every_axis_of_a_picture_and_lets_text_count_on():
    cell = torch.tensor([[-1] * 3] * 2 + [[0, 0, 1], [0, 2, 3], [4, 2, 1]] + [[-1] * 3] * 2)
    position = torch.where(cell < 0, torch.tensor([0, 1, 0, 0, 0, 9, 10])[:, None], 2 + cell).mT
    row = Tokens(torch.zeros(7, 2), position, torch.arange(7), cell, torch.ones(7), torch.arange(7)).compact()
    assert row.position[:, :2].tolist() == [[0, 1]] * 3
    assert row.position[:, 2:5].tolist() == [[2, 2, 3], [2, 3, 3], [2, 3, 2]]
    assert row.position[:, 5:].tolist() == [[4, 5]] * 3


def test_compact_changes_nothing_where_there_is_no_gap():
    assert torch.equal(tokens().compact().position, tokens().position)


def test_fold_merges_into_owners_and_drops_what_nobody_owns():
    folded = tokens().fold(torch.tensor([0, 1, 4, -1, 4, 1]))
    assert folded.row.tolist() == [0, 1, 4]
    assert folded.mass.tolist() == [1.0, 2.0, 2.0]
    assert folded.hidden.tolist() == [[0.0, 1.0], [6.0, 7.0], [6.0, 7.0]]
    weighted = tokens().fold(torch.tensor([0, 1, 4, -1, 4, 1]), torch.tensor([1.0, 1.0, 0.25, 9.0, 0.75, 0.0]))
    assert weighted.hidden.tolist() == [[0.0, 1.0], [2.0, 3.0], [7.0, 8.0]]


def test_frames_index_the_visual_tokens_of_every_step():
    cell = torch.tensor([[-1] * 3, [0, 0, 0], [0, 0, 1], [-1] * 3, [2, 0, 0], [2, 0, 1]])
    row = Tokens(torch.zeros(6, 2), torch.zeros(1, 6), torch.arange(6), cell, torch.ones(6), torch.arange(6))
    assert row.frames.tolist() == [[1, 2], [4, 5]]
    assert row.keep(cell[:, 0] < 0).frames.shape == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_outlier_bound_is_that_of_interpolated_quartiles(seed):
    paid = torch.rand(37, generator=torch.Generator().manual_seed(seed)) ** 8
    low, high = np.percentile(paid.double().numpy(), [25, 75])
    assert outliers(paid, 1.5) == int((paid.double().numpy() > high + 1.5 * (high - low)).sum()) > 0


def test_keep_visual_takes_text_the_chosen_and_the_last_along():
    kept = tokens().keep_visual(torch.tensor([3, 1]))
    assert kept.row.tolist() == [0, 1, 3, 5]
    assert tokens().keep_visual(torch.tensor([], dtype=torch.long)).row.tolist() == [0, 5]
