"""Drafting with a model in the shape of a static tree."""

from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Path, Sampler
from elvi.core.draft import ModelDrafting, Shape, check_drafter, check_shape
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError

QUESTION = "what color is the star ?"
UNEVEN = Shape.of("0 1 2 00 01 10 000 001 0000")


def test_shapes():
    assert Shape.chain(3).parents == Shape.branches(1, 3).parents == (-1, 0, 1)
    assert Shape.branches(2, 3).parents == (-1, -1, 0, 1, 2, 3)
    assert UNEVEN.parents == (-1, -1, -1, 0, 0, 1, 3, 3, 6)
    assert UNEVEN.children[-1] == [0, 1, 2]
    assert UNEVEN.children[3] == [6, 7]
    assert [shape.is_chain for shape in (Shape.chain(4), Shape.chain(0), Shape.branches(2, 1))] == [True, True, False]


def drafting(sampler: Sampler, shape: Shape = UNEVEN) -> ModelDrafting:
    family, clip = random_family("qwen2_5_vl"), noise_clip(1)
    target = Run(family, Plan())
    prefill(target, clip, QUESTION)
    return ModelDrafting(family, target, clip, sampler, shape)


def logits_after(chain: list[int]) -> torch.Tensor:
    run = Run(random_family("qwen2_5_vl"), Plan())
    prefill(run, noise_clip(1), QUESTION)
    return forward(run, chain, list(range(len(chain))))[-1]


def line(draft, node: int) -> list[int]:
    """Tokens from the root's child down to the node."""
    return [] if node < 0 else [*line(draft, draft.parents[node]), draft.ids[node]]


@torch.inference_mode()
def test_every_node_of_a_tree_is_the_best_after_its_parent_that_its_siblings_left():
    draft = drafting(Sampler()).propose([11], 9)
    assert tuple(draft.parents) == UNEVEN.parents
    for node, parent in enumerate(draft.parents):
        rank = UNEVEN.children[parent].index(node)
        best = logits_after([11, *line(draft, parent)]).topk(rank + 1).indices
        assert draft.ids[node] == int(best[rank])


@torch.inference_mode()
def test_every_node_of_a_sampled_tree_states_its_law():
    draft = drafting(Sampler(2.0, seed=4)).propose([11], 9)
    assert draft.probs is not None
    for node, parent in enumerate(draft.parents):
        law = (logits_after([11, *line(draft, parent)]) / 2.0).softmax(-1)
        for sibling in range(node):
            if draft.parents[sibling] == parent:
                law[draft.ids[sibling]] = 0.0
        torch.testing.assert_close(draft.probs[node], law / law.sum(), atol=1e-6, rtol=1e-4)


@torch.inference_mode()
def test_a_tree_is_cut_at_the_limit():
    draft = drafting(Sampler()).propose([11], 2)
    assert tuple(draft.parents) == UNEVEN.parents[:6]


@torch.inference_mode()
@pytest.mark.parametrize("nodes", [[], [2], [0], [1, 5], [0, 3, 6], [0, 3, 6, 8]])
def test_the_cache_follows_any_path_of_a_tree(nodes):
    old = drafting(Sampler())
    draft = old.propose([11], 9)
    old.heard(Path(nodes, 20))
    ids = [11, *(draft.ids[node] for node in nodes), 20]
    assert old.propose(ids, 9).ids == drafting(Sampler()).propose(ids, 9).ids


def test_a_drafter_on_another_device_is_refused():
    target = random_family("qwen2_5_vl")
    away = elvi.load("tiny-qwen-drafter", device="meta")
    with pytest.raises(FitError, match="tiny-qwen-drafter on meta for random-qwen on cpu"):
        check_drafter(object(), target, away)


def test_a_tree_is_refused_on_a_kernel_without_masks(monkeypatch):
    target = random_family("qwen2_5_vl")
    monkeypatch.setattr(target, "attention_kernel", "flash_attention_2")
    check_shape(object(), target, Shape.chain(5))
    with pytest.raises(FitError, match="random-qwen runs on flash_attention_2, which takes none"):
        check_shape(object(), target, UNEVEN)
