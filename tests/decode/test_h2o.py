"""H2O against a full cache of which plain loops over the eager attention matrix say what is left."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, held, prefilled, stepwise, view_of
from support import clip_for

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.run import Run
from elvi.core.store import LayerStore
from elvi.core.views import LayerView
from elvi.decode.h2o import H2O, survivors
from elvi.decode.streamingllm import StreamingLLM
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


@dataclass(frozen=True)
class Loops:
    """The oracle: the cache stays whole; per layer and head a list of rows that are left, and what each received."""

    capacity: int
    recent: int
    left: dict = field(default_factory=dict)
    score: dict = field(default_factory=dict)
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def start(self, layer, weights, groups):
        """weights [Hq, N, N] of the prompt."""
        for head in range(len(weights) // groups):
            total = weights[head * groups : (head + 1) * groups].mean(0).sum(0)
            self.score[layer, head] = total.tolist()
            self.left[layer, head] = self.cut(layer, head, list(range(len(total))))

    def cut(self, layer, head, rows):
        heavy, score = self.capacity - self.recent, self.score[layer, head]
        old = sorted(rows[: -self.recent], key=lambda row: (-score[row], row))
        return sorted(old[:heavy]) + rows[-self.recent :]

    def attend(self, view):
        heads, groups = len(view.keys), len(view.query) // len(view.keys)
        reads = torch.zeros(len(view.query), 1, view.keys.shape[1], dtype=torch.bool)
        for head in range(heads):
            rows = [*self.left[view.layer, head], int(view.query_row)]
            self.score[view.layer, head].append(0.0)
            for query in range(head * groups, (head + 1) * groups):
                reads[query, 0, rows] = True
                weights = (view.keys[head, rows] @ view.query[query, 0] * view.scaling).softmax(0)
                for row, weight in zip(rows, weights.tolist()):
                    self.score[view.layer, head][row] += weight / groups
            self.left[view.layer, head] = self.cut(view.layer, head, rows)
        return reads


@pytest.mark.parametrize(("kind", "ratio", "share"), [("qwen2_5_vl", 0.3, 0.5), ("llava", 0.1, 0.5), ("llava", 0.2, 0)])
@torch.inference_mode()
def test_decoding_equals_loops_over_a_full_cache(kind, ratio, share):
    run = prefilled(H2O(ratio, share), kind=kind)
    total = len(run.layout)
    capacity = int(ratio * total + 0.5)
    oracle = Loops(capacity, max(1, int(capacity * share + 0.5)))
    full = prefilled(oracle, kind=kind)
    for layer, weights in enumerate(eager_attention(run, kind)):
        oracle.start(layer, weights, len(weights) // len(run.store.layers[0].row))
        assert run.store.layers[layer].row.tolist() == [oracle.left[layer, head] for head in range(2)]
        scores = run.memory[id(run.plan.techniques[0]), layer]["score"]
        torch.testing.assert_close(
            scores, torch.tensor([oracle.score[layer, h] for h in range(2)]), atol=1e-4, rtol=1e-4
        )
    for token in TOKENS:
        torch.testing.assert_close(stepwise(run, [token]), stepwise(full, [token]), atol=1e-4, rtol=1e-4)
        assert run.store.lengths == [capacity] * 3
        left = [[oracle.left[layer, head] for head in range(2)] for layer in range(3)]
        assert [layer.row.tolist() for layer in run.store.layers] == left


@torch.inference_mode()
def test_the_whole_prompt_as_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(H2O(1.0))), stepwise(prefilled()))


@torch.inference_mode()
def test_without_heavy_hitters_it_is_window_attention():
    run = prefilled(H2O(0.1, recent_share=1.0))
    window = prefilled(StreamingLLM(num_sinks=0, recent=run.store.lengths[0] + 1))
    torch.testing.assert_close(stepwise(run), stepwise(window), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.3])
@torch.inference_mode()
def test_a_draft_gives_the_logits_and_the_cache_of_single_steps(ratio):
    single, drafted = prefilled(H2O(ratio)), prefilled(H2O(ratio))
    first, *rest = TOKENS
    logits = verify(drafted, first, Draft.chain(rest))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)
    drafted.commit()
    assert all(torch.equal(one, two) for a, b in zip(held(drafted), held(single)) for one, two in zip(a, b))


@torch.inference_mode()
def test_branches_of_a_draft_do_not_evict_for_each_other():
    tree = Draft([9, 8, 7, 6, 5, 4], [-1, -1, 1, 1, 3, 4])  # branches 9 | 8 -> 7 | 8 -> 6 -> 5 -> 4
    single, drafted = prefilled(H2O(0.05)), prefilled(H2O(0.05))
    logits = verify(drafted, 10, tree)
    path = [0, 2, 4, 5, 6]
    torch.testing.assert_close(logits[path], stepwise(single, [10, 8, 6, 5, 4]), atol=1e-4, rtol=1e-4)
    drafted.commit(path)
    torch.testing.assert_close(stepwise(drafted, TOKENS), stepwise(single, TOKENS), atol=1e-4, rtol=1e-4)


def of_layers(run: Run) -> list[dict]:
    """What a run's technique remembers of each layer."""
    return [memory for (_, layer), memory in run.memory.items() if layer >= 0]


@torch.inference_mode()
def test_a_rejected_draft_leaves_neither_rows_nor_scores():
    single, drafted = prefilled(H2O(0.1)), prefilled(H2O(0.1))
    verify(drafted, TOKENS[0], Draft.chain([1, 2, 3, 4, 5, 6, 7]))
    drafted.commit([0])
    stepwise(single, TOKENS[:1])
    for one, two in zip(of_layers(drafted), of_layers(single)):
        torch.testing.assert_close(one["score"], two["score"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stepwise(drafted, TOKENS[1:]), stepwise(single, TOKENS[1:]), atol=1e-4, rtol=1e-4)


def decoded(technique, prompt, later):
    """Rows of one head that are left after each key that follows a prompt of keys [n, d]; all queries are along e_0."""
    query = torch.eye(prompt.shape[1])[:1] * prompt.shape[1] ** 0.5
    first = view_of(prompt[None], query.expand(1, len(prompt), -1))
    memory, layout, store = {}, first.layout, LayerStore()
    store.write(prompt[None], prompt[None], torch.arange(len(prompt)))
    store.commit()
    view = LayerView(0, store, first.query, first.query_row, first.scaling, layout, memory=memory)
    store.gather(technique.keep([view])[0])
    for row, key in enumerate(later, start=len(prompt)):
        store.write(key[None, None], key[None, None], torch.tensor([row]))
        store.commit()
        step = (query[None], torch.tensor([row]), first.scaling, layout)
        store.gather(technique.keep([LayerView(0, store, *step, phase="answer", memory=memory)])[0])
        yield store.row[0].tolist()


def test_a_heavy_hitter_survives_a_hundred_steps():
    prompt, later = torch.zeros(20, 4), torch.zeros(100, 4)
    prompt[7, 0] = 3.0
    assert all(7 in rows and len(rows) == 4 for rows in decoded(H2O(0.2), prompt, later))


@pytest.mark.parametrize(("strength", "enters"), [(6.0, True), (0.5, False)])
def test_a_late_row_stays_only_if_it_has_collected_more_than_the_weakest(strength, enters):
    prompt, later = torch.zeros(20, 4), torch.zeros(30, 4)
    prompt[0, 0] = 2.0
    later[10, 0] = strength
    *_, last = decoded(H2O(0.2), prompt, later)
    assert (30 in last) == enters
    assert 0 in last
    assert last[-2:] == [48, 49]


def test_equal_scores_keep_the_earliest_and_what_is_not_held_never_survives(device):
    stays = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1]], dtype=torch.bool, device=device)
    assert survivors(torch.ones(1, 8, device=device), stays, 2, 1)[0].nonzero()[:, 0].tolist() == [1, 2, 7]
    assert torch.equal(survivors(torch.zeros(1, 8, device=device), stays, 5, 1), stays)


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"recent_share": -0.1}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        H2O(**fields)
