"""What a run notes for techniques that ask for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support import clip_for, random_family

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError

QUESTION = "what color is the star ?"


@dataclass(frozen=True)
class Curious:
    """Drafts nothing and judges as it likes, but asks for everything that can be noted."""

    hidden_layer: int = -1
    question_attention: ClassVar[bool] = True
    needs = breaks = frozenset()
    lossless: ClassVar[bool] = True
    greedy_only: ClassVar[bool] = False

    def start(self, run, clip, sampler):
        raise NotImplementedError

    def judge(self, run, sampler):
        raise NotImplementedError


def read(kind: str, technique: Curious, question: str = QUESTION) -> Run:
    run = Run(random_family(kind), Plan(technique))
    prefill(run, clip_for(kind), question)
    return run


def eager(kind: str):
    model = copy.deepcopy(random_family(kind).model)
    model.set_attn_implementation({"text_config": "eager"} if kind != "llama" else "eager")
    return model


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
@torch.inference_mode()
def test_what_the_question_attends_to_is_the_mean_of_the_eager_weights(kind):
    family, run = random_family(kind), read(kind, Curious())
    weights = eager(kind)(**family.inputs(clip_for(kind), QUESTION), output_attentions=True).attentions
    expected = torch.stack([layer[0][:, run.question_rows].mean(dim=(0, 1)) for layer in weights]).mean(0)
    torch.testing.assert_close(run.question_attention, expected, atol=1e-6, rtol=1e-4)
    assert run.question_attention.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_watched_rows_are_those_that_leave_the_layer(kind, layer):
    family, run = random_family(kind), read(kind, Curious(layer))
    outputs = []
    handle = family.text.layers[layer].register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    try:
        again = read(kind, Curious(layer))
        verify(again, 7, Draft.chain([11, 12]))
    finally:
        handle.remove()
    assert torch.equal(run.watched.hidden, outputs[0])
    assert torch.equal(run.watched.visual, run.layout.visual)
    assert torch.equal(again.watched.hidden, outputs[1])
    assert len(again.watched) == 3


def test_nothing_is_noted_unasked():
    run = Run(random_family("llama"), Plan())
    with torch.inference_mode():
        prefill(run, None, QUESTION)
    assert not hasattr(run, "watched")
    assert not run.question_attention.any()


def test_a_model_with_windowed_layers_is_refused(monkeypatch):
    family = random_family("llama")
    config = copy.deepcopy(family.config)
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    monkeypatch.setattr(family.model, "config", config)
    with pytest.raises(FitError, match="windowed has layers of sliding_attention, whose cache cannot be cut back"):
        type(family)("windowed", family.model, family.tokenizer)
