"""Drafting with the target's own layers, some of them skipped: it reads the cache and leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from support import LastSlots, clip_for, random_family

import elvi
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Skip

QUESTION = "what color is the star ?"
LAYERS = 3
SETS = {
    "nothing": Skip(),
    "first attention": Skip(attention=frozenset({0})),
    "all attention": Skip(attention=frozenset(range(LAYERS))),
    "all mlp": Skip(mlp=frozenset(range(LAYERS))),
    "everything": Skip(frozenset(range(LAYERS)), frozenset(range(LAYERS))),
    "some": Skip(frozenset({1}), frozenset({1, 2})),
}


def started(kind: str, plan: Plan | None = None) -> Run:
    run = Run(random_family(kind), plan or Plan())
    prefill(run, clip_for(kind), QUESTION)
    return run


def state(run: Run) -> list[torch.Tensor]:
    return [part.clone() for layer in run.store.layers for part in (*layer.read(), layer.row)]


def without(monkeypatch, family, skip: Skip) -> None:
    """The model with zeros for the output of what is skipped."""

    def silent_attention(module, *args, **options):
        return torch.zeros_like(options["hidden_states"]), None

    for index, layer in enumerate(family.text.layers):
        if index in skip.attention:
            monkeypatch.setattr(layer.self_attn, "forward", silent_attention.__get__(layer.self_attn))
        if index in skip.mlp:
            monkeypatch.setattr(layer.mlp, "forward", torch.zeros_like)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
@torch.inference_mode()
def test_skipped_sub_layers_add_nothing_and_the_rest_reads_the_verified_prefix(kind, name, monkeypatch):
    run, other = started(kind), started(kind)
    ours = [forward(run, [token], [depth], skip=SETS[name])[0] for depth, token in enumerate((11, 12, 13))]
    without(monkeypatch, run.family, SETS[name])
    theirs = [forward(other, [token], [depth])[0] for depth, token in enumerate((11, 12, 13))]
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-5, rtol=1e-5)


PLANS = {
    "plain": Plan(),
    "evicted": Plan(LastSlots(9)),
    "rolling": Plan(elvi.technique("streamingllm")(recent=8)),
    "packed": Plan(elvi.technique("calibquant")(bits=4)),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SETS)
@torch.inference_mode()
def test_after_a_rollback_the_cache_and_what_follows_are_as_before(name, plan):
    run, fresh = started("qwen2_5_vl", PLANS[plan]), started("qwen2_5_vl", PLANS[plan])
    before = state(run)
    for _ in range(2):
        for depth, token in enumerate((11, 12, 13)):
            forward(run, [token], [depth], skip=SETS[name])
        run.rollback()
    assert all(torch.equal(old, new) for old, new in zip(before, state(run)))
    for each in (run, fresh):
        forward(each, [7, 8], [0, 1])
        each.commit([0])
    assert all(torch.equal(old, new) for old, new in zip(state(fresh), state(run)))
    assert torch.equal(forward(run, [9], [0]), forward(fresh, [9], [0]))
