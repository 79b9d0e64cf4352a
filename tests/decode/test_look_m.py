"""LOOK-M against the eager attention matrix, plain loops, and masking."""

import pytest
import torch
from kvsupport import Masked, held, prefilled, stepwise, view_of
from support import clip_for

from elvi.decode.look_m import LookM
from elvi.errors import BudgetError


def eager_columns(run, kind):
    """Column sums [H, N] of every layer's attention, as the model's own eager kernel computes it."""
    family = run.family
    family.model.set_attn_implementation({"text_config": "eager"})
    try:
        inputs = family.inputs(family.steps(clip_for(kind)), run.question)
        attentions = family.model(**inputs, output_attentions=True).attentions
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"})
    heads = family.config.num_key_value_heads
    return [layer[0].sum(1).view(heads, -1, layer.shape[-1]).mean(1) for layer in attentions]


def by_loops(score, visual, important, recent):
    """Kept rows of one head: the recent ones, and of the others text before pictures, each by score."""
    earlier = range(len(score) - recent)
    ranked = sorted(earlier, key=lambda row: (visual[row], -score[row], row))
    return sorted(ranked[:important]) + list(range(len(score) - recent, len(score)))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_kept_rows_are_those_of_the_paper_from_the_eager_matrix(kind):
    run = prefilled(LookM(keep_ratio=0.4, recent_share=0.25), kind=kind)
    count = int(0.4 * len(run.layout) + 0.5)
    recent = int(count / 4 + 0.5)
    for rows, columns in zip(held(run), eager_columns(run, kind)):
        expected = [by_loops(s.tolist(), run.layout.visual.tolist(), count - recent, recent) for s in columns]
        assert [row.tolist() for row in rows] == expected


@torch.inference_mode()
def test_without_merging_decoding_equals_the_full_cache_with_the_evicted_rows_masked():
    run = prefilled(LookM(keep_ratio=0.3, merging="none"))
    full = prefilled(Masked(tuple(held(run))))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_merging_changes_what_rows_hold_but_not_which_rows_stay():
    run, dropped, full = prefilled(LookM()), prefilled(LookM(merging="none")), prefilled()
    for layer, bare, whole in zip(run.store.layers, dropped.store.layers, full.store.layers):
        assert torch.equal(layer.row, bare.row)
        keys, values = whole.read()
        kept = layer.row[0].tolist()
        unit = torch.nn.functional.normalize(keys[0], dim=-1)
        goes = [kept[int((unit[row] @ unit[kept].T).argmax())] for row in range(keys.shape[1])]
        for place, row in enumerate(kept):
            given = [(values[0, e] + values[0, row]) / 2 for e, c in enumerate(goes) if c == row and e not in kept]
            expected = torch.stack([values[0, row], *given]).mean(0)
            torch.testing.assert_close(layer.read()[1][0, place], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(LookM(keep_ratio=1.0))), stepwise(prefilled()))


@torch.inference_mode()
def test_text_alone_is_not_compressed():
    assert torch.equal(stepwise(prefilled(LookM(), kind="llama")), stepwise(prefilled(kind="llama")))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.9])
@pytest.mark.parametrize("merging", ["none", "pivot"])
@torch.inference_mode()
def test_bytes_are_budget_by_layers_heads_width_and_both_halves(ratio, merging):
    run = prefilled(LookM(keep_ratio=ratio, merging=merging))
    count = int(ratio * len(run.layout) + 0.5)
    assert run.store.lengths == [count] * run.family.num_layers
    assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4


@torch.inference_mode()
def test_all_text_and_the_recent_rows_stay_while_the_budget_allows_it():
    run = prefilled(LookM(keep_ratio=0.4))
    text = set(run.layout.row[~run.layout.visual].tolist())
    recent = int(int(0.4 * len(run.layout) + 0.5) / 2 + 0.5)
    assert len(text) < recent
    for rows in (row for layer in held(run) for row in layer):
        assert text | set(run.layout.row[-recent:].tolist()) <= set(rows.tolist())
        assert (rows.diff() > 0).all()


def scene(device, visual, *, heads=2, dtype=torch.float32):
    """A view of random keys and queries of a whole prompt; visual: one character a row, v or t."""
    generator = torch.Generator().manual_seed(0)
    count = len(visual)
    keys, query = (torch.randn(n, count, 8, generator=generator).to(device, dtype) for n in (heads, 2 * heads))
    return view_of(keys, query, visual=torch.tensor([kind == "v" for kind in visual], device=device))


@pytest.mark.parametrize(("strict", "kept"), [(True, 6), (False, 14)])
def test_text_is_evicted_only_under_a_strict_budget(strict, kept, device):
    view = scene(device, "t" * 10 + "v" * 46 + "tttt")
    technique = LookM(keep_ratio=0.1, recent_share=0.5, merging="none", strict_budget=strict)
    (slots,) = technique.keep([view])
    assert slots.shape == (2, kept)
    assert strict or slots.tolist() == [[*range(10), 56, 57, 58, 59]] * 2


def test_a_budget_beyond_the_text_adds_the_pictures_rows_that_are_attended_to_most(device):
    view = scene(device, "t" * 4 + "v" * 52 + "tttt")
    (slots,) = LookM(keep_ratio=0.2, recent_share=0.5, merging="none").keep([view])
    columns = view.attention().sum(1).view(2, 2, 60).mean(1)[:, 4:54]
    assert slots[:, :4].tolist() == [[0, 1, 2, 3]] * 2
    assert slots[:, 4:6].tolist() == [sorted((4 + row.topk(2).indices).tolist()) for row in columns]


def test_a_prompt_of_pictures_alone_is_ranked_by_score(device):
    view = scene(device, "v" * 30)
    (slots,) = LookM(keep_ratio=0.2, recent_share=0.0, merging="none").keep([view])
    columns = view.attention().sum(1).view(2, 2, 30).mean(1)
    assert slots.tolist() == [sorted(row.topk(6).indices.tolist()) for row in columns]


def test_half_precision_ranks_pictures_apart(device):
    """A penalty of 65516 would make all visual scores equal and keep the first ones."""
    single, half = (scene(device, "v" * 100, dtype=dtype) for dtype in (torch.float32, torch.float16))
    technique = LookM(keep_ratio=0.2, recent_share=0.0, merging="none")
    (exact,), (rounded,) = technique.keep([single]), technique.keep([half])
    assert len(set(exact[0].tolist()) & set(rounded[0].tolist())) >= 19
    assert exact[0].tolist() != list(range(20))


@pytest.mark.parametrize(
    "fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"recent_share": 2.0}, {"merging": "mean"}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        LookM(**fields)
