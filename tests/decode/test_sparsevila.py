"""SparseVILA against eager maps and a masked full cache; what is held, and what is read."""

from functools import partial

import pytest
import torch
from kvsupport import QUESTION, TOKENS, Masked, held, prefilled, stepwise, view_of
from streamsupport import watched
from support import clip_for, noise_clip, random_family
from trained import chosen_and_random

from elvi.bench.floor import twin
from elvi.core.accept import Draft
from elvi.core.generate import generate, verify
from elvi.core.plan import Plan
from elvi.core.views import Seen
from elvi.decode.rekv import ReKV
from elvi.decode.sparsevila import SparseVILA, salience
from elvi.errors import BudgetError, FitError, PlanError

reads = partial(SparseVILA, encode_ratio=1.0)  # the decoding half alone


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
def test_a_layer_reads_the_text_and_the_visual_rows_that_the_question_attends_to(kind):
    run = prefilled(reads(0.3), kind=kind)
    visual = run.layout.visual.nonzero()[:, 0]
    text = (~run.layout.visual).nonzero()[:, 0].tolist()
    for layer, weights in zip(run.store.layers, eager_attention(run, kind)):
        paid = weights[:, int(visual[-1]) + 1 :, visual]
        score = (paid / paid.sum(-1, keepdim=True)).sum(1).mean(0).tolist()
        order = sorted(range(len(visual)), key=lambda j: (-score[j], j))[: int(0.3 * len(visual) + 0.5)]
        expected = sorted([*text, *(int(visual[j]) for j in order)])
        assert layer.row.tolist() == [expected, expected]


@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_all_other_visual_rows_masked():
    run = prefilled(reads(0.2))
    full = prefilled(Masked(tuple(held(run))))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_whole_view_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(reads(1.0))), stepwise(prefilled()))


@torch.inference_mode()
def test_nothing_of_the_prompt_is_lost_and_new_rows_join_the_view_alone():
    run, full = prefilled(reads(0.2)), prefilled()
    stepwise(run)
    for layer, whole in zip(run.store.layers, full.store.layers):
        keys, values = whole.read()
        for tier, rows in ((layer.rows, layer.rows.row), (layer.far, layer.far.row)):
            prompt = rows[0] < len(run.layout)
            assert torch.equal(tier.read()[0][:, prompt], keys[:, rows[0][prompt]])
            assert torch.equal(tier.read()[1][:, prompt], values[:, rows[0][prompt]])
        everything = sorted([*layer.row[0].tolist(), *layer.far.row[0].tolist()])
        assert everything == list(range(len(run.layout) + len(TOKENS)))
        assert layer.row[0][-len(TOKENS) :].tolist() == everything[-len(TOKENS) :]


@torch.inference_mode()
def test_the_report_tells_what_is_held_from_what_is_read():
    family, clip, options = random_family("qwen2_5_vl"), noise_clip(), {"max_new_tokens": 5, "ignore_eos": True}
    plain = generate(family, clip, QUESTION, **options).report
    report = generate(family, clip, QUESTION, plan=Plan(reads(0.25)), **options).report
    visual, row = int(report.visual_tokens["reduced"]), 3 * 2 * 32 * 2 * 4
    unread = visual - int(0.25 * visual + 0.5)
    assert report.kv_far_bytes == unread * row
    assert report.kv_bytes + report.kv_far_bytes == plain.kv_bytes
    assert report.kv_read_bytes == plain.kv_read_bytes - unread * row


@torch.inference_mode()
def test_the_next_question_chooses_among_all_rows_again():
    stream = watched(reads(0.2), 4)
    before = [layer.row.clone() for layer in stream.pieces.run.store.layers]
    views = []
    for question in ("what color is at top left ?", "how many squares are in frame 3 ?"):
        asked = stream.pieces.fork()
        asked.ask(question)
        views.append([set(layer.row[0].tolist()) for layer in asked.run.store.layers])
        for layer, whole in zip(asked.run.store.layers, before):
            assert set(whole[0].tolist()) <= set(layer.row[0].tolist()) | set(layer.far.row[0].tolist())
    assert any(second - first for first, second in zip(*views))
    assert all(torch.equal(layer.row, rows) for layer, rows in zip(stream.pieces.run.store.layers, before))


@torch.inference_mode()
def test_a_draft_gives_the_logits_of_single_steps():
    single, drafted = prefilled(reads(0.1)), prefilled(reads(0.1))
    tree = Draft([9, 8, 7, 6], [-1, -1, 1, 2])  # 9 | 8 -> 7 -> 6
    logits = verify(drafted, 10, tree)
    torch.testing.assert_close(logits[[0, 2, 3, 4]], stepwise(single, [10, 8, 7, 6]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_salience_in_pieces_is_that_of_the_whole_matrix(rows, device, monkeypatch):
    monkeypatch.setattr("elvi.decode.sparsevila.ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(*shape, generator=generator).to(device) for shape in ((6, 7, 8), (2, 20, 8)))
    whole = (query.view(2, 21, 8) @ keys.mT * 0.3).softmax(-1).sum(1).sum(0) / 6
    torch.testing.assert_close(salience(query, keys, 0.3), whole)


def test_equal_saliences_keep_as_many_as_asked_for_and_the_earliest(device):
    visual = torch.arange(20) < 12
    keys, query = torch.zeros(2, 20, 4, device=device), torch.ones(4, 8, 4, device=device)
    (kept,) = reads(0.25).keep([view_of(keys, query, visual=visual.to(device))])
    assert kept.slots.tolist() == [[0, 1, 2, *range(12, 20)]] * 2
    assert kept.far.tolist() == [list(range(3, 12))] * 2


def test_one_visual_row_stays_at_least_and_text_alone_is_left_alone(device):
    keys, query = torch.zeros(2, 20, 4, device=device), torch.ones(4, 8, 4, device=device)
    visual = (torch.arange(20) < 12).to(device)
    (kept,) = reads(0.001).keep([view_of(keys, query, visual=visual)])
    assert kept.slots[0].tolist() == [0, *range(12, 20)]
    assert SparseVILA().keep([view_of(keys, query)]) == [None]


def test_a_picture_without_a_question_after_it_is_refused(device):
    keys, query = torch.zeros(2, 20, 4, device=device), torch.ones(4, 8, 4, device=device)
    with pytest.raises(FitError, match="no text follows the last picture"):
        SparseVILA().keep([view_of(keys, query, visual=torch.ones(20, dtype=torch.bool, device=device))])


def test_two_users_of_the_second_tier_are_refused():
    with pytest.raises(PlanError, match="rows in the first tier") as error:
        Plan(SparseVILA(), ReKV()).check(random_family("qwen2_5_vl"))
    assert set(error.value.culprits) == {"SparseVILA", "ReKV"}


@pytest.mark.parametrize("fields", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"window": 0}, {"encode_ratio": 0.0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        SparseVILA(**fields)


@pytest.mark.parametrize(("kind", "layer"), [("llava", -2), ("qwen2_5_vl", -1), ("llava_onevision", -1)])
@torch.inference_mode()
def test_the_language_model_gets_what_is_most_salient_in_each_frame_whatever_is_asked(kind, layer):
    family = random_family(kind)
    encoding = family.encode(family.steps(noise_clip()), SparseVILA.tower_layers)
    tokens, tower = encoding.tokens, encoding.tower
    score = tower.cls_attention(layer) if kind == "llava" else tower.received(layer)
    expected = []
    for step in tokens.cell[:, 0].unique():
        frame = (tokens.cell[:, 0] == step).nonzero()[:, 0].tolist()
        expected += sorted(sorted(frame, key=lambda i: (-float(score[i]), i))[: int(0.3 * len(frame) + 0.5)])
    for question in (QUESTION, None):
        out = SparseVILA(encode_ratio=0.3).reduce(tokens, Seen(question, torch.empty(0, dtype=torch.long), tower))
        assert out.row.tolist() == expected
        assert torch.equal(out.hidden, tokens.hidden[expected])


@torch.inference_mode()
def test_both_halves_act_one_after_the_other():
    run = prefilled(SparseVILA(0.5, encode_ratio=0.25))
    visual = int(run.layout.visual.sum())
    for layer in run.store.layers:
        near, far = (int(run.layout.visual[rows.row[0]].sum()) for rows in (layer.rows, layer.far))
        assert near + far == visual // 4
        assert near == int(0.5 * (near + far) + 0.5)


def test_salient_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", SparseVILA(encode_ratio=0.2))
    assert chosen >= random + 3


def test_its_random_twin_draws_the_rows_that_are_read_too():
    technique = SparseVILA(0.25, encode_ratio=1.0)
    ours, drawn = (prefilled(each).store.layers for each in (technique, twin(technique, 0)))
    assert [len(one.row[0]) for one in ours] == [len(other.row[0]) for other in drawn]
    assert any(not torch.equal(one.row, other.row) for one, other in zip(ours, drawn))
