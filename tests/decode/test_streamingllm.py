"""StreamingLLM against a full cache behind a sliding mask, one token at a time and in drafts."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, held, prefilled, stepwise

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.seams import Layer
from elvi.decode.snapkv import SnapKV
from elvi.decode.streamingllm import StreamingLLM
from elvi.errors import BudgetError


@dataclass(frozen=True)
class Sliding:
    """The oracle: the whole cache is kept, and each generated row reads the sinks and the rows up to itself."""

    sinks: int
    recent: int
    needs = breaks = frozenset()
    lossless = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True

    def attend(self, view):
        slot, query = view.row[0], view.query_row[:, None]
        return ((slot < self.sinks) | (slot > query - self.recent))[None]


@pytest.mark.parametrize(("sinks", "recent"), [(4, 16), (0, 7), (2, 1), (150, 5), (4, 100)])
@torch.inference_mode()
def test_decoding_equals_a_full_cache_behind_a_sliding_mask(sinks, recent):
    run, full = prefilled(StreamingLLM(sinks, recent)), prefilled(Sliding(sinks, recent))
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_cache_is_the_sinks_and_the_last_rows_at_every_step():
    run = prefilled(StreamingLLM(num_sinks=4, recent=6))
    for step, token in enumerate(TOKENS):
        verify(run, token, Draft())
        assert run.store.lengths == [4 + 6] * 3  # the new row included
        run.commit([0])
        last = len(run.layout) + step
        assert all(row.tolist() == [0, 1, 2, 3, *range(last - 4, last + 1)] for layer in held(run) for row in layer)


@torch.inference_mode()
def test_short_texts_are_read_whole():
    run = prefilled(StreamingLLM(num_sinks=4, recent=1000))
    assert torch.equal(stepwise(run), stepwise(prefilled()))


@pytest.mark.parametrize("recent", [1, 4, 40])
@pytest.mark.parametrize("others", [(), (SnapKV(keep_ratio=0.3),)])
@torch.inference_mode()
def test_a_draft_longer_than_the_window_gives_the_logits_of_single_steps(recent, others):
    technique = StreamingLLM(num_sinks=3, recent=recent)
    single, drafted = prefilled(technique, *others), prefilled(technique, *others)
    first, *rest = TOKENS
    logits = verify(drafted, first, Draft.chain(rest))
    torch.testing.assert_close(logits, stepwise(single), atol=1e-4, rtol=1e-4)
    drafted.commit()
    assert all(torch.equal(one, two) for a, b in zip(held(drafted), held(single)) for one, two in zip(a, b))


@torch.inference_mode()
def test_branches_of_a_draft_do_not_shorten_each_others_windows():
    technique = StreamingLLM(num_sinks=3, recent=5)
    tree = Draft([9, 8, 7, 6, 5, 4], [-1, -1, 1, 1, 3, 4])  # branches 9 | 8 -> 7 | 8 -> 6 -> 5 -> 4
    single, drafted = prefilled(technique), prefilled(technique)
    logits = verify(drafted, 10, tree)
    path = [0, 2, 4, 5, 6]
    torch.testing.assert_close(logits[path], stepwise(single, [10, 8, 6, 5, 4]), atol=1e-4, rtol=1e-4)
    drafted.commit(path)
    again = [drafted, single]
    torch.testing.assert_close(*(stepwise(run, TOKENS[:3]) for run in again), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_rejected_draft_leaves_no_trace():
    technique = StreamingLLM(num_sinks=3, recent=5)
    single, drafted = prefilled(technique), prefilled(technique)
    verify(drafted, TOKENS[0], Draft.chain([1, 2, 3, 4, 5, 6, 7]))
    drafted.commit([0])
    stepwise(single, TOKENS[:1])
    torch.testing.assert_close(stepwise(drafted, TOKENS[1:]), stepwise(single, TOKENS[1:]), atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class EveryThird:
    """Leaves gaps in the row numbers: two of three visual tokens go at layer 1."""

    needs = breaks = frozenset()
    lossless = False
    at = Layer(1)

    def reduce(self, tokens, seen):
        return tokens.keep(~tokens.visual | (tokens.row % 3 == 0))


@torch.inference_mode()
def test_recent_counts_tokens_that_are_held_not_rows_of_the_unpruned_prompt():
    whole = prefilled(EveryThird())
    run = prefilled(EveryThird(), StreamingLLM(num_sinks=4, recent=30))
    for kept, rows in zip(held(run), held(whole)):
        assert kept[0].tolist() == [*rows[0][:4].tolist(), *rows[0][-29:].tolist()]
    first = verify(run, TOKENS[0], Draft())
    drafted = verify(prefilled(EveryThird(), StreamingLLM(num_sinks=4, recent=30)), TOKENS[0], Draft.chain(TOKENS[1:]))
    torch.testing.assert_close(drafted[:1], first, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_bytes_are_constant_however_long_the_answer():
    run = prefilled(StreamingLLM(num_sinks=4, recent=16))
    sizes = set()
    for token in TOKENS:
        sizes.add(run.store.nbytes)
        stepwise(run, [token])
    assert sizes == {(4 + 15) * 3 * 2 * 32 * 2 * 4}


@pytest.mark.parametrize("fields", [{"num_sinks": -1}, {"recent": 0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(BudgetError, match=next(iter(fields))):
        StreamingLLM(**fields)
