"""Inf-MLLM: constant size, recent rows and saddles stay, the bias lets unused saddles go."""

import pytest
import torch
from kvsupport import view_of
from streamsupport import layers, watched
from support import noise_clip, random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.scores import WHOLE_PROMPT
from elvi.decode.inf_mllm import InfMLLM
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_cache_never_holds_more_than_its_capacity(kind):
    def bounded(stream):
        assert max(stream.pieces.run.store.lengths) <= 60

    stream = watched(InfMLLM(capacity=60), 7, kind, bounded)
    assert stream.pieces.run.store.lengths == [60] * 3
    seen = len(stream.pieces.run.layout)
    for layer in layers(stream):
        assert torch.equal(layer.row[0, -30:], torch.arange(seen - 30, seen))
        assert (layer.row == layer.row[:1]).all()


def saddle(bias: float, used: bool):
    """The rows kept of 40 when row 5 is looked at by the last queries, or only was before them."""
    keys = torch.zeros(1, 40, 4)
    keys[0, 5, 0] = 6.0
    keys[0, 10:20, 1] = 1.0
    query = torch.zeros(1, 4, 4)
    query[..., 0 if used else 1] = 4.0
    technique = InfMLLM(capacity=12, queries=4, bias=bias)
    return technique._keep(view_of(keys, query))[0].tolist()


def test_a_saddle_that_is_looked_at_stays():
    kept = saddle(0.0, used=True)
    assert 5 in kept
    assert kept[-6:] == list(range(34, 40))
    assert len(kept) == 12


def test_a_saddle_that_nobody_looks_at_leaves():
    assert 5 not in saddle(0.0, used=False)


def test_a_strong_bias_displaces_what_is_old():
    assert 5 not in saddle(300.0, used=True)


def test_the_bias_does_not_tell_recent_keys_apart():
    view = view_of(torch.randn(2, 40, 4), torch.randn(4, 3, 4))
    favour = InfMLLM(capacity=20).favour(view)
    assert (favour[:, -10:] == 0).all()
    assert (favour[:, :20].diff(dim=1) > 0).all()


def test_without_bias_all_queries_choose_by_column_sums():
    torch.manual_seed(1)
    view = view_of(torch.randn(2, 30, 4), torch.randn(4, 30, 4))
    kept = InfMLLM(capacity=12, bias=0.0, queries=WHOLE_PROMPT)._keep(view)[0].tolist()
    sums = view.attention().sum(1).mean(0)[:24]
    assert kept[:6] == sorted(sums.topk(6).indices.tolist())


def test_below_capacity_and_without_bias_nothing_changes():
    family, clip = random_family("qwen2_5_vl"), noise_clip(3)
    plain = generate(family, clip, QUESTION, max_new_tokens=6, ignore_eos=True)
    technique = InfMLLM(capacity=1000, bias=0.0)
    assert (
        generate(family, clip, QUESTION, plan=Plan(technique), max_new_tokens=6, ignore_eos=True).tokens == plain.tokens
    )


def test_no_capacity_is_refused():
    with pytest.raises(BudgetError, match="capacity=1"):
        InfMLLM(capacity=1)
