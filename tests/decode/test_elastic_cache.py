"""Elastic Cache against the eager attention matrix, plain loops, and lists from which one row goes per step."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, held, prefilled, stepwise, view_of
from support import clip_for

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.store import Kept
from elvi.decode.elastic_cache import ElasticCache, merged
from elvi.errors import BudgetError


def eager_attention(run, kind):
    """Attention weights [Hq, N, N] of every layer, as the model's own eager kernel computes them."""
    family = run.family
    family.model.set_attn_implementation({"text_config": "eager"})
    try:
        out = family.model(**family.inputs(family.steps(clip_for(kind)), run.question), output_attentions=True)
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"})
    return [layer[0] for layer in out.attentions]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_the_prompt_keeps_its_ends_and_the_rows_of_most_attention_and_merges_the_others(kind):
    run, full = prefilled(ElasticCache(0.3), kind=kind), prefilled(kind=kind)
    total = len(run.layout)
    for layer, whole, weights in zip(run.store.layers, full.store.layers, eager_attention(run, kind)):
        score = weights.sum(1).mean(0).tolist()
        middle = sorted(range(4, total - 1), key=lambda j: (-score[j], j))[: int(0.3 * total + 0.5) - 5]
        kept = [0, 1, 2, 3, *sorted(middle), total - 1]
        assert layer.row.tolist() == [kept, kept]
        home = [min(kept, key=lambda i: (abs(i - j), i)) for j in range(total)]
        for ours, theirs in zip(layer.read(), whole.read()):
            expected = [theirs[:, [j for j in range(total) if home[j] == i]].mean(1) for i in kept]
            torch.testing.assert_close(ours, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class OnePerStep:
    """The oracle: the same compressed prompt, then lists of rows, cut by one at a fixed index after a step."""

    technique: ElasticCache
    rows: dict
    needs = breaks = frozenset()
    lossless = rolling = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    @property
    def window(self):
        return self.technique.window

    def keep(self, views):
        kept = self.technique.keep(views)
        for view, one in zip(views, kept):
            self.rows[view.layer] = [int(view.row[0, slot]) for slot in one.slots[0]]
            self.rows[view.layer, "place"] = max(len(one.slots[0]) + self.technique.distance, 4)
        return kept

    def attend(self, view):
        rows, row = self.rows[view.layer], int(view.query_row)
        rows.append(row)
        reads = torch.isin(view.row[0], torch.tensor(rows))[None, None]
        if len(rows) > int(self.technique.keep_ratio * (row + 1) + 0.5):
            del rows[self.rows[view.layer, "place"]]
        return reads


@pytest.mark.parametrize(("ratio", "distance"), [(0.3, -25), (0.3, -3), (0.7, -25), (0.3, 0), (0.06, -25)])
@torch.inference_mode()
def test_decoding_drops_one_row_at_a_fixed_place_whenever_the_cache_exceeds_its_share(ratio, distance):
    technique = ElasticCache(ratio, distance=distance)
    oracle = OnePerStep(technique, {})
    run, full = prefilled(technique), prefilled(oracle)
    for token in [*TOKENS, *TOKENS]:
        torch.testing.assert_close(stepwise(run, [token]), stepwise(full, [token]), atol=1e-4, rtol=1e-4)
        assert [layer.row[0].tolist() for layer in run.store.layers] == [oracle.rows[layer] for layer in range(3)]
        assert run.store.lengths == [int(ratio * run.next_row + 0.5)] * 3


@torch.inference_mode()
def test_the_first_part_of_the_instruction_and_the_newest_rows_stay():
    run = prefilled(ElasticCache(0.3, distance=-5))
    before = held(run)
    for _ in range(4):
        stepwise(run)
    total = len(run.layout)
    for old, new in zip(before, held(run)):
        fixed = len(old[0]) - 5
        assert torch.equal(new[0][:fixed], old[0][:fixed])
        newest = len(new[0]) - fixed
        assert new[0][fixed:].tolist() == list(range(total + 4 * len(TOKENS) - newest, total + 4 * len(TOKENS)))


@torch.inference_mode()
def test_keeping_all_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(ElasticCache(1.0))), stepwise(prefilled()))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("distance", [-25, -1, 6])
@torch.inference_mode()
def test_a_draft_gives_the_logits_and_the_cache_of_single_steps(ratio, distance):
    technique = ElasticCache(ratio, distance=distance)
    single, drafted = prefilled(technique), prefilled(technique)
    for _ in range(2):
        first, *rest = TOKENS
        logits = verify(drafted, first, Draft.chain(rest))
        torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)
        drafted.commit()
        assert all(torch.equal(one, two) for a, b in zip(held(drafted), held(single)) for one, two in zip(a, b))


@torch.inference_mode()
def test_branches_and_rejected_drafts_change_nothing():
    technique = ElasticCache(0.1, distance=-2)
    single, drafted = prefilled(technique), prefilled(technique)
    logits = verify(drafted, 10, Draft([9, 8, 7, 6, 5, 4], [-1, -1, 1, 1, 3, 4]))  # 9 | 8 -> 7 | 8 -> 6 -> 5 -> 4
    path = [0, 2, 4, 5]
    torch.testing.assert_close(logits[path], stepwise(single, [10, 8, 6, 5]), atol=1e-4, rtol=1e-4)
    drafted.commit(path)
    torch.testing.assert_close(stepwise(drafted, TOKENS), stepwise(single, TOKENS), atol=1e-4, rtol=1e-4)


def test_merging_equal_rows_leaves_them_as_they_are_and_halfway_goes_to_the_earlier(device):
    part = torch.tensor([[1.0, 1.0, 5.0, 3.0, 3.0]], device=device)[..., None]
    row, kept = torch.arange(5, device=device), torch.tensor([1, 3], device=device)
    assert merged(part, row, kept)[0, :, 0].tolist() == pytest.approx([7 / 3, 3.0])
    assert merged(part, torch.tensor([0, 1, 3, 4, 5], device=device), kept)[0, :, 0].tolist() == pytest.approx(
        [1, 11 / 3]
    )


@pytest.mark.parametrize(
    ("count", "ratio", "kept"), [(3, 0.7, [0, 2]), (6, 0.01, [5]), (6, 0.5, [0, 1, 5]), (1, 0.1, [0])]
)
def test_budgets_below_the_protected_rows_keep_the_last_and_then_the_first(count, ratio, kept, device):
    keys = torch.randn(2, count, 4, generator=torch.Generator().manual_seed(0)).to(device)
    (out,) = ElasticCache(ratio).keep([view_of(keys, keys)])
    assert (list(range(count)) if out is None else out.slots[0].tolist()) == kept
    assert out is None or (isinstance(out, Kept) and torch.equal(out.slots[0], out.slots[1]))


@torch.inference_mode()
def test_bytes_follow_the_share_while_the_answer_grows():
    run = prefilled(ElasticCache(0.25))
    for token in TOKENS:
        count = int(0.25 * run.next_row + 0.5)
        assert sum(layer.held_bytes for layer in run.store.layers) == count * 3 * 2 * 32 * 2 * 4
        stepwise(run, [token])


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"num_sinks": -1}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        ElasticCache(**fields)
