"""ST3: pruning against masked dense runs and the eager matrix, annealing against loops, drafts against single steps."""

from dataclasses import dataclass, field
from math import ceil, exp
from typing import ClassVar

import pytest
import torch
from kvsupport import QUESTION, TOKENS, held, prefilled, stepwise
from support import clip_for, noise_clip, random_family

from elvi.bench.floor import twin
from elvi.core.accept import Draft
from elvi.core.generate import generate, verify
from elvi.core.plan import Plan
from elvi.decode.snapkv import SnapKV
from elvi.decode.st3 import ST3, lowest
from elvi.errors import BudgetError, FitError

PRUNE = ST3(layer=1, every=1, keep_ratio=0.5, tau=None)
ANNEAL = ST3(layer=1, keep_ratio=1.0, tau=20.0)


def eager_attention(run, kind):
    """Attention weights [Hq, N, N] of every layer, as the model's own eager kernel computes them."""
    family = run.family
    family.model.set_attn_implementation({"text_config": "eager"})
    try:
        out = family.model(**family.inputs(family.steps(clip_for(kind)), run.question), output_attentions=True)
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"})
    return [layer[0] for layer in out.attentions]


@dataclass(frozen=True)
class Unread:
    """The oracle: all tokens go through all layers, but no row reads a prompt row that is not in `rows[layer]`."""

    rows: tuple
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = True

    def attend(self, view):
        own = view.row[0] == view.query_row[:, None]  # rows that nobody reads must not read nothing
        return (own | torch.isin(view.row[0], self.rows[view.layer]) | (view.row[0] >= len(view.layout)))[None]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_pruning_equals_a_dense_run_in_which_nobody_reads_what_was_pruned(kind):
    run = prefilled(PRUNE, kind=kind)
    dense = prefilled(Unread(tuple(layer[0] for layer in held(run))), kind=kind)
    assert run.store.lengths[0] > run.store.lengths[1] > run.store.lengths[2]
    torch.testing.assert_close(stepwise(run), stepwise(dense), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_stays_first_is_what_the_last_token_attends_to_in_the_layer_before():
    run = prefilled(PRUNE)
    visual = run.layout.visual.nonzero()[:, 0].tolist()
    score = eager_attention(run, "qwen2_5_vl")[0][:, -1].mean(0)
    best = sorted(visual, key=lambda j: (-float(score[j]), j))[: (len(visual) + 1) // 2]
    text = (~run.layout.visual).nonzero()[:, 0].tolist()
    assert run.store.layers[1].row[0].tolist() == sorted([*text, *best])


@pytest.mark.parametrize(("layer", "every", "ratio", "least"), [(2, 4, 0.7, 16), (1, 1, 0.5, 10), (3, 2, 0.01, 5)])
@torch.inference_mode()
def test_visual_tokens_thin_out_with_depth_but_not_below_the_least(layer, every, ratio, least):
    plan = Plan(ST3(layer, every, ratio, least=least))
    report = generate(random_family("qwen2_5_vl", layers=7), noise_clip(), QUESTION, plan=plan, max_new_tokens=1).report
    count, expected = int(report.visual_tokens["reduced"]), []
    for index in range(7):
        if index in range(layer, 7, every):
            count = max(int(ratio * count + 0.5), min(count, least))
        expected.append(count)
    assert report.visual_tokens["prefill_mean"] == pytest.approx(sum(expected) / 7)
    assert report.visual_tokens["cache_mean"] == pytest.approx(sum(expected) / 7)


@dataclass(frozen=True)
class Loops:
    """The oracle of annealing: the cache stays whole; per layer and head the rows left and a running mean for each."""

    technique: ST3
    visual: list = field(default_factory=list)
    left: dict = field(default_factory=dict)
    mean: dict = field(default_factory=dict)
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def start(self, layer, weights, visual):
        """weights [Hq, N, N] of the prompt."""
        self.visual[:] = visual
        groups = len(weights) // 2
        for head in range(2):
            self.left[layer, head] = list(range(weights.shape[-1]))
            self.mean[layer, head] = weights[head * groups : (head + 1) * groups, -1].mean(0).tolist()

    def attend(self, view):
        groups, row, technique = len(view.query) // 2, int(view.query_row), self.technique
        written = row - len(view.layout) + 1
        count = max(min(technique.least, len(self.visual)), ceil(len(self.visual) * exp(-written / technique.tau)))
        reads = torch.zeros(len(view.query), 1, view.keys.shape[1], dtype=torch.bool)
        for head in range(2):
            rows, mean = self.left[view.layer, head], self.mean[view.layer, head]
            rows.append(row)
            asking = view.query[head * groups : (head + 1) * groups, 0]
            weights = (asking @ view.keys[head, rows].T * view.scaling).softmax(-1).mean(0).tolist()
            reads[head * groups : (head + 1) * groups, 0, rows] = True
            looked = [each for each in rows if each in self.visual]
            for each in looked:
                mean[each] = technique.beta * mean[each] + (1 - technique.beta) * weights[rows.index(each)]
            for each in sorted(looked, key=lambda each: (-mean[each], each))[count:]:
                rows.remove(each)
        return reads


@pytest.mark.parametrize(("kind", "tau", "least"), [("qwen2_5_vl", 20.0, 16), ("llava", 6.0, 16), ("llava", 2.0, 0)])
@torch.inference_mode()
def test_annealing_equals_loops_over_a_full_cache(kind, tau, least):
    technique = ST3(layer=1, keep_ratio=1.0, tau=tau, least=least)
    oracle = Loops(technique)
    run, full = prefilled(technique, kind=kind), prefilled(oracle, kind=kind)
    for layer, weights in enumerate(eager_attention(run, kind)):
        oracle.start(layer, weights, run.layout.visual.nonzero()[:, 0].tolist())
    for token in TOKENS:
        torch.testing.assert_close(stepwise(run, [token]), stepwise(full, [token]), atol=1e-4, rtol=1e-4)
        left = [[oracle.left[layer, head] for head in range(2)] for layer in range(3)]
        assert [layer.row.tolist() for layer in run.store.layers] == left


@torch.inference_mode()
def test_visual_rows_fade_by_the_schedule_down_to_the_least_and_text_stays():
    run = prefilled(ST3(layer=1, keep_ratio=0.5, tau=3.0, least=16))
    start = [int(run.layout.visual[layer.row[0]].sum()) for layer in run.store.layers]
    text = set((~run.layout.visual).nonzero()[:, 0].tolist())
    for step, token in enumerate(TOKENS, start=1):
        stepwise(run, [token])
        for first, layer in zip(start, run.store.layers):
            rows = layer.row[0][layer.row[0] < len(run.layout)]
            assert int(run.layout.visual[rows].sum()) == max(16, ceil(first * exp(-step / 3)))
            assert text <= set(rows.tolist())


@pytest.mark.parametrize("full", [ST3(layer=1, every=1, keep_ratio=1.0, tau=None), ST3(layer=1, least=1000)])
@torch.inference_mode()
def test_settings_that_drop_nothing_leave_the_logits_alone(full):
    torch.testing.assert_close(stepwise(prefilled(full)), stepwise(prefilled()), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_full_setting_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(ST3(layer=1, **ST3.full))), stepwise(prefilled()))


@pytest.mark.parametrize("others", [(), (SnapKV(keep_ratio=0.5),)], ids=["alone", "after snapkv"])
@pytest.mark.parametrize("technique", [ANNEAL, ST3(layer=1, every=1, tau=3.0, least=0)], ids=["slow", "fast"])
@torch.inference_mode()
def test_a_draft_gives_the_logits_and_the_cache_of_single_steps(technique, others):
    single, drafted = prefilled(technique, *others), prefilled(technique, *others)
    first, *rest = TOKENS
    before = single.store.lengths
    logits = verify(drafted, first, Draft.chain(rest))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)
    drafted.commit()
    assert all(torch.equal(one, two) for a, b in zip(held(drafted), held(single)) for one, two in zip(a, b))
    assert all(after < length + len(TOKENS) for after, length in zip(single.store.lengths, before))


@torch.inference_mode()
def test_branches_and_rejected_drafts_change_nothing():
    technique = ST3(layer=1, tau=3.0, least=0)
    single, drafted = prefilled(technique), prefilled(technique)
    logits = verify(drafted, 10, Draft([9, 8, 7, 6, 5, 4], [-1, -1, 1, 1, 3, 4]))  # 9 | 8 -> 7 | 8 -> 6 -> 5 -> 4
    path = [0, 2, 4, 5]
    torch.testing.assert_close(logits[path], stepwise(single, [10, 8, 6, 5]), atol=1e-4, rtol=1e-4)
    drafted.commit(path)
    torch.testing.assert_close(stepwise(drafted, TOKENS), stepwise(single, TOKENS), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_text_alone_is_left_alone():
    run, plain = prefilled(ST3(layer=1, tau=1.0), kind="llama"), prefilled(kind="llama")
    torch.testing.assert_close(stepwise(run), stepwise(plain), atol=1e-5, rtol=1e-4)
    assert run.store.lengths == plain.store.lengths


def test_of_equal_scores_the_later_go_and_only_those_asked_for(device):
    among = torch.tensor([[1, 0, 1, 1, 1]], dtype=torch.bool, device=device)
    score = torch.tensor([[0.5, 0.0, 0.1, 0.1, 0.1]], device=device)
    assert lowest(score, among, 2)[0].nonzero()[:, 0].tolist() == [3, 4]
    assert not lowest(score, among, 0).any()


def test_two_halves_have_no_random_twin():
    assert twin(ST3(), 0) is None


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"layer": 0}, {"every": 0}, {"tau": 0.0}, {"least": -1}, {"beta": 1.5}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        ST3(**fields)


def test_a_model_without_the_first_layer_is_refused():
    with pytest.raises(FitError, match="ST3 was asked to act at layer 3"):
        Plan(ST3(layer=3)).check(random_family("qwen2_5_vl"))
