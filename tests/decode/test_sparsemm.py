"""SparseMM against SnapKV where all heads are equal, loops, and masking where they are not."""

import json
from pathlib import Path

import pytest
import torch
from kvsupport import Masked, held, prefilled, stepwise
from support import random_family

import elvi
from elvi import cli
from elvi.bench.heads import save
from elvi.core.plan import Plan
from elvi.core.rows import PAD, Ragged
from elvi.core.scores import observers, pooled, window_score
from elvi.decode.snapkv import SnapKV
from elvi.decode.sparsemm import FOUND, SparseMM
from elvi.errors import BudgetError, FitError

HEADS = 2


@pytest.fixture
def table(tmp_path):
    """A file with scores [3, 6] for the random models: uneven, with heads that score nothing."""
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) ** 6
    scores[0] = scores[2, :3] = 0
    for name in ("random-qwen", "random-llava"):
        save(scores, name, tmp_path / "table.json")
    return str(tmp_path / "table.json")


def alive(run):
    """Row numbers that every layer's heads hold, without padding."""
    return [[row[row != PAD] for row in layer] for layer in held(run)]


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.6])
def test_budgets_are_window_floor_and_share_of_the_pool(floor):
    scores = torch.tensor([[0.0, 3.0], [1.0, 4.0]])
    budgets = SparseMM(floor=floor).budgets(scores, [60, 60], [1000, 1000], 12)
    b0 = int(floor * 48)
    assert budgets.sum() == 60 * 4
    assert (budgets - (12 + b0 + scores / 8 * (48 - b0) * 4)).abs().max() <= 1


def test_what_a_head_cannot_take_goes_to_others_or_is_lost():
    scores = torch.tensor([[0.9, 0.05], [0.05, 0.0]])
    budgets = SparseMM(floor=0.0).budgets(scores, [50, 50], [100, 100], 10)
    assert budgets.tolist() == [[100, 45], [45, 10]]
    lost = SparseMM(floor=0.0, redistribute=False).budgets(scores, [50, 50], [100, 100], 10)
    assert lost.tolist() == [[100, 18], [18, 10]]


def test_heads_that_score_nothing_keep_the_window_alone_without_a_floor():
    budgets = SparseMM(floor=0.0).budgets(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), [30, 30], [100, 100], 10)
    assert budgets.tolist() == [[10, 50], [10, 50]]


def test_budgets_below_the_window_leave_nothing_to_split():
    assert SparseMM().budgets(torch.tensor([[0.0, 1.0]]), [5], [100], 10).tolist() == [[5, 5]]


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.7])
@pytest.mark.parametrize("fields", [{"table": "uniform"}, {"floor": 1.0}])
@torch.inference_mode()
def test_equal_heads_keep_what_snapkv_keeps(ratio, fields, table):
    run, snap = prefilled(SparseMM(keep_ratio=ratio, **{"table": table, **fields})), prefilled(SnapKV(ratio))
    assert all(torch.equal(layer.row, other.row) for layer, other in zip(run.store.layers, snap.store.layers))


class Everything:
    """Remembers the views."""

    needs = breaks = frozenset()
    lossless, rolling, window = True, False, 32

    def keep(self, views):
        self.views = views
        return [None] * len(views)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_every_head_keeps_its_window_and_the_best_of_the_rest(kind, table):
    everything = Everything()
    whole = prefilled(everything, kind=kind)
    total = len(whole.layout)
    run = prefilled(SparseMM(keep_ratio=0.3, table=table), kind=kind)
    sizes = set()
    for rows, view in zip(alive(run), everything.views):
        window = observers(view.query_row, view.layout, 32)
        score = window_score(view, window)
        score[:, total - window :] = 0
        for kept, smooth in zip(rows, pooled(score, 5).tolist()):
            best = sorted(range(total - window), key=lambda j, s=smooth: (-s[j], j))[: len(kept) - window]
            assert kept.tolist() == sorted(best) + list(range(total - window, total))
            sizes.add(len(kept))
    assert len(sizes) > 3


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_decoding_over_ragged_heads_equals_the_full_cache_with_the_dropped_rows_masked(kind, table):
    run = prefilled(SparseMM(keep_ratio=0.3, table=table), kind=kind)
    assert any(isinstance(layer.rows, Ragged) for layer in run.store.layers)
    full = prefilled(Masked(tuple(map(tuple, alive(run)))), kind=kind)
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache(table):
    assert torch.equal(stepwise(prefilled(SparseMM(keep_ratio=1.0, table=table))), stepwise(prefilled()))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3, 0.9])
@torch.inference_mode()
def test_bytes_are_the_mean_budget_exactly(ratio, table):
    run = prefilled(SparseMM(keep_ratio=ratio, table=table))
    count = int(ratio * len(run.layout) + 0.5)
    assert run.store.nbytes == count * run.family.num_layers * HEADS * 32 * 2 * 4


@torch.inference_mode()
def test_order_of_query_heads_inside_a_group_does_not_matter(table, tmp_path):
    family, scores = random_family("qwen2_5_vl"), torch.tensor(json.loads(Path(table).read_text())["random-qwen"])
    path = save(scores[:, [2, 0, 1, 4, 5, 3]], "random-qwen", tmp_path / "permuted.json")
    plain = SparseMM(table=table).scores(family)
    torch.testing.assert_close(SparseMM(table=str(path)).scores(family), plain)
    path = save(scores[:, [3, 4, 5, 0, 1, 2]], "random-qwen", path)
    assert not torch.allclose(SparseMM(table=str(path)).scores(family), plain)


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_shipped_tables_fit_the_shipped_models_and_sum_to_one(name):
    scores = SparseMM().scores(elvi.load(name, device="cpu"))
    assert scores.sum() == pytest.approx(1, abs=1e-4)
    assert scores.max() > 3 * scores.mean()


def refusal(technique, kind="qwen2_5_vl"):
    with pytest.raises(FitError) as refused:
        Plan(technique).check(random_family(kind))
    return str(refused.value)


def test_a_model_without_a_table_is_refused_and_told_what_to_do():
    text = refusal(SparseMM())
    assert "head_scores.json holds head scores of tiny-llava, tiny-qwen only" in text
    assert "elvi search sparsemm --model random-qwen" in text


def test_a_table_of_another_model_or_another_shape_is_refused(tmp_path):
    path = save(torch.ones(3, 6), "random-llava", tmp_path / "table.json")
    assert "holds head scores of random-llava only" in refusal(SparseMM(table=str(path)))
    save(torch.ones(4, 6), "random-qwen", path)
    assert "has 3 x 6 heads, but table.json holds 4 x 6 scores" in refusal(SparseMM(table=str(path)))


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"random-qwen": [[1, 2], [3]]}', '{"random-qwen": [[null]]}', '{"random-qwen": [[-1.0]]}']
)
def test_what_is_no_table_is_refused(text, tmp_path):
    path = tmp_path / "table.json"
    assert "holds no such table" in refusal(SparseMM(table=str(path)))
    path.write_text(text)
    assert "holds no such table" in refusal(SparseMM(table=str(path)))


def test_the_command_line_refuses_a_strange_table_in_one_sentence(capsys):
    assert cli.main(["run", f"sparsemm:table={FOUND.parent}", "--sample", "10000"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"window": 0}, {"kernel": 4}, {"floor": 1.5}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        SparseMM(**fields)
