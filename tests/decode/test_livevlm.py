"""LiveVLM: a memory of fixed size that covers the stream, and pages found without regard to their positions."""

from dataclasses import replace

import pytest
import torch
from streamsupport import layers, views, watched
from support import noise_clip, random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.decode.livevlm import LiveVLM
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_every_head_holds_exactly_its_memory_and_the_short_term_steps(kind):
    technique = LiveVLM(memory=50, short=2)
    stream = watched(technique, 7, kind)
    layout = stream.pieces.run.layout
    for layer in layers(stream):
        for row in layer.row:
            assert (row.diff() > 0).all()
            visual = layout.visual[row]
            old = layout.step[row] <= 4
            assert int((visual & old).sum()) == 50
            assert int((visual & ~old).sum()) == int((layout.visual & (layout.step > 4)).sum())


def test_without_sinks_and_with_even_scores_time_is_covered_evenly():
    technique = LiveVLM(memory=10, sink_share=0.0)
    assert technique.choose(torch.ones(100), torch.arange(100), 100).tolist() == list(range(0, 100, 10))


def test_sinks_alone_are_the_best_of_all():
    score = torch.rand(100, generator=torch.Generator().manual_seed(0))
    kept = LiveVLM(memory=10, sink_share=1.0).choose(score, torch.arange(100), 100)
    assert kept.tolist() == sorted(score.topk(10).indices.tolist())


def test_a_bucket_takes_no_more_than_its_room_and_its_sinks():
    score = torch.zeros(100)
    score[:20] = torch.linspace(2, 1, 20)  # one hot stretch
    kept = LiveVLM(memory=20, bucket=2, sink_share=0.25).choose(score, torch.arange(100), 100)
    counts = torch.bincount(kept // 10, minlength=10)
    assert counts[0] == 5
    assert (counts[1:] <= 2).all() or counts.sum() == 20
    assert len(kept) == len(set(kept.tolist())) == 20


def test_free_places_go_to_the_best_of_the_rest():
    score = torch.arange(10.0)
    kept = LiveVLM(memory=5, sink_share=0.0).choose(score, torch.arange(10), 1000)  # all in the first bucket
    assert kept.tolist() == [5, 6, 7, 8, 9]


@torch.inference_mode()
def pages_read(technique, shift: int = 0):
    """bool [H, K] of a layer for the question's rows, with all positions moved on by `shift`."""
    stream = watched(LiveVLM(memory=64), 7)
    run = stream.pieces.run
    view = views(stream, technique)[1]
    family, rows = run.family, run.layout.row[-5:]
    generator = torch.Generator().manual_seed(3)
    plain_query = torch.randn(family.config.num_attention_heads, 5, family.head_dim, generator=generator)
    plain_keys = family.rotate(view.keys, view.positions(view.row), back=True)
    run.layout.position.add_(shift)
    view.store.rows.keys[:, : view.store.length] = family.rotate(plain_keys, view.positions(view.row))
    query = family.rotate(plain_query, view.positions(rows))
    return technique.read(replace(views(stream, technique)[1], query=query, query_row=rows))


def test_pages_are_found_whatever_their_positions():
    technique = LiveVLM(memory=64, retrieval_ratio=0.5)
    first, moved = pages_read(technique), pages_read(technique, shift=500)
    assert torch.equal(first, moved)
    assert 0 < (~first).sum() < first.numel()


def test_half_of_the_pages_are_read_and_all_that_is_not_long_term():
    technique = LiveVLM(memory=64, retrieval_ratio=0.5, page=16)
    read = pages_read(technique)
    assert ((~read).sum(1) == 32).all()


def test_reading_all_pages_is_reading_the_compressed_cache():
    family, clip = random_family("qwen2_5_vl"), noise_clip(7)
    answers = [
        generate(family, clip, QUESTION, plan=Plan(LiveVLM(memory=64, **options)), max_new_tokens=6, ignore_eos=True)
        for options in ({"retrieval_ratio": 1.0}, {"retrieval_ratio": 1.0, "page": 1}, {"retrieval_ratio": 0.4})
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[2].report.kv_bytes < answers[0].report.kv_bytes


def test_a_memory_that_is_never_full_changes_nothing():
    family, clip = random_family("qwen2_5_vl"), noise_clip(4)
    plain = generate(family, clip, QUESTION, max_new_tokens=6, ignore_eos=True)
    technique = LiveVLM(memory=1000, retrieval_ratio=1.0)
    assert (
        generate(family, clip, QUESTION, plan=Plan(technique), max_new_tokens=6, ignore_eos=True).tokens == plain.tokens
    )


def test_a_question_leaves_the_stream_its_pages():
    stream = watched(LiveVLM(memory=64, retrieval_ratio=0.2), 7)
    before = stream.kv_bytes
    stream.ask(QUESTION, max_new_tokens=3)
    assert stream.kv_bytes == before


def test_a_bucket_larger_than_the_memory_is_refused():
    with pytest.raises(BudgetError, match="bucket=8"):
        LiveVLM(memory=4, bucket=8)
