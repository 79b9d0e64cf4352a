"""Codecs in the loop: what was packed stays, and rounds of decoding end where more is packed."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, in_rounds, prefilled, stepwise
from support import Copies, noise_clip, random_family

from elvi.core.bits import Pair
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.store import Kept, LayerStore
from elvi.core.views import Fetched


@dataclass(frozen=True)
class Coarse:
    """Numbers to the nearest tenth (stands for codes)."""

    tenths: torch.Tensor

    @property
    def nbytes(self):
        return self.tenths.nbytes

    def restore(self):
        return self.tenths / 10


@dataclass(frozen=True)
class Tenths:
    """Packs all that is in full precision when it acts: after the prompt, and then every so many rows."""

    every: int | None = 5
    window: int = 0
    entering: bool = False
    seen: list = field(default_factory=list)
    needs = breaks = frozenset()
    lossless = False

    def pack(self, views):
        self.seen.append([(view.phase, view.query.shape, view.entering) for view in views])
        for view in views:
            keys, values = view.store.rows.read()
            slots = torch.arange(keys.shape[1]).expand(keys.shape[0], -1)
            view.store.pack(Pair(Coarse((keys * 10).round()), Coarse((values * 10).round())), slots)
        return self.every


@torch.inference_mode()
def test_a_codec_acts_after_the_prompt_and_after_as_many_rows_as_it_says():
    technique = Tenths(5)
    run = prefilled(technique)
    prompt = len(run.layout)
    stepwise(run)
    assert [views[0][0] for views in technique.seen] == ["prompt", "answer", "answer"]
    for layer in run.store.layers:
        assert [packed.keys.tenths.shape[1] for packed in layer.packed] == [prompt, 5, 5]
        assert layer.row[0].tolist() == list(range(prompt + len(TOKENS)))
        assert layer.rows.longest == len(TOKENS) - 10
        assert layer.held_bytes == (prompt + len(TOKENS)) * 2 * 2 * 32 * 4


@torch.inference_mode()
def test_a_codec_that_says_nothing_acts_once():
    technique = Tenths(None)
    run = prefilled(technique)
    stepwise(run)
    assert len(technique.seen) == 1
    assert run.depth(9) == 9


@torch.inference_mode()
def test_what_was_packed_is_never_packed_again():
    run = prefilled(Tenths(3))
    before = run.store.layers[1].packed[0]
    stepwise(run)
    assert run.store.layers[1].packed[0] is before


@pytest.mark.parametrize("every", [1, 2, 5, 7])
@torch.inference_mode()
def test_rounds_give_the_logits_of_single_steps(every):
    single, rounds = prefilled(Tenths(every)), prefilled(Tenths(every))
    torch.testing.assert_close(in_rounds(rounds), stepwise(single), atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(rounds.store.layers, single.store.layers):
        assert [packed.nbytes for packed in mine.packed] == [packed.nbytes for packed in theirs.packed]


@torch.inference_mode()
def test_a_round_past_the_place_where_rows_are_packed_would_read_other_rows():
    single, beyond = prefilled(Tenths(2)), prefilled(Tenths(2))
    beyond.due = None
    assert (in_rounds(beyond) - stepwise(single)).abs().max() > 1e-3


@pytest.mark.parametrize("every", [1, 3, 4])
def test_speculation_emits_what_plain_decoding_emits_and_never_drafts_past_packing(every):
    family, clip, options = random_family("llava"), noise_clip(1), {"max_new_tokens": 14, "ignore_eos": True}
    plain = generate(family, clip, plan=Plan(Tenths(every)), **options)
    fast = generate(family, clip, plan=Plan(Tenths(every), Copies(tuple(plain.tokens), depth=6)), **options).report
    assert max(fast.drafted) == every - 1
    assert fast.forwards == -(-13 // every)
    for shift in (0, 1):
        plan = Plan(Tenths(every), Copies(tuple(plain.tokens), shift=shift, depth=6))
        assert generate(family, clip, plan=plan, **options).tokens == plain.tokens


@dataclass(frozen=True)
class Attentive(Copies):
    """Asserts that it hears of nothing but its drafts."""

    def start(self, run, clip, sampler):
        return Listener(self)


class Listener:
    def __init__(self, copies):
        self.copies, self.waiting = copies, False

    def propose(self, ids, limit):
        self.waiting = True
        return self.copies.propose(ids, limit)

    def heard(self, path):
        assert self.waiting
        self.waiting = False


def test_a_drafter_that_was_not_asked_hears_nothing():
    plan = Plan(Tenths(2), Attentive((1,) * 20))
    report = generate(random_family("llava"), noise_clip(1), plan=plan, max_new_tokens=10, ignore_eos=True).report
    assert 0 in report.drafted
    assert 1 in report.drafted


@torch.inference_mode()
def test_codecs_see_the_last_queries_and_what_entered_the_layers():
    technique = Tenths(6, window=4, entering=True)
    run = prefilled(technique)
    stepwise(run)
    after_prompt, later = technique.seen[:2]
    hidden = [entering.hidden for _, _, entering in after_prompt]
    for phase, shape, entering in after_prompt:
        assert phase == "prompt"
        assert shape[1:] == (4, 32)
        assert torch.equal(entering.row, run.layout.row)
    layers = run.family.text.layers
    assert all(not torch.equal(hidden[0], other) for other in hidden[1:])
    text = ~run.layout.visual
    assert torch.equal(hidden[0][text], run.family.text.embed_tokens(run.layout.token[text]))
    assert len(hidden) == len(layers)
    assert all(entering is None and not shape.numel() for _, shape, entering in later)


@torch.inference_mode()
def test_nothing_is_noted_for_codecs_that_do_not_ask():
    technique = Tenths()
    prefilled(technique)
    assert all(entering is None and not shape.numel() for _, shape, entering in technique.seen[0])


@dataclass(frozen=True)
class EveryOther:
    """Every other row goes to the second tier, and all of that is fetched."""

    needs = breaks = frozenset()
    lossless = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = 0

    def keep(self, views):
        slots = torch.arange(views[0].row.shape[1]).expand(2, -1)
        return [Kept(slots[:, ::2], far=slots[:, 1::2])] * len(views)

    def fetch(self, view):
        return Fetched([torch.arange(length).expand(len(view.query_row), -1) for length in view.store.far.lengths])


@torch.inference_mode()
def test_packed_rows_are_read_beside_those_of_a_second_tier():
    run = prefilled(EveryOther(), Tenths(5))
    copied = prefilled()
    for mine, layer in zip(run.store.layers, copied.store.layers):
        order = torch.cat([mine.row, mine.far.row], dim=1).argsort(dim=1)[..., None].expand(-1, -1, 32)
        both = [torch.cat([near, far], dim=1).gather(1, order) for near, far in zip(mine.read(), mine.far.read())]
        layer.rows.keys, layer.rows.values = both
    first, *rest = TOKENS[:4]
    torch.testing.assert_close(
        in_rounds(run, tokens=TOKENS[:4]), stepwise(copied, [first, *rest]), atol=1e-4, rtol=1e-4
    )


def test_a_fork_keeps_what_was_packed_when_it_was_made(device):
    store = LayerStore()
    rows = torch.randn(2, 6, 4, device=device)
    store.write(rows, rows, torch.arange(6, device=device))
    store.commit()
    slots = torch.arange(2, device=device).expand(2, -1)
    store.pack(Pair(Coarse(rows[:, :2]), Coarse(rows[:, :2])), slots)
    fork = store.fork()
    store.pack(Pair(Coarse(rows[:, 2:4]), Coarse(rows[:, 2:4])), slots)
    assert (len(store.packed), len(fork.packed)) == (2, 1)
    assert store.row[0].tolist() == fork.row[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert fork.rows.longest == 4
    assert torch.equal(fork.read()[0][:, 2:], rows[:, 2:])
