"""DyCoke: the merging half against loops over frames, the decoding half against choices made by hand, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, held, in_rounds, prefilled, stepwise
from support import random_family
from trained import chosen_and_random
from videosupport import noise, shown

from elvi.bench.floor import twin
from elvi.core.accept import Draft
from elvi.core.generate import forward, verify
from elvi.core.plan import Plan
from elvi.core.tokens import Tokens
from elvi.core.views import Seen, Skip
from elvi.errors import BudgetError, FitError
from elvi.prefill.dycoke import DyCoke
from elvi.prefill.fastv import FastV

DECODE = DyCoke(keep_ratio=1.0, layer=1, read_ratio=0.3)


def reduced(hidden: torch.Tensor, **fields) -> Tokens:
    return DyCoke(**fields).reduce(shown(hidden), Seen(None, torch.empty(0, dtype=torch.long)))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_each_frame_keeps_what_is_least_like_the_frame_it_is_compared_with(frames, ratio, device):
    hidden, kept = noise(frames, 20, 6), [0]
    for frame in range(frames):
        places = list(range(20))
        if frame % 4:
            other = frame - 2 if frame % 4 == 2 else frame - 1
            alike = [float(torch.cosine_similarity(hidden[frame, i], hidden[other, i], dim=0)) for i in places]
            places = sorted(sorted(places, key=lambda i: alike[i])[: round(20 * ratio)])
        kept += [1 + 20 * frame + i for i in places]
    out = reduced(hidden.to(device), keep_ratio=ratio)
    assert out.row.tolist() == [*kept, 20 * frames + 1]
    assert torch.equal(out.hidden.cpu(), shown(hidden).hidden[out.row.cpu()])


def test_four_frames_leave_one_whole_and_the_share_of_three():
    out = reduced(noise(8, 20, 6), keep_ratio=0.3)
    assert torch.bincount(out.cell[out.visual, 0]).tolist() == [20, 6, 6, 6] * 2


def test_a_video_that_stands_still_keeps_the_earliest_of_equal_places():
    out = reduced(noise(1, 10, 6).sign().repeat(4, 1, 1), keep_ratio=0.3)
    assert out.row.tolist() == [*range(11), 11, 12, 13, 21, 22, 23, 31, 32, 33, 41]


def test_nothing_of_the_three_frames_or_all_of_them_may_stay():
    assert reduced(noise(4, 5, 6), keep_ratio=0.0).row.tolist() == [*range(6), 21]
    assert len(reduced(noise(4, 5, 6), keep_ratio=1.0)) == 22


@dataclass(frozen=True)
class ByHand:
    """The oracle of decoding one by one: the cache stays whole, and what a step reads is worked out in plain lists."""

    share: float
    gate: float
    layer: int = 1
    told: dict = field(default_factory=dict)
    reused: list = field(default_factory=list)
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def attend(self, view):
        visual = view.layout.visual.nonzero()[:, 0].tolist()
        if view.layer == self.layer - 1:
            groups = len(view.query) // len(view.keys)
            heads = [(q[0] @ view.keys[i // groups].T * view.scaling).softmax(-1) for i, q in enumerate(view.query)]
            weight = (sum(heads) / len(heads))[visual]
            last = self.told.get("weight")
            self.reused.append(last is not None and float(torch.cosine_similarity(weight, last, dim=0)) >= self.gate)
            if not self.reused[-1]:
                order = sorted(range(len(visual)), key=lambda i: -float(weight[i]))
                self.told["rows"] = [visual[i] for i in order[: int(self.share * len(visual) + 0.5)]]
            self.told["weight"] = weight
        if view.layer < self.layer:
            return None
        hidden = set(visual) - set(self.told["rows"])
        reads = torch.tensor([row not in hidden for row in range(view.keys.shape[1])])
        return reads.expand(len(view.query), 1, -1)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@pytest.mark.parametrize(("share", "gate", "layer"), [(0.3, 0.9, 1), (0.1, 2.0, 1), (0.3, 0.8, 2), (0.0, 0.5, 2)])
@torch.inference_mode()
def test_deep_layers_read_what_the_layer_before_attends_to_unless_attention_stands_still(kind, share, gate, layer):
    oracle = ByHand(share, gate, layer)
    run = prefilled(DyCoke(keep_ratio=1.0, layer=layer, read_ratio=share, gate=gate), kind=kind)
    torch.testing.assert_close(stepwise(run), stepwise(prefilled(oracle, kind=kind)), atol=1e-4, rtol=1e-4)
    assert not oracle.reused[0]
    assert gate > 1 or any(oracle.reused)


@torch.inference_mode()
def test_the_gate_makes_a_difference():
    gated, free = (prefilled(DyCoke(keep_ratio=1.0, layer=1, read_ratio=0.1, gate=gate)) for gate in (0.5, 2.0))
    first, second = stepwise(gated), stepwise(free)
    torch.testing.assert_close(first[0], second[0])
    assert (first[1:] - second[1:]).abs().max() > 1e-3


@torch.inference_mode()
def test_the_cache_is_never_changed_by_what_is_read():
    run, plain = prefilled(DECODE), prefilled()
    before = [(layer.read()[0].clone(), layer.read()[1].clone()) for layer in run.store.layers]
    stepwise(run)
    stepwise(plain)
    assert held(run)[0][0].tolist() == held(plain)[0][0].tolist()
    for layer, (keys, values) in zip(run.store.layers, before):
        assert torch.equal(layer.read()[0][:, : keys.shape[1]], keys)
        assert torch.equal(layer.read()[1][:, : values.shape[1]], values)


@pytest.mark.parametrize("full", [DyCoke(layer=1, **DyCoke.full), DyCoke(keep_ratio=1.0, layer=2, read_ratio=1.0)])
@torch.inference_mode()
def test_keeping_and_reading_all_gives_the_same_bits(full):
    assert torch.equal(stepwise(prefilled(full)), stepwise(prefilled()))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision"])
@torch.inference_mode()
def test_drafts_give_the_logits_of_single_steps(kind):
    technique = DyCoke(layer=1, read_ratio=0.2, gate=0.97)
    single, drafted = prefilled(technique, kind=kind), prefilled(technique, kind=kind)
    torch.testing.assert_close(in_rounds(drafted), stepwise(single), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_branches_and_rejected_drafts_change_nothing():
    single, drafted = prefilled(DECODE), prefilled(DECODE)
    logits = verify(drafted, 10, Draft([9, 8, 7, 6, 5, 4], [-1, -1, 1, 1, 3, 4]))  # 9 | 8 -> 7 | 8 -> 6 -> 5 -> 4
    path = [0, 2, 4, 5]
    torch.testing.assert_close(logits[path], stepwise(single, [10, 8, 6, 5]), atol=1e-4, rtol=1e-4)
    drafted.commit(path)
    torch.testing.assert_close(stepwise(drafted, TOKENS), stepwise(single, TOKENS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("before", [0, 1])
@torch.inference_mode()
def test_a_draft_that_passes_the_choosing_layer_by_reads_everything(before):
    runs = [prefilled(technique) for technique in (DECODE, DyCoke(keep_ratio=1.0, layer=1, read_ratio=1.0))]
    logits = []
    for run in runs:
        if before:
            verify(run, 9, Draft())
            run.rollback()
        logits.append(forward(run, [10, 11], [1, 2], skip=Skip(attention=frozenset({0}))))
    torch.testing.assert_close(*logits)


@torch.inference_mode()
def test_rows_that_another_technique_dropped_are_not_counted():
    run = prefilled(DyCoke(keep_ratio=1.0, layer=2, read_ratio=0.5), FastV(layer=1, keep_ratio=0.5))
    stepwise(run, TOKENS[:1])
    kept = run.memory[id(run.plan.layered[0]), -1]["last"][1] & run.layout.visual
    rows = set(run.store.layers[1].row[0].tolist())
    assert int(kept.sum()) == 27 == round(0.5 * len(rows & set(run.layout.visual.nonzero()[:, 0].tolist())))
    assert set(kept.nonzero()[:, 0].tolist()) <= rows


def test_a_twin_draws_as_many_random_tokens():
    runs = [prefilled(each, seconds=6) for each in (DyCoke(layer=1), twin(DyCoke(layer=1), 0))]
    assert runs[0].store.lengths == runs[1].store.lengths
    assert runs[0].store.layers[0].row.tolist() != runs[1].store.layers[0].row.tolist()


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"layer": 0}, {"read_ratio": -1}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        DyCoke(**options)


def test_a_model_without_the_layer_is_refused():
    with pytest.raises(FitError, match="has 3 layers: choose 1 to 2"):
        Plan(DyCoke(layer=3)).check(random_family("llava"))


def test_what_is_not_repeated_answers_more_than_random_tokens_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-llava", DyCoke(keep_ratio=0.1))
    assert chosen >= random + 3
