"""HybridKV against loops over the eager attention matrix, and against a full cache behind the mask of what is read."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from kvsupport import TOKENS, held, prefilled, stepwise, view_of
from support import clip_for, noise_clip, random_family

import elvi
from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.plan import Plan
from elvi.core.rows import PAD
from elvi.decode.hybridkv import HybridKV
from elvi.errors import BudgetError, FitError

MIXED = {"theta": 0.42, "keep_ratio": 0.3}  # some heads of the random models are static then, and some are not


class Watch:
    """Keeps everything and remembers the views."""

    needs = breaks = frozenset()
    lossless, rolling, window = True, False, 32

    def keep(self, views):
        self.views = [replace(view) for view in views]
        return [None] * len(views)


@cache
def seen(kind="qwen2_5_vl"):
    watch = Watch()
    with torch.inference_mode():
        prefilled(watch, kind=kind)
    return watch.views


@cache
def eager_scores(kind):
    """What the question pays every row, [L, H, N], from the weights of the model's own eager kernel."""
    run = prefilled(kind=kind)
    family, clip = run.family, clip_for(kind)
    setting = (lambda name: name) if kind == "llama" else (lambda name: {"text_config": name})
    family.model.set_attn_implementation(setting("eager"))
    try:
        inputs = family.inputs(family.steps(clip) if clip else None, run.question)
        weights = family.model(**inputs, output_attentions=True).attentions
    finally:
        family.model.set_attn_implementation(setting("elvi"))
    visual = run.layout.visual.nonzero()[:, 0].tolist()
    asking = min(32, max(8, len(run.layout) - (visual[-1] + 1 if visual else 0)))
    heads = len(run.store.layers[0].row)
    scores = [layer[0, :, -asking:].mean(1).view(heads, -1, len(run.layout)).mean(1) for layer in weights]
    return torch.stack(scores), asking, run.layout


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
@torch.inference_mode()
def test_sparsity_is_that_of_the_eager_matrix(kind):
    scores, _, layout = eager_scores(kind)
    most = [sorted(row, reverse=True) for row in scores.flatten(0, 1).tolist()]
    mass = [sum(row[: max(1, int(0.2 * len(layout) + 0.5))]) for row in most]
    fewest = [next(n for n in range(1, len(row) + 1) if sum(row[:n]) >= 0.8 * sum(row)) for row in most]
    found = HybridKV(0.2).sparsity(seen(kind))
    torch.testing.assert_close(found.flatten().tolist(), mass, atol=1e-4, rtol=1e-4)
    found = HybridKV(score="nucleus", nucleus=0.8).sparsity(seen(kind))
    assert found.flatten().tolist() == pytest.approx([1 - n / len(layout) for n in fewest])


def pruned(score, visual, count, asking, kernel, text_prior):
    """Rows that a static head keeps: the window, the text by attention, the rest by pooled attention."""
    total = len(score)
    first = total - asking
    clean = score[:first] + [0.0] * asking
    reach = kernel // 2
    smooth = [sum(clean[max(0, j - reach) : j + reach + 1]) / kernel for j in range(total)]

    def place(j):
        if j >= first:
            return 0, -j
        if text_prior and not visual[j]:
            return 1, -score[j]
        return 2, -smooth[j]

    return sorted(sorted(range(total), key=lambda j: (*place(j), j))[:count])


@pytest.mark.parametrize("text_prior", [True, False])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.6])
@torch.inference_mode()
def test_static_heads_keep_what_loops_over_the_eager_matrix_keep(ratio, kind, text_prior):
    run = prefilled(HybridKV(ratio, theta=0.0, kernel=3, floor=4, text_prior=text_prior), kind=kind)
    scores, asking, layout = eager_scores(kind)
    for layer, score in zip(held(run), scores.tolist()):
        for row, paid in zip(layer, score):
            kept = row[row != PAD].tolist()
            assert kept == pruned(paid, layout.visual.tolist(), len(kept), asking, 3, text_prior)


@torch.inference_mode()
def test_theta_zero_is_pure_pruning_and_theta_above_one_pure_retrieval():
    pruning, fetching = (prefilled(HybridKV(0.4, theta=theta)) for theta in (0.0, 1.1))
    heads, total = len(pruning.store.layers) * 2, len(pruning.layout)
    rows = sum(sum(layer.rows.lengths) for layer in pruning.store.layers)
    assert rows == int(0.4 * heads * total + 0.5)
    assert pruning.store.far_bytes == 0
    assert [layer.far.lengths for layer in fetching.store.layers] == [[total // 16 * 16] * 2] * 3
    assert [layer.rows.lengths for layer in fetching.store.layers] == [[total % 16] * 2] * 3
    assert all(map(all, HybridKV(0.4, theta=0.0).head_map(seen())))
    assert not any(map(any, HybridKV(0.4, theta=1.1).head_map(seen())))


@pytest.mark.parametrize("fields", [{"theta": 1.1}, MIXED])
@torch.inference_mode()
def test_fetched_and_packed_rows_come_from_the_prompt_without_loss(fields):
    plain = prefilled()
    for layer, whole in zip(prefilled(HybridKV(**fields)).store.layers, plain.store.layers):
        for head in range(2):
            parts = [(layer.rows, head), (layer.far, head)] if layer.far is not None else [(layer.rows, head)]
            for rows, at in parts:
                keys, values, numbers = (part[at] for part in rows.parts())
                assert torch.equal(keys, whole.read()[0][head, numbers])
                assert torch.equal(values, whole.read()[1][head, numbers])


@dataclass(frozen=True)
class Shuffled(HybridKV):
    """Fetches what HybridKV fetches, chunks in another order for every row."""

    def fetch(self, view):
        fetched = super().fetch(view)
        return replace(fetched, slots=[self._mixed(slots) for slots in fetched.slots])

    def _mixed(self, slots):
        chunks = slots.unflatten(1, (-1, self.chunk)) if slots.shape[1] else slots[..., None]
        return chunks[:, torch.randperm(chunks.shape[1])].flatten(1)


ALL = {"keep_ratio": 0.99, "charge": False, "chunk": 8, "coefficient": 1.0, "floor": 0}


@pytest.mark.parametrize("technique", [HybridKV(theta=1.1, **ALL), Shuffled(theta=1.1, **ALL)])
@torch.inference_mode()
def test_all_chunks_in_any_order_are_the_full_cache(technique):
    run = prefilled(technique)
    assert len(run.layout) % 8 > 0.01 * len(run.layout)  # so that the budget has all whole chunks
    assert all(len(slots[0]) == len(run.layout) // 8 * 8 for slots in fetched_by(run, technique))
    torch.testing.assert_close(stepwise(run), stepwise(prefilled()), atol=1e-5, rtol=1e-4)


def fetched_by(run, technique):
    """Slots [Q, m] of every layer and head that a random query fetches."""
    found = []
    for layer in range(len(run.store.layers)):
        query = torch.randn(6, 1, run.family.head_dim, generator=torch.Generator().manual_seed(layer))
        found += technique.fetch(run.view(technique, layer, query, torch.tensor([len(run.layout)]))).slots
    return found


@torch.inference_mode()
def test_the_order_of_chunks_does_not_matter():
    plain, mixed = (kind(**MIXED, chunk=4) for kind in (HybridKV, Shuffled))
    torch.testing.assert_close(stepwise(prefilled(plain)), stepwise(prefilled(mixed)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("theta", [0.0, 0.42, 1.1])
@torch.inference_mode()
def test_full_budget_is_bitwise_the_full_cache_whatever_the_heads_are(theta):
    assert torch.equal(stepwise(prefilled(HybridKV(1.0, theta=theta))), stepwise(prefilled()))


@dataclass(frozen=True)
class MaskedChunks:
    """The oracle: a full cache, of which each row may read what `rows` says, or the best chunks by plain loops."""

    rows: tuple  # of every layer and head: the rows a static head keeps, or (rows always read, chunks to choose)
    chunk: int
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def attend(self, view):
        groups, total = len(view.query) // len(view.keys), len(view.layout)
        reads = torch.zeros(*view.query.shape[:2], view.keys.shape[1], dtype=torch.bool)
        reads[:, :, total:] = True
        for head, (kept, count) in enumerate(self.rows[view.layer]):
            own = slice(head * groups, (head + 1) * groups)
            reads[own, :, kept] = True
            for row in range(view.query.shape[1]):
                for chunk in self.best(view.query[own, row], view.keys[head, :total], count):
                    reads[own, row, chunk * self.chunk : (chunk + 1) * self.chunk] = True
        return reads

    def best(self, query, keys, count):
        score = [
            max(float(one @ keys[start : start + self.chunk].mean(0)) for one in query)
            for start in range(0, len(keys) // self.chunk * self.chunk, self.chunk)
        ]
        return sorted(range(len(score)), key=lambda j: (-score[j], j))[:count]


@pytest.mark.parametrize("fields", [MIXED, {"theta": 1.1, "keep_ratio": 0.25}, {"theta": 0.0, "keep_ratio": 0.1}])
@torch.inference_mode()
def test_decoding_equals_a_full_cache_of_which_each_row_reads_its_own_chunks(fields):
    technique = HybridKV(**fields, chunk=4)
    run = prefilled(technique)
    rows, kinds = [], set()
    for layer, store in enumerate(run.store.layers):
        counts = [count for count, _ in run.view(technique, layer, None, None).memory.get("chunks", [(0, ())] * 2)]
        kinds |= {count > 0 for count in counts}
        rows.append([(row[row != PAD], count) for row, count in zip(store.row.clone(), counts)])
    assert kinds == {MIXED["theta"]: {True, False}, 1.1: {True}, 0.0: {False}}[fields["theta"]]
    full = prefilled(MaskedChunks(tuple(rows), 4))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", [MIXED, {"theta": 1.1, "keep_ratio": 0.25}])
@torch.inference_mode()
def test_drafted_rows_read_what_single_steps_read(fields):
    single, drafted = (prefilled(HybridKV(**fields, chunk=4)) for _ in range(2))
    tree = Draft([40, 23, 57, 8], [-1, -1, 1, 2])  # 40 and 23 after the root; 57 after 23; 8 after 57
    logits = verify(drafted, 11, tree)
    drafted.commit([0, 2, 3, 4])
    torch.testing.assert_close(logits[[0, 2, 3, 4]], stepwise(single, [11, 23, 57, 8]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stepwise(drafted, [5, 9]), stepwise(single, [5, 9]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_budgets_add_up_in_whole_chunks_between_floor_and_prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    pick = lambda *choices: choices[int(torch.randint(len(choices), (1,), generator=generator))]  # noqa: E731
    technique = HybridKV(
        keep_ratio=pick(0.01, 0.1, 0.3, 0.9),
        theta=pick(0.0, 0.3, 0.6, 1.1),
        coefficient=pick(0.5, 1.0, 1.2, 3.0),
        weight=pick("inverse", "score"),
        chunk=pick(4, 16),
        floor=pick(0, 8, 32),
        charge=pick(True, False),
    )
    sparsity = torch.rand(5, 3, generator=generator)
    length = torch.randint(3, 300, (5,), generator=generator)
    rows, fetches = technique.budgets(sparsity, length)
    static, most = sparsity >= technique.theta, length[:, None].expand(5, 3)
    total = int(technique.keep_ratio * 3 * int(length.sum()) + 0.5)
    assert rows.sum() <= total
    assert (rows <= most).all()
    assert not (fetches & static).any()
    assert (rows[fetches] > 0).all()
    assert (rows[fetches] % technique.chunk == 0).all()
    if static.all():
        assert rows.sum() == total
    if static.any():
        given = int(rows[static].sum())
        assert (
            rows[static] >= torch.minimum(most[static], torch.tensor(min(technique.floor, given // int(static.sum()))))
        ).all()
    if technique.charge:  # a mean key is half a row
        spent = (rows + most % technique.chunk + most // technique.chunk / 2)[fetches]
        assert (spent <= math.ceil((total - int(rows[static].sum())) / max(1, int((~static).sum())))).all()


def test_the_coefficient_moves_rows_from_dynamic_to_static_heads():
    sparsity, length = torch.tensor([[0.95, 0.2], [0.3, 0.97]]), torch.tensor([400, 400])
    rows = [HybridKV(coefficient=r, charge=False).budgets(sparsity, length)[0] for r in (0.5, 1.0, 1.5)]
    static = [int(each[sparsity > 0.9].sum()) for each in rows]
    dynamic = [int(each[sparsity < 0.9].sum()) for each in rows]
    assert static == [40, 80, 120]
    assert dynamic == [2 * 48, 2 * 32, 2 * 16]  # of 60, 40 and 20 rows a head


def test_less_concentrated_static_heads_get_more_rows_or_fewer():
    sparsity, length = torch.tensor([[0.5, 0.9]]), torch.tensor([200])
    inverse, score = (
        HybridKV(theta=0.0, weight=weight, floor=5).budgets(sparsity, length)[0].tolist()
        for weight in ("inverse", "score")
    )
    assert inverse == [[5 + 25, 5 + 5]]  # of 40 rows, 30 above the floor, as 0.5 to 0.1
    assert score == [[5 + 11, 5 + 19]]  # as 0.5 to 0.9


def planted(device, ask=0, needle=40, total=64):
    """Queries lie along axis `ask`; in head 0 the key `needle` lies along axis 0; all other keys are zero."""
    keys = torch.zeros(2, total, 4, device=device)
    keys[0, needle, 0] = 60.0
    query = torch.zeros(4, 16, 4, device=device)
    query[..., ask] = 1.0
    return view_of(keys, query, visual=torch.arange(total) < total - 16)


@pytest.mark.parametrize("score", ["mass", "nucleus"])
def test_a_head_that_looks_at_one_row_is_static_and_a_uniform_one_dynamic(score, device):
    technique = HybridKV(score=score)
    assert technique.head_map([planted(device)]) == [[1, 0]]
    low, high = technique.sparsity([planted(device)])[0].flip(0).tolist()
    assert high > 0.98
    assert low < 0.2


def test_another_question_makes_another_head_of_it(device):
    assert HybridKV().head_map([planted(device, ask=0)]) == [[1, 0]]
    assert HybridKV().head_map([planted(device, ask=1)]) == [[0, 0]]


def test_sparsity_at_theta_is_static():
    _, fetches = HybridKV(0.5, theta=0.75).budgets(torch.tensor([[0.75, 0.7]]), torch.tensor([640]))
    assert fetches.tolist() == [[False, True]]


def test_a_needle_is_fetched_by_the_row_that_asks_for_it_and_lost_to_pruning(device):
    technique = HybridKV(0.5, chunk=4, theta=1.1)
    view = planted(device, ask=1)  # the question looks elsewhere
    pruned_too = replace(technique, theta=0.0).keep([view])[0]
    (kept,) = technique.keep([view])
    view.store.gather(kept)
    query = torch.zeros(4, 2, 4, device=device)
    query[:, 1, 0] = 1.0  # the second row asks for the needle, the first for nothing
    slots = technique.fetch(replace(view, query=query)).slots
    assert slots[0].shape == (2, 24)  # of 32 rows a head, 8 pay for 16 mean keys
    assert 40 in slots[0][1]
    assert slots[0][0].tolist() == slots[1][0].tolist() == [*range(24)]  # all alike: the first chunks
    assert all(40 not in slots for slots in pruned_too)


@torch.inference_mode()
def test_text_survives_in_static_heads_that_have_room_for_it():
    run = prefilled(HybridKV(0.5, theta=0.0))
    text = set(run.layout.row[~run.layout.visual].tolist())
    rows = [set(row[row != PAD].tolist()) for layer in held(run) for row in layer]
    assert all(text <= row for row in rows if len(row) >= len(text))
    assert any(len(row) >= len(text) for row in rows)


@pytest.mark.parametrize("fields", [{"theta": 1.1}, {"theta": 0.0}, MIXED])
@torch.inference_mode()
def test_a_step_reads_no_more_of_the_prompt_than_the_budget(fields):
    technique = replace(HybridKV(0.25), **fields)
    run = prefilled(technique, seconds=16)
    heads, row = len(run.store.layers) * 2, 2 * run.family.head_dim * 4
    stepwise(run, TOKENS[:1])
    assert run.meter.kv_read_bytes <= technique.keep_ratio * heads * len(run.layout) * row + heads * row
    assert run.meter.kv_read_bytes >= 0.7 * technique.keep_ratio * heads * len(run.layout) * row


@pytest.mark.parametrize("kind", ["mean", "envelope"])
@torch.inference_mode()
def test_the_bytes_of_a_step_are_those_of_near_rows_fetched_rows_and_chunk_keys(kind):
    technique = HybridKV(0.5, theta=1.1, chunk_key=kind)
    run = prefilled(technique)
    total, width = len(run.layout), run.family.head_dim * 4
    keys = (1 if kind == "mean" else 2) * (total // 16) * width
    count = (int(0.5 * total) - total % 16 - math.ceil(keys / (2 * width))) // 16
    before = sum(layer.held_bytes for layer in run.store.layers)
    assert before == 6 * (total % 16) * 2 * width
    stepwise(run, TOKENS[:1])
    assert run.meter.kv_read_bytes == before + 6 * (2 * width + count * 16 * 2 * width + keys)
    assert run.store.far_bytes == 6 * (total // 16 * 16) * 2 * width


def read_bytes(family, clip, technique=None):
    plan = Plan(technique) if technique is not None else Plan()
    return elvi.generate(family, clip, "what is shown ?", plan=plan, max_new_tokens=12, ignore_eos=True).report


@pytest.mark.parametrize("theta", [0.0, 0.15, 0.9, 1.1])
def test_at_a_tenth_a_step_reads_an_eighth_of_the_full_caches_bytes_or_less(theta):
    family, clip = random_family("qwen2_5_vl"), noise_clip(32)
    full, hybrid = read_bytes(family, clip), read_bytes(family, clip, HybridKV(0.1, theta=theta))
    assert full.kv_far_bytes == 0
    assert hybrid.kv_bytes + hybrid.kv_far_bytes <= full.kv_bytes
    assert hybrid.kv_read_bytes <= full.kv_read_bytes / 7.9


def prompts():
    return {
        "text alone": {"kind": "llama"},
        "short": {"kind": "llama", "question": "x"},
        "pictures": {"kind": "llava", "still": True, "seconds": 2},
        "tiles": {"kind": "llava_onevision", "still": True, "seconds": 1},
    }


@pytest.mark.parametrize("fields", [{}, {"theta": 0.0}, {"theta": 1.1, "chunk": 1000}, {"window": 1, "chunk": 1}])
@pytest.mark.parametrize("prompt", prompts())
@torch.inference_mode()
def test_prompts_of_any_kind_keep_to_the_budget(prompt, fields):
    technique = replace(HybridKV(0.2), **fields)
    run = prefilled(technique, **prompts()[prompt])
    heads, row = len(run.store.layers) * 2, 2 * run.family.head_dim * 4
    assert stepwise(run, TOKENS[:1]).isfinite().all()
    assert run.meter.kv_read_bytes <= int(0.2 * heads * len(run.layout) + 0.5) * row + heads * row


def test_a_prompt_without_text_after_the_picture_is_observed_by_its_last_rows(device):
    view = planted(device)
    view = replace(view, layout=replace(view.layout, cell=torch.zeros(64, 3, dtype=torch.long, device=device)))
    (kept,) = HybridKV(0.25, theta=0.0).keep([view])
    assert all(set(range(56, 64)) <= set(slots.tolist()) for slots in kept)
    assert 40 in kept[0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio=0.0"),
        ({"keep_ratio": 1.01}, "keep_ratio=1.01"),
        ({"theta": -0.1}, "theta"),
        ({"score": "entropy"}, "score=entropy"),
        ({"nucleus": 0.0}, "nucleus"),
        ({"coefficient": 0.0}, "coefficient"),
        ({"weight": "both"}, "weight=both"),
        ({"window": 0}, "window"),
        ({"floor": -1}, "floor"),
        ({"kernel": 4}, "kernel=4"),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk_key": "median"}, "chunk_key=median"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(fields: dict[str, Any], named):
    with pytest.raises(BudgetError, match=named) as error:
        HybridKV(**fields)
    assert "\n" not in str(error.value)


def test_heads_that_do_not_share_keys_evenly_are_refused(monkeypatch):
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(family.config, "num_key_value_heads", 4)
    with pytest.raises(FitError, match="6 query heads do not share 4 key-value heads"):
        Plan(HybridKV()).check(family)
