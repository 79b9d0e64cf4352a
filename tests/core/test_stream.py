"""A clip read piece by piece is the clip read at once; questions leave a stream as it was."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from kvsupport import QUESTION
from support import clip_for, random_family

from elvi.core.facts import Fact
from elvi.core.generate import generate, prefill
from elvi.core.pieces import Pieces
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Encoded
from elvi.core.stream import Stream
from elvi.decode.snapkv import SnapKV
from elvi.errors import FitError

KINDS = ("qwen2_5_vl", "llava", "llava_onevision")


@dataclass(frozen=True)
class LastRows:
    """Keeps the first two and the last `count` rows after every piece."""

    count: int
    needs: ClassVar = frozenset()
    breaks: ClassVar = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    window: ClassVar[int] = 0

    def keep(self, views):
        return [self._keep(view) for view in views]

    def _keep(self, view):
        heads, held = view.row.shape
        slot = torch.arange(held)
        return None if view.phase != "piece" else slot[(slot < 2) | (slot >= held - self.count)].expand(heads, -1)


@dataclass(frozen=True)
class Counts:
    """Notes how many visual tokens each piece has brought so far, and keeps all of them."""

    needs: ClassVar = frozenset()
    breaks: ClassVar = frozenset()
    lossless: ClassVar[bool] = True
    at: ClassVar = Encoded()

    def reduce(self, tokens, seen):
        seen.memory["counts"] = [*seen.memory.get("counts", []), len(tokens)]
        return tokens


def steps(family, clip):
    return [family.take_steps(clip, np.array([step])) for step in range(len(family.one_per_step(clip)))]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_token_of_a_stream_stands_where_it_stands_in_the_whole_prompt(kind):
    family = random_family(kind)
    clip = family.steps(clip_for(kind))
    whole, run = Run(family, Plan()), Run(family, Plan())
    _, expected = prefill(whole, clip, QUESTION)
    pieces = Pieces(run)
    for step in steps(family, clip):
        pieces.read(step)
    logits = pieces.ask(QUESTION)
    for name in ("position", "token", "cell", "row"):
        assert torch.equal(getattr(run.layout, name), getattr(whole.layout, name))
    assert run.next_position == whole.next_position
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert run.meter.visual_tokens == whole.meter.visual_tokens
    assert run.meter.prefill_flops == pytest.approx(whole.meter.prefill_flops)


@pytest.mark.parametrize("kind", KINDS)
def test_a_streaming_plan_that_drops_nothing_answers_as_the_whole_clip(kind):
    family, clip = random_family(kind), clip_for(kind)
    plain = generate(family, clip, QUESTION, max_new_tokens=8, ignore_eos=True)
    streamed = generate(family, clip, QUESTION, plan=Plan(LastRows(10_000)), max_new_tokens=8, ignore_eos=True)
    assert streamed.tokens == plain.tokens
    assert streamed.report.visual_tokens == plain.report.visual_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_questions_at_any_time_do_not_know_of_each_other(kind):
    family = random_family(kind)
    clip = family.steps(clip_for(kind))
    first, *later = steps(family, clip)
    asked, silent = Stream(family), Stream(family)
    for stream in (asked, silent):
        stream.see(first)
    early = asked.ask(QUESTION, max_new_tokens=6, ignore_eos=True)
    assert early.tokens == generate(family, first, QUESTION, max_new_tokens=6, ignore_eos=True).tokens
    for stream in (asked, silent):
        for step in later:
            stream.see(step)
    answers = [stream.ask("what color is the star ?", max_new_tokens=6, ignore_eos=True) for stream in (asked, silent)]
    assert answers[0].tokens == answers[1].tokens
    assert asked.kv_bytes == silent.kv_bytes
    assert answers[0].report.ttft_s > 0


def test_the_cache_of_an_endless_stream_is_bounded_by_the_plan():
    family = random_family("qwen2_5_vl")
    stream, sizes = Stream(family, Plan(LastRows(40))), []
    for minute in range(12):
        clip = clip_for("qwen2_5_vl")
        stream.see(family.take_steps(family.steps(clip), np.array([minute % 2])))
        sizes.append(stream.kv_bytes)
    assert sizes[-1] == sizes[4] == 42 * family.num_layers * 2 * family.config.num_key_value_heads * family.head_dim * 4
    assert stream.ask(QUESTION, max_new_tokens=3).tokens


def test_a_technique_that_needs_the_question_first_is_refused_in_a_stream():
    with pytest.raises(FitError, match="SnapKV was asked to act in a stream"):
        Stream(random_family("qwen2_5_vl"), Plan(SnapKV()))


def test_a_question_may_come_before_anything_is_seen():
    family = random_family("qwen2_5_vl")
    text = generate(family, None, QUESTION, max_new_tokens=5, ignore_eos=True)
    assert Stream(family).ask(QUESTION, max_new_tokens=5, ignore_eos=True).tokens == text.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_reducers_remember_what_they_noted_of_the_pieces_before(kind):
    family, one, other = random_family(kind), Counts(), Counts()
    stream = Stream(family, Plan(one, other))
    for piece in steps(family, family.steps(clip_for(kind)))[:2]:
        stream.see(piece)
    fork = stream.pieces.fork().run
    stream.see(piece)
    noted = [run.memory[id(one), -1]["counts"] for run in (stream.pieces.run, fork)]
    assert noted == [[noted[0][0]] * 3, [noted[0][0]] * 2]
    assert stream.pieces.run.memory[id(other), -1]["counts"] == noted[0]
