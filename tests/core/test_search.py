"""The search for sub-layers to skip: better than chance, repeatable, resumable."""

from __future__ import annotations

import json

import pytest
from support import random_family

from elvi import cli
from elvi.bench import search
from elvi.core.views import Skip

LAYERS = 8
USELESS = Skip(frozenset({2, 4, 5, 7}), frozenset({3, 6}))


def model(skip: Skip) -> float:
    """Of what is skipped, USELESS saves time and costs nothing; everything else costs most of the acceptance."""
    wrong = len(skip.attention - USELESS.attention) + len(skip.mlp - USELESS.mlp)
    accepted, cost = 8 * 0.45**wrong, 1 - len(skip.attention | skip.mlp) / 12
    return (accepted + 1) / (8 * cost + 1)


def test_it_beats_as_many_random_sets():
    for seed in range(3):
        found = search.search(LAYERS, model, trials=60, seed=seed)
        assert found.predicted_speedup > search.random_search(LAYERS, model, trials=60, seed=seed)
        assert found.predicted_speedup == model(Skip(frozenset(found.attention), frozenset(found.mlp)))


def test_a_seed_repeats():
    first, again = (search.search(LAYERS, model, trials=25, seed=3) for _ in range(2))
    assert first == again


def test_a_stopped_search_keeps_its_trials_and_goes_on(tmp_path):
    study, calls = tmp_path / "deep" / "study.log", []

    def stopped(skip: Skip) -> float:
        calls.append(skip)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return model(skip)

    with pytest.raises(KeyboardInterrupt):
        search.search(LAYERS, stopped, trials=20, seed=0, study=study)
    ticks = []
    found = search.search(LAYERS, model, trials=20, seed=0, study=study, tick=lambda: ticks.append(1))
    assert len(ticks) == found.trials == 20
    best = max(map(model, calls[:7]))
    assert found.predicted_speedup >= best
    assert search.search(LAYERS, None, trials=5, seed=0, study=study).predicted_speedup == found.predicted_speedup


def test_costs_are_shares_of_the_weights():
    family = random_family("llama")
    every = frozenset(range(family.num_layers))
    assert search.draft_cost(family, Skip()) == 1.0
    head = family.model.get_output_embeddings().weight.numel()
    layers = sum(
        weight.numel()
        for layer in family.text.layers
        for weight in (*layer.self_attn.parameters(), *layer.mlp.parameters())
    )
    assert search.draft_cost(family, Skip(every, every)) == pytest.approx(head / (head + layers))


def test_skipping_nothing_predicts_no_speed_up():
    assert search.predicted_speedup(random_family("llama"), Skip()) == pytest.approx(1.0, abs=0.13)


def test_the_command_prints_what_can_be_run(tmp_path, capsys):
    study = tmp_path / "study.log"
    assert cli.main(["search", "draft-and-verify", "--trials", "2", "--study", str(study)]) == 0
    said = capsys.readouterr().out
    assert "draft-and-verify:skip_attention=" in said
    assert "after 2 trials" in said
    assert json.loads(study.read_text().splitlines()[0])
