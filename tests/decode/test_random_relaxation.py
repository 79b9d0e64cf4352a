"""Random relaxation: the law it follows, and what it never lets through."""

from __future__ import annotations

import pytest
import torch
from support import Copies, noise_clip, random_family

import elvi
from elvi.core.accept import Draft, Sampler, accept_greedy
from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.random_relaxation import RandomRelaxation
from elvi.errors import BudgetError, PlanError

QUESTION = "what color is the star ?"
WORDS, CHAIN = 12, 10


def rule(relaxation: float, seed: int = 0):
    run = Run(random_family("llama"), Plan(RandomRelaxation(relaxation)))
    return RandomRelaxation(relaxation).judge(run, Sampler(seed=seed))


def planted(generator: torch.Generator, mismatch: float) -> tuple[Draft, torch.Tensor]:
    """A chain, each of its tokens another than the target's with the given chance; no special tokens among them."""
    special = max(random_family("llama").special_tokens)
    best = torch.randint(special + 1, special + 1 + WORDS, (CHAIN + 1,), generator=generator)
    wrong = torch.rand(CHAIN, generator=generator) < mismatch
    ids = torch.where(wrong, special + 1 + (best[:-1] - special) % WORDS, best[:-1])
    return Draft.chain(ids.tolist()), torch.nn.functional.one_hot(best, special + 1 + WORDS).float()


def mean_accepted(relaxation: float, mismatch: float, rounds: int = 3000) -> float:
    judge, generator = rule(relaxation), torch.Generator().manual_seed(1)
    return sum(len(judge(*planted(generator, mismatch)).nodes) for _ in range(rounds)) / rounds


@pytest.mark.parametrize("mismatch", [0.1, 0.21, 0.5])
@pytest.mark.parametrize("relaxation", [0.0, 0.5, 0.75])
def test_accepted_tokens_follow_the_law(relaxation, mismatch):
    law = sum((1 - (1 - relaxation) * mismatch) ** i for i in range(1, CHAIN + 1))
    assert mean_accepted(relaxation, mismatch) == pytest.approx(law, rel=0.03)


def test_without_relaxation_it_is_strict_and_with_all_of_it_everything_stands():
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        draft, logits = planted(generator, 0.3)
        assert rule(0.0)(draft, logits) == accept_greedy(draft, logits)
        assert rule(1.0)(draft, logits).nodes == list(range(CHAIN))


def test_a_seed_repeats_and_exact_matches_draw_nothing():
    draft, logits = planted(torch.Generator().manual_seed(3), 0.5)
    longer = Draft.chain([int(logits[0].argmax()), *draft.ids])
    shifted = torch.cat([logits[:1], logits])
    for seed in range(20):
        alone = rule(0.5, seed)(draft, logits).nodes
        assert rule(0.5, seed)(draft, logits).nodes == alone
        assert rule(0.5, seed)(longer, shifted).nodes == [0, *(node + 1 for node in alone)]


def test_ends_are_neither_drafted_into_the_text_nor_skipped():
    family = random_family("llama")
    (end, *_), word = sorted(family.eos), max(family.special_tokens) + 1
    for drafted, wanted in ((end, word), (word, end)):
        logits = torch.nn.functional.one_hot(torch.tensor([wanted, word]), family.vocabulary).float()
        assert rule(1.0)(Draft.chain([drafted]), logits).next == wanted
        assert rule(1.0)(Draft.chain([drafted]), logits).nodes == []


def answer(plan: Plan, **options):
    options = {"max_new_tokens": 24, "ignore_eos": True, **options}
    return generate(random_family("qwen2_5_vl"), noise_clip(1), QUESTION, plan=plan, **options)


def test_with_all_of_it_the_text_is_the_drafters_with_a_token_of_the_target_after_every_chain():
    plain = answer(Plan())
    drafter = Copies(tuple(plain.tokens), shift=1, depth=3)  # always wrong, never special
    out = answer(Plan(drafter, RandomRelaxation(1.0)), max_new_tokens=17)
    assert out.report.accepted == [3] * 4
    assert not out.report.lossless
    drafted = [place for place in range(1, 17) if place % 4]
    assert all(out.tokens[place] == drafter.token(place) for place in drafted)


@torch.inference_mode()
def test_the_cache_holds_exactly_what_was_emitted():
    """The logits after a relaxed answer are those after reading the same tokens one by one."""
    from elvi.core.generate import decode, forward

    family, plain = random_family("qwen2_5_vl"), answer(Plan())
    run = Run(family, Plan(Copies(tuple(plain.tokens), shift=1, depth=3), RandomRelaxation(0.5)))
    clip, logits = prefill(run, noise_clip(1), QUESTION)
    ids = [int(logits.argmax())]
    decode(run, ids, clip, Sampler(seed=4), 14, set())
    fresh = Run(family, Plan())
    prefill(fresh, noise_clip(1), QUESTION)
    forward(fresh, ids[:-1], list(range(len(ids) - 1)))
    fresh.commit()
    assert run.store.lengths == fresh.store.lengths
    torch.testing.assert_close(forward(run, [ids[-1]], [0]), forward(fresh, [ids[-1]], [0]), atol=1e-4, rtol=1e-4)


def test_misuse_is_refused_in_a_sentence():
    with pytest.raises(BudgetError, match=r"relaxation=1.5, which is out of range"):
        RandomRelaxation(1.5)
    with pytest.raises(PlanError, match="RandomRelaxation decides which drafts stand, but nothing in the plan drafts"):
        Plan(RandomRelaxation()).check(random_family("llama"))
    with pytest.raises(BudgetError, match=r"RandomRelaxation relaxes greedy decoding .* use temperature 0"):
        answer(Plan(elvi.technique("specvlm")(), RandomRelaxation()), temperature=1.0)
