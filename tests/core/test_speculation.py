"""The loop of draft, verify, accept, commit, with drafters that know the answer and spoil parts of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support import FAMILIES, noise_clip, random_family

from elvi.core.accept import Draft, Sampler
from elvi.core.generate import decode, forward, generate, prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError

NEW = 12
WORDS = ["what", "color", "is", "the", "star", "?", "how", "many", "objects", "are", "there", "which", "way", "move"]


@dataclass(frozen=True)
class Parrot:
    """Drafts the answer it is given, each token wrong with chance `wrong`; twins: every level has a wrong sibling."""

    answer: tuple[int, ...]
    depth: int = 4
    wrong: float = 0.3
    twins: bool = False
    needs = breaks = frozenset()
    lossless = True

    def start(self, run, clip, sampler):
        return Session(self, np.random.default_rng(0), run.family.vocabulary)


class Session:
    def __init__(self, parrot, random, vocabulary):
        self.parrot, self.random, self.vocabulary = parrot, random, vocabulary

    def propose(self, ids, limit):
        known = self.parrot.answer[len(ids) : len(ids) + min(self.parrot.depth, limit)]
        chain = [token if self.random.random() > self.parrot.wrong else self.other(token) for token in known]
        if not self.parrot.twins:
            return Draft.chain(chain)
        # level by level: a wrong token first, then the one that continues the chain
        tree = [token for right in chain for token in (self.other(right), right)]
        return Draft(tree, [2 * (node // 2) - 1 for node in range(len(tree))])

    def other(self, token):
        return int((token + self.random.integers(1, self.vocabulary)) % self.vocabulary)

    def heard(self, path):
        """The answer was known before."""


def question(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 4 + seed % 5))


def picture(kind: str, seed: int):
    return None if kind == "llama" else noise_clip(1, seed=seed, still=seed % 2 == 1)


def check_equal(kind: str, seed: int, twins: bool) -> tuple[int, int]:
    """Assert that speculation emits what plain decoding does; how much was drafted and accepted."""
    family, clip, options = random_family(kind), picture(kind, seed), {"max_new_tokens": NEW, "ignore_eos": True}
    plain = generate(family, clip, question(seed), **options)
    plan = Plan(Parrot(tuple(plain.tokens), depth=1 + seed % 5, twins=twins))
    fast = generate(family, clip, question(seed), plan=plan, **options)
    assert fast.tokens == plain.tokens
    assert sum(fast.report.accepted) + fast.report.forwards + 1 == NEW
    return sum(fast.report.drafted), sum(fast.report.accepted)


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_speculation_emits_what_plain_decoding_emits(kind, twins):
    drafted, accepted = np.sum([check_equal(kind, seed, twins) for seed in range(5)], axis=0)
    assert 0 < accepted < drafted


@pytest.mark.slow
@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_speculation_emits_what_plain_decoding_emits_on_many_prompts(kind, twins):
    for seed in range(100, 125):
        check_equal(kind, seed, twins)


def decoded(kind: str, plan: Plan) -> tuple[Run, list[int]]:
    run, sampler = Run(random_family(kind), plan), Sampler()
    clip, logits = prefill(run, picture(kind, 3), question(3))
    ids = [sampler.pick(logits)]
    decode(run, ids, clip, sampler, NEW, set())
    return run, ids


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_the_cache_ends_as_after_plain_decoding(kind, twins):
    plain, answer = decoded(kind, Plan())
    fast, _ = decoded(kind, Plan(Parrot(tuple(answer), twins=twins)))
    for mine, theirs in zip(fast.store.layers, plain.store.layers):
        assert torch.equal(mine.row, theirs.row)
        for quick, slow in zip(mine.read(), theirs.read()):
            torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-5)


TREE = Draft([11, 12, 13, 14, 15, 16], [-1, -1, 0, 1, 1, 3])


def started(kind: str) -> Run:
    run = Run(random_family(kind), Plan())
    prefill(run, picture(kind, 0), question(0))
    return run


def one_by_one(kind: str, ids: list[int]) -> torch.Tensor:
    run = started(kind)
    for token in ids:
        logits = forward(run, [token], [0])
        run.commit()
    return logits[-1]


@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_a_tree_is_verified_as_its_branches_are_one_by_one(kind):
    logits = verify(started(kind), 7, TREE)
    for row, branch in enumerate([[7], [7, 11], [7, 12], [7, 11, 13], [7, 12, 14], [7, 12, 15], [7, 12, 14, 16]]):
        torch.testing.assert_close(logits[row], one_by_one(kind, branch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_after_a_branch_is_committed_nothing_of_the_others_is_left(kind):
    run = started(kind)
    verify(run, 7, TREE)
    run.commit([0, 2, 4, 6])
    torch.testing.assert_close(forward(run, [9], [0])[0], one_by_one(kind, [7, 12, 14, 16, 9]), atol=1e-5, rtol=1e-5)


def plain_tokens(**options) -> list[int]:
    return generate(random_family("llama"), None, question(1), **options).tokens


def test_an_end_token_inside_a_block_is_the_last_one_emitted(monkeypatch):
    free = plain_tokens(max_new_tokens=NEW, ignore_eos=True)
    end = next(token for place, token in enumerate(free) if place > 1 and token not in free[:place])
    monkeypatch.setattr(random_family("llama"), "eos", {end})
    plan = Plan(Parrot(tuple(free), depth=8, wrong=0.0))
    out = generate(random_family("llama"), None, question(1), plan=plan, max_new_tokens=NEW)
    assert out.tokens == free[: free.index(end) + 1]
    assert out.report.forwards == 1
    assert sum(out.report.accepted) + out.report.forwards + 1 == len(out.tokens)


@pytest.mark.parametrize("length", [1, 2, 3, 6, 7])
def test_the_length_limit_holds_inside_a_block(length):
    free = plain_tokens(max_new_tokens=NEW, ignore_eos=True)
    plan = Plan(Parrot(tuple(free), depth=4, wrong=0.0))
    options = {"plan": plan, "max_new_tokens": length, "ignore_eos": True}
    assert generate(random_family("llama"), None, question(1), **options).tokens == free[:length]


def test_a_drafter_that_proposes_nothing_leaves_plain_decoding():
    plain = plain_tokens(max_new_tokens=NEW, ignore_eos=True)
    options = {"plan": Plan(Parrot((), depth=4)), "max_new_tokens": NEW, "ignore_eos": True}
    out = generate(random_family("llama"), None, question(1), **options)
    assert out.tokens == plain
    assert (out.report.forwards, out.report.accepted) == (NEW - 1, [0] * (NEW - 1))


def test_right_drafts_save_forwards():
    free = plain_tokens(max_new_tokens=13, ignore_eos=True)
    options = {"plan": Plan(Parrot(tuple(free), depth=3, wrong=0.0)), "max_new_tokens": 13, "ignore_eos": True}
    report = generate(random_family("llama"), None, question(1), **options).report
    assert (report.forwards, report.accepted, report.acceptance_length) == (3, [3, 3, 3], 4.0)


def test_a_technique_may_refuse_a_model_before_anything_runs():
    @dataclass(frozen=True)
    class Picky(Parrot):
        answer: tuple[int, ...] = ()

        def fit(self, family):
            raise FitError(f"{family.name} will not do.")

    with pytest.raises(FitError, match="random-llama will not do"):
        Plan(Picky()).check(random_family("llama"))
