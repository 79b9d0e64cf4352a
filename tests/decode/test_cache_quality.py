"""Cache techniques on the trained model: does it still predict the caption, and find the needle, from what is left."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from trained import needles_found

import elvi
from elvi.bench.floor import RandomTokens, twin
from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.scores import observers
from elvi.core.tokens import budget, top
from elvi.core.views import LayerView
from elvi.decode.adakv import AdaKV
from elvi.decode.akvq_vl import AKVQVL
from elvi.decode.calibquant import CalibQuant
from elvi.decode.elastic_cache import ElasticCache
from elvi.decode.h2o import H2O
from elvi.decode.hybridkv import HybridKV
from elvi.decode.look_m import LookM
from elvi.decode.madakv import MadaKV
from elvi.decode.meda import MEDA
from elvi.decode.mixkv import MixKV
from elvi.decode.mm_shiftkv import MMShiftKV
from elvi.decode.pyramidkv import PyramidKV
from elvi.decode.snapkv import SnapKV
from elvi.decode.sparsemm import SparseMM
from elvi.decode.sparsevila import SparseVILA
from elvi.decode.st3 import ST3
from elvi.decode.streamingllm import StreamingLLM
from elvi.decode.vidkv import VidKV
from elvi.decode.vl_cache import VLCache

CLIPS = range(10_020, 10_024)
pytestmark = pytest.mark.slow


@cache
@torch.inference_mode()
def loss(*techniques, seconds: int = 5) -> float:
    """Mean negative log-likelihood per caption token, in nats, given all before it; without the first token."""
    family, losses = elvi.load("tiny-qwen", device="cpu"), []
    for number in CLIPS:
        clip = elvi.sample(number, kind="caption", seconds=seconds)
        first, *rest = family.tokenizer(clip.expected, add_special_tokens=False)["input_ids"]
        run = Run(family, Plan(*techniques))
        prefill(run, clip, clip.question)
        logits = verify(run, first, Draft.chain(rest))[:-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(rest)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(
    "plans",
    [
        [SnapKV(ratio) for ratio in (0.0, 0.1, 0.25, 0.5, 1.0)],
        [MMShiftKV(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
        [HybridKV(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
        [StreamingLLM(recent=recent) for recent in (16, 64, 128, 1000)],
        [CalibQuant(bits, lowering=0.0) for bits in (1, 2, 4)],
        [H2O(ratio) for ratio in (0.05, 0.25, 1.0)],
        [ElasticCache(ratio) for ratio in (0.05, 0.25, 0.5, 1.0)],
        [ST3(keep_ratio=ratio, tau=None) for ratio in (0.1, 0.5, 1.0)],
        [ST3(keep_ratio=1.0, tau=tau) for tau in (16, 64, None)],
        [VidKV(bits) for bits in (1.0, 1.5, 2.0)],
        [SparseVILA(ratio, encode_ratio=1.0) for ratio in (0.05, 0.25, 1.0)],
        [LookM(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
        [MEDA(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
        [MadaKV(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
        [SparseMM(ratio) for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)],
    ],
    ids=lambda plans: type(plans[0]).__name__,
)
def test_more_budget_predicts_better(plans):
    losses = [loss(plan) for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 0.1


def test_snapkv_beats_sinks_and_recent_tokens_at_equal_budget():
    prompt = 5 * 36 + 8  # rows at least, so that streaming gets no less
    assert loss(SnapKV(0.25)) < loss(StreamingLLM(num_sinks=4, recent=prompt // 4)) - 0.5


def test_summed_attention_chooses_worse_than_that_of_the_last_rows():
    assert loss(H2O(0.25)) > loss(SnapKV(0.25)) + 0.5


def test_st3_finds_needles_that_random_tokens_of_equal_number_lose():
    technique = ST3(keep_ratio=0.1, tau=None)
    assert needles_found("tiny-qwen", technique) > needles_found("tiny-qwen", RandomTokens(technique, 0)) + 3


@pytest.mark.parametrize("technique", [MadaKV(0.1), SparseMM(0.1)], ids=["madakv", "sparsemm"])
def test_chosen_rows_predict_better_than_random_ones_under_the_same_budgets(technique):
    floor = sum(loss(twin(technique, seed)) for seed in range(3)) / 3
    assert loss(technique) < floor - 0.2


def test_eight_bits_predict_like_the_full_cache():
    assert loss(CalibQuant(8)) == pytest.approx(loss(), abs=0.02)


def test_two_bits_beside_recent_tokens_and_pivots_predict_like_the_full_cache():
    assert loss(AKVQVL(recent=16)) == pytest.approx(loss(), abs=0.02)


@dataclass(frozen=True)
class RandomKeep:
    """As many slots as SnapKV keeps, its window among them, the others drawn at random."""

    keep_ratio: float
    needs = breaks = frozenset()
    lossless = rolling = False
    window = 32

    def keep(self, views: list[LayerView]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [self._keep(view, torch.rand(view.row.shape, generator=generator)) for view in views]

    def _keep(self, view, score):
        first = view.query_row[-observers(view.query_row, view.layout, self.window)]
        return top(score.masked_fill(view.row >= first, 2.0), budget(self.keep_ratio, score.shape[1]))


@torch.inference_mode()
def answers(technique) -> int:
    """How many needles are found when the last prompt row, which emits the answer, is read again from what is left."""
    family, found = elvi.load("tiny-qwen", device="cpu"), 0
    for number in CLIPS:
        clip = elvi.sample(number, kind="needle", seconds=12)
        run = Run(family, Plan(technique))
        prefill(run, clip, clip.question)
        for layer in run.store.layers:
            layer.crop(layer.length - 1)
        run.next_row, run.next_position = len(run.layout) - 1, int(run.layout.position[0, -1])
        logits = verify(run, int(run.layout.token[-1]), Draft())
        found += family.decode([int(logits.argmax())]) == clip.expected
    return found


@pytest.mark.parametrize(
    "technique", [PyramidKV(0.1), AdaKV(0.1), VLCache(0.1), MixKV(0.1)], ids=lambda technique: type(technique).__name__
)
def test_chosen_slots_predict_better_than_random_ones_of_equal_number(technique):
    assert loss(technique) < loss(twin(technique, 0)) - 0.2
    assert answers(technique) == len(CLIPS)


def test_madakv_finds_needles_in_a_tenth_of_the_prompt():
    assert answers(MadaKV(0.1)) == len(CLIPS)
    assert answers(twin(MadaKV(0.1), 1)) < len(CLIPS)


def test_snapkv_finds_needles_that_random_slots_of_equal_number_lose():
    assert answers(SnapKV(0.05)) == len(CLIPS)
    assert answers(RandomKeep(0.05)) < len(CLIPS)


def test_mm_shiftkv_predicts_captions_better_than_snapkv_and_random_slots_at_a_quarter():
    shifted = sum(loss(MMShiftKV(0.25, seed=seed)) for seed in range(3)) / 3
    assert shifted < loss(SnapKV(0.25)) - 0.2
    assert shifted < loss(RandomKeep(0.25)) - 0.2


def test_mm_shiftkv_finds_needles_that_random_slots_of_equal_number_lose():
    assert answers(MMShiftKV(0.05)) == len(CLIPS)
    assert answers(RandomKeep(0.05)) < len(CLIPS)


def test_hybridkv_predicts_captions_better_than_pruning_and_random_slots_at_a_quarter():
    others = [HybridKV(0.25, theta=0.0), SnapKV(0.25), RandomKeep(0.25)]
    assert loss(HybridKV(0.25), seconds=8) < min(loss(other, seconds=8) for other in others) - 0.1


def test_hybridkv_that_prunes_every_head_finds_needles_that_random_slots_lose():
    assert answers(HybridKV(0.05, theta=0.0)) == len(CLIPS)


def test_hybridkv_reads_an_eighth_of_the_bytes_on_a_long_clip():
    family, clip = elvi.load("tiny-qwen", device="cpu"), elvi.sample(10_001, kind="caption", seconds=32)
    full, *reports = (
        elvi.generate(family, clip, plan=Plan(*techniques), max_new_tokens=24).report
        for techniques in ((), (HybridKV(0.1),), (HybridKV(0.1, theta=0.2),), (HybridKV(0.1, theta=0.0),))
    )
    for report in reports:
        assert report.kv_read_bytes <= full.kv_read_bytes / 7.9
        assert report.kv_bytes + report.kv_far_bytes <= full.kv_bytes
    assert reports[0].kv_far_bytes > reports[1].kv_far_bytes > reports[2].kv_far_bytes == 0


def test_sparsevila_finds_needles_that_random_visual_rows_of_equal_number_lose():
    assert answers(SparseVILA(0.05, encode_ratio=1.0)) == len(CLIPS)
    assert answers(twin(SparseVILA(0.05, encode_ratio=1.0), 0)) < len(CLIPS)
