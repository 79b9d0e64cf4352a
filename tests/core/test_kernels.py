"""Compiled loops are found, recorded at work, and timed against the twins beside them."""

import inspect

import pytest
import torch
from support import clip_for, random_family

from elvi import discover
from elvi.bench import kernels
from elvi.core import spread
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.prefill.divprune import DivPrune


@pytest.fixture
def seen():
    """What a prefill and a smaller choice after it give to compiled loops."""
    with kernels.recorded() as found:
        generate(random_family("qwen2_5_vl"), clip_for("qwen2_5_vl"), plan=Plan(DivPrune(0.25)), max_new_tokens=1)
        spread.farthest(torch.eye(3), 2)
    return found


def test_the_largest_arguments_of_a_loop_are_those_of_the_run(seen):
    assert set(seen) == {"spread-spread"}
    similar, count, _ = seen["spread-spread"].arguments
    total = len(random_family("qwen2_5_vl").encode(clip_for("qwen2_5_vl")).tokens)
    assert similar.shape == (total, total)
    assert count == round(total / 4)
    assert seen["spread-spread"].shapes == f"{total} x {total}, 0"


def test_afterwards_the_loops_are_what_they_were():
    compiled = spread.spread
    with kernels.recorded():
        assert spread.spread is not compiled
        assert spread.farthest(torch.eye(3), 1).tolist() == [0]
    assert spread.spread is compiled


def test_a_loop_is_timed_in_turns_with_its_twin(seen, monkeypatch):
    clocks = iter([(3.0, torch.tensor([1])), (0.5, [1]), (4.0, torch.tensor([1])), (1.0, [1])])
    monkeypatch.setattr(kernels, "clocked", lambda work: next(clocks))
    assert seen["spread-spread"].speedups(2) == [6.0, 4.0]


def test_a_twin_that_chooses_otherwise_is_no_twin(seen, monkeypatch):
    monkeypatch.setattr(spread, "spread_reference", lambda similar, count, given: torch.arange(count) + 1)
    with pytest.raises(AssertionError, match="spread-spread and its twin differ"):
        seen["spread-spread"].speedups(1)


def test_every_compiled_loop_with_a_twin_takes_the_twins_arguments():
    for name in discover.list_techniques():
        discover.technique(name)
    found = list(kernels._loops())
    assert len(found) >= 4
    for module, loop, compiled in found:
        twin = getattr(module, f"{loop}_reference")
        assert [*inspect.signature(compiled.py_func).parameters] == [*inspect.signature(twin).parameters]
