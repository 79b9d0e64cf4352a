from __future__ import annotations

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Layer
from elvi.errors import BudgetError, FitError
from elvi.prefill.pyramiddrop import PyramidDrop, boundaries

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


@torch.inference_mode()
def prefilled(kind: str, plan: Plan, layers: int = 4) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind, layers), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


@pytest.mark.parametrize(
    ("stages", "layers", "ends"),
    [(4, 32, [8, 16, 24]), (4, 28, [7, 14, 21]), (4, 12, [3, 6, 9]), (1, 9, []), (3, 7, [2, 5]), (5, 5, [1, 2, 3, 4])],
)
def test_stages_end_at_equal_parts_of_the_depth(stages, layers, ends):
    assert boundaries(stages, layers) == ends


@pytest.mark.parametrize("keep_ratio", [0.0, 0.1, 0.5, 0.7, 1.0])
def test_every_stage_runs_on_its_share_rounded_down(keep_ratio):
    run, _ = prefilled("qwen2_5_vl", Plan(PyramidDrop(keep_ratio=keep_ratio)))
    assert run.meter.layer_visual_tokens == [int(108 * keep_ratio**stage) for stage in range(4)]
    assert run.store.lengths == run.meter.layer_tokens


def test_few_tokens_shrink_to_none():
    technique = PyramidDrop()

    class Seven:
        """Leaves seven visual tokens before the language model."""

        at, needs, breaks, lossless = Layer(0), frozenset(), frozenset(), False

        def reduce(self, tokens, seen):
            stays = ~tokens.visual
            stays[tokens.visual.nonzero()[:7, 0]] = True
            return tokens.keep(stays)

    run, _ = prefilled("qwen2_5_vl", Plan(Seven(), technique))
    assert run.meter.layer_visual_tokens == [7, 3, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_in_stages_equals_hiding_the_same_keys_in_each_layer(kind):
    run, logits = prefilled(kind, Plan(PyramidDrop()))
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, Plan(PyramidDrop(keep_ratio=1.0)))[1], prefilled(kind, Plan())[1])
    assert torch.equal(prefilled(kind, Plan(PyramidDrop(stages=1)))[1], prefilled(kind, Plan())[1])


@pytest.mark.parametrize("kind", KINDS)
def test_survivors_are_those_the_last_token_attends_to_in_the_next_layer_of_the_whole_prompt(kind):
    weights = {}

    class Watch:
        """Notes what the last row pays in every layer of the unmodified model."""

        prefill, decode, lossless = True, False, True
        needs = breaks = frozenset()

        def attend(self, view):
            weights[view.layer] = view.attention()[:, -1].mean(0)

    plain, _ = prefilled(kind, Plan(Watch()))
    run, _ = prefilled(kind, Plan(PyramidDrop(stages=2)))
    visual = plain.layout.visual.nonzero()[:, 0]
    order = weights[2][visual].sort(descending=True, stable=True).indices
    row = run.store.layers[2].row[0]
    assert row[run.layout.visual[row]].tolist() == sorted(visual[order[: len(visual) // 2]].tolist())


def test_more_stages_than_layers_are_refused():
    with pytest.raises(FitError, match="4 layers"):
        Plan(PyramidDrop(stages=5)).check(random_family("qwen2_5_vl", 4))


@pytest.mark.parametrize("options", [{"stages": 0}, {"keep_ratio": 1.5}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        PyramidDrop(**options)


def test_kept_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", PyramidDrop(keep_ratio=0.25))
    assert chosen >= random + 3
