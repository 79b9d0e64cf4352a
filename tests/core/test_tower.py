"""Reducers inside a vision tower: what they are shown, what becomes of the tokens, and what the blocks cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from support import noise_clip, random_family

from elvi.bench.floor import twin
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Encoded, Tower
from elvi.encode.visionzip import VisionZip
from elvi.errors import PlanError

QUESTION = "what color is the star ?"


@dataclass(frozen=True)
class Pairs:
    """Merges neighbours in pairs (merge=True: into their mean), or notes what it sees and leaves all as it is."""

    merge: bool = True
    at: Tower | Encoded = Tower(1)  # noqa: RUF009
    proportional: bool = True
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False
    notes: list = field(default_factory=list, hash=False)

    def reduce(self, tokens, seen):
        self.notes.append((tokens, seen))
        seen.memory["calls"] = seen.memory.get("calls", 0) + 1
        index = torch.arange(len(tokens))
        return tokens.merge(index // 2, index[::2]) if self.merge else tokens


@torch.inference_mode()
def encoded(*techniques, clip=None, kind="llava"):
    run = Run(random_family(kind), Plan(*techniques))
    prefill(run, noise_clip() if clip is None else clip, QUESTION)
    return run


@torch.inference_mode()
def test_a_tower_run_block_by_block_gives_the_bits_of_the_model():
    family, clip = random_family("llava"), random_family("llava").steps(noise_clip())
    plain, ours = family.encode(clip, {0, 1}), family.encode_reduced(clip, [Pairs(merge=False)])
    assert torch.equal(ours.tokens.hidden, plain.tokens.hidden)
    assert torch.equal(ours.tokens.cell, plain.tokens.cell)


@torch.inference_mode()
def test_a_reducer_sees_the_keys_of_its_own_block_and_which_one_it_is():
    looks = Pairs(merge=False, at=Tower(0, every=2))
    encoded(looks)
    assert looks.notes[-1][1].memory == {"calls": 2}
    family = random_family("llava")
    view = family.encode(family.steps(noise_clip()), {0, 2}).tower
    assert [(seen.block, seen.blocks) for _, seen in looks.notes] == [(0, 4), (2, 4)]
    for (_, seen), layer in zip(looks.notes, (0, 2)):
        assert torch.equal(seen.key.transpose(0, 1), view.head_keys(layer))


@torch.inference_mode()
def test_tokens_merged_in_the_tower_reach_the_language_model_at_their_anchors():
    run = encoded(Pairs())
    visual = run.layout.visual.nonzero()[:, 0]
    assert run.meter.visual_tokens == {"encoded": 54, "reduced": 54}
    row = run.store.layers[0].row[0]
    assert row[run.layout.visual[row]].tolist() == visual[::2].tolist()
    assert float(run.layout.mass[row].sum()) == len(run.layout)


@torch.inference_mode()
def test_with_attention_in_proportion_equal_tokens_may_be_merged_without_any_change():
    family = random_family("llava")
    clip = noise_clip(1, still=True)
    clip.frames[:] = 90  # the same patch everywhere: only its position tells one from another
    vision = family.model.model.vision_tower.embeddings.position_embedding.weight
    before = vision.clone()
    try:
        vision[1:] = vision[1]
        plain = family.encode(clip).tokens.hidden
        merged = family.encode_reduced(clip, [Pairs(at=Tower(0))]).tokens.hidden
        counted_once = family.encode_reduced(clip, [Pairs(at=Tower(0), proportional=False)]).tokens.hidden
    finally:
        vision.copy_(before)
    torch.testing.assert_close(merged, plain[::2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(counted_once, plain[::2], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_blocks_cost_less_after_tokens_were_merged():
    family = random_family("llava")
    clip = family.steps(noise_clip())
    early, late = (family.encode_reduced(clip, [Pairs(at=Tower(block))]).flops for block in (0, 3))
    assert early < late < family.encode(clip).flops


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision"])
def test_where_the_tower_is_bound_to_a_grid_the_reducer_acts_behind_it(kind):
    looks = Pairs()
    run = encoded(looks, kind=kind)
    ((tokens, seen),) = looks.notes
    assert seen.block is None
    assert run.meter.visual_tokens == {"encoded": len(tokens), "reduced": len(tokens) // 2}


def test_reading_patches_of_a_tower_that_merges_them_is_refused_by_name():
    with pytest.raises(PlanError, match=r"VisionZip reads .* Pairs merges"):
        Plan(VisionZip(), Pairs()).check(random_family("llava"))
    Plan(VisionZip(), Pairs()).check(random_family("qwen2_5_vl"))


def test_random_selection_in_the_tower_leaves_every_frame_as_many():
    ours, drawn = (encoded(each) for each in (Pairs(), twin(Pairs(), 0)))
    assert drawn.meter.visual_tokens == ours.meter.visual_tokens
