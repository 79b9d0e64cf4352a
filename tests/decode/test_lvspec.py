"""LVSpec: what is strict, what is rescued, and what it comes to at its ends."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from support import Copies, noise_clip, random_family
from torch.nn.functional import normalize, one_hot

from elvi.core.accept import Draft, accept_greedy
from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.lvspec import LVSpec, _Judge, relevance
from elvi.errors import BudgetError, FitError

QUESTION = "what color is the star ?"
WIDTH, WORDS = 16, 20


def judge(states: torch.Tensor, visual: torch.Tensor, special=frozenset(), **options) -> _Judge:
    """The rule over given hidden states [n, D] of the drafts and [m, D] of the picture."""
    run = SimpleNamespace(
        family=SimpleNamespace(special_tokens=special),
        watched=SimpleNamespace(hidden=torch.cat([torch.zeros(1, states.shape[1]), states])),
    )
    return _Judge(LVSpec(**options), run, normalize(visual, dim=-1))


def rows(best: list[int]) -> torch.Tensor:
    return one_hot(torch.tensor(best), WORDS).float()


def drawn(generator: torch.Generator, count: int, mismatch: float) -> tuple[Draft, torch.Tensor, torch.Tensor]:
    """A chain with planted mismatches, the target's logits, and hidden states that know nothing of them."""
    best = torch.randint(0, WORDS, (count + 1,), generator=generator)
    wrong = torch.rand(count, generator=generator) < mismatch
    ids = torch.where(wrong, (best[:-1] + 1) % WORDS, best[:-1]).tolist()
    return Draft.chain(ids), rows(best.tolist()), torch.randn(count, WIDTH, generator=generator)


def test_relevance_is_the_mean_of_the_largest_cosines():
    torch.manual_seed(0)
    hidden, visual = torch.randn(5, WIDTH), torch.randn(9, WIDTH)
    for top in (1, 3, 9, 50):
        score = relevance(hidden, normalize(visual, dim=-1), top)
        for row in range(5):
            cosines = sorted(
                (float(torch.cosine_similarity(hidden[row], each, dim=0)) for each in visual), reverse=True
            )
            assert float(score[row]) == pytest.approx(sum(cosines[:top]) / min(top, 9), abs=1e-5)
    shuffled = relevance(3.7 * hidden, normalize(0.2 * visual[torch.randperm(9)], dim=-1), 3)
    torch.testing.assert_close(shuffled, relevance(hidden, normalize(visual, dim=-1), 3))


@pytest.mark.parametrize("relaxation", [0.0, 0.25, 0.5, 0.7, 0.9, 1.0])
def test_the_strict_share_is_exact_for_every_length(relaxation):
    torch.manual_seed(1)
    for count in range(1, 24):
        states = torch.randn(count, WIDTH)
        technique = judge(states, torch.randn(4, WIDTH), relaxation=relaxation)
        score = torch.rand(count)
        strict = technique.strict(score)
        assert len(strict) == math.ceil(round((1 - relaxation) * count, 6))
        loose = set(range(count)) - strict
        assert not strict or not loose or min(score[list(strict)]) >= max(score[list(loose)])


def test_ties_are_strict_for_the_earlier_token():
    assert judge(torch.ones(6, WIDTH), torch.ones(2, WIDTH), relaxation=0.5).strict(torch.ones(6)) == {0, 1, 2}


def test_a_copy_of_a_visual_state_is_strict():
    torch.manual_seed(2)
    visual, states = torch.randn(30, WIDTH), torch.randn(10, WIDTH)
    states[[3, 8]] = 5 * visual[[7, 20]]
    technique = judge(states, visual, relaxation=0.8, top=1)
    assert technique.strict(relevance(states, technique.visual, 1)) == {3, 8}


def test_a_running_quantile_remembers_earlier_rounds():
    technique = judge(torch.ones(4, WIDTH), torch.ones(2, WIDTH), relaxation=0.5, threshold="quantile")
    assert technique.strict(torch.tensor([0.1, 0.2, 0.3, 0.4])) == {2, 3}
    assert technique.strict(torch.tensor([0.9, 0.8, 0.7, 0.6])) == {0, 1, 2, 3}
    assert technique.strict(torch.tensor([0.1, 0.2, 0.3, 0.4])) == {3}


def test_no_relaxation_and_no_window_is_strict_verification():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        draft, logits, states = drawn(generator, 10, 0.3)
        ours = judge(states, torch.randn(12, WIDTH), relaxation=0.0, window=0)
        assert ours(draft, logits) == accept_greedy(draft, logits)


def test_full_relaxation_accepts_all_but_special_tokens():
    generator = torch.Generator().manual_seed(4)
    for _ in range(50):
        draft, logits, states = drawn(generator, 10, 0.5)
        visual = torch.randn(12, WIDTH)
        assert judge(states, visual, relaxation=1.0)(draft, logits).nodes == list(range(10))
        best = logits.argmax(-1).tolist()
        wrong = [place for place in range(10) if draft.ids[place] != best[place]]
        if wrong:
            path = judge(states, visual, frozenset({draft.ids[wrong[0]]}), relaxation=1.0)(draft, logits)
            assert path.nodes == list(range(wrong[0]))


@pytest.mark.parametrize("options", [{"threshold": "rank"}, {"threshold": "quantile"}, {"shift": "draft"}])
def test_more_relaxation_or_a_wider_window_never_shortens_a_round(options):
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        draft, logits, states = drawn(generator, 10, 0.4)
        visual = torch.randn(12, WIDTH)
        for field, values in (("relaxation", (0.0, 0.3, 0.7, 1.0)), ("window", (0, 1, 3, 9))):
            lengths = [len(judge(states, visual, **{field: value}, **options)(draft, logits).nodes) for value in values]
            assert lengths == sorted(lengths)


def test_a_token_out_of_place_is_rescued_within_the_window():
    """The paper's kind of example: the same words in another order. Word 1 is drafted two places early."""
    draft, logits = Draft.chain([1, 2, 3]), rows([2, 3, 1, 4])
    states, visual = torch.ones(3, WIDTH), torch.ones(2, WIDTH)

    def accepted(**options):
        return judge(states, visual, relaxation=0.0, **options)(draft, logits).nodes

    assert accepted(window=0) == []
    assert accepted(window=1) == []  # 1 is wanted two places on
    assert accepted(window=2) == [0, 1, 2]
    assert accepted(window=1, shift="draft") == [0, 1]  # 2 and 3 are drafted one place on; 1 two places before
    assert accepted(window=2, shift="draft") == [0, 1, 2]


def test_without_a_picture_everything_is_strict():
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        draft, logits, states = drawn(generator, 6, 0.4)
        ours = judge(states, torch.empty(0, WIDTH), relaxation=1.0, window=5)
        assert ours(draft, logits) == accept_greedy(draft, logits)


def exact(strict: int, mismatch: float) -> float:
    """Mean accepted tokens when exactly `strict` of ten tokens, at random, have to match."""
    ways = math.comb(10, strict)
    return sum(
        math.comb(i, x) * math.comb(10 - i, strict - x) / ways * (1 - mismatch) ** x
        for i in range(1, 11)
        for x in range(max(0, strict - 10 + i), min(i, strict) + 1)
    )


@pytest.mark.parametrize(("relaxation", "mismatch"), [(0.0, 0.21), (0.7, 0.21), (0.9, 0.21), (0.5, 0.4)])
def test_accepted_tokens_follow_the_law_where_relevance_knows_nothing_of_mismatches(relaxation, mismatch):
    """The law of independent relaxation is at most 3 % off at the paper's rates; a fixed share is below it."""
    generator, total, rounds = torch.Generator().manual_seed(7), 0, 2500
    visual = torch.randn(12, WIDTH, generator=generator)
    for _ in range(rounds):
        draft, logits, states = drawn(generator, 10, mismatch)
        total += len(judge(states, visual, relaxation=relaxation, window=0)(draft, logits).nodes)
    assert total / rounds == pytest.approx(exact(10 - round(10 * relaxation), mismatch), rel=0.03)
    if mismatch == 0.21:
        law = sum((1 - (1 - relaxation) * mismatch) ** i for i in range(1, 11))
        assert total / rounds == pytest.approx(law, rel=0.03)


def test_nodes_of_a_tree_are_ranked_together_and_windows_follow_first_children():
    draft = Draft([5, 6, 7, 8], [-1, -1, 0, 1])
    logits = rows([9, 5, 0, 1, 0])  # nothing matches; 5 is wanted right after the first child
    states, visual = torch.eye(4, WIDTH), torch.eye(4, WIDTH)[:2]
    strict = judge(states, visual, relaxation=0.5, top=1, window=0)
    assert strict.strict(relevance(states, strict.visual, 1)) == {0, 1}
    assert strict(draft, logits).nodes == []
    assert judge(states, visual, relaxation=0.5, top=1, window=1)(draft, logits).nodes == [0, 2]


@pytest.mark.parametrize("source", ["hidden", "embedding"])
@torch.inference_mode()
def test_visual_states_are_the_pictures_own(source):
    family, technique = random_family("qwen2_5_vl"), LVSpec(visual_source=source, layer=1)
    run = Run(family, Plan(Copies(()), technique))
    prefill(run, noise_clip(1), QUESTION)
    outputs = []
    handle = family.text.layers[1 if source == "hidden" else 0].register_forward_hook(
        lambda _, given, out: outputs.append((given[0] if source == "embedding" else out)[0])
    )
    try:
        prefill(Run(family, Plan()), noise_clip(1), QUESTION)
    finally:
        handle.remove()
    expected = normalize(outputs[0][run.layout.visual], dim=-1)
    torch.testing.assert_close(technique.judge(run, None).visual, expected)


def test_a_run_at_the_strict_end_is_plain_decoding_and_at_the_loose_end_the_drafters():
    family, clip = random_family("qwen2_5_vl"), noise_clip(1)
    options = {"max_new_tokens": 16, "ignore_eos": True}
    plain = generate(family, clip, QUESTION, **options)
    drafter = Copies(tuple(plain.tokens), shift=1, depth=4)
    strict = generate(family, clip, QUESTION, plan=Plan(drafter, LVSpec(relaxation=0.0, window=0)), **options)
    loose = generate(family, clip, QUESTION, plan=Plan(drafter, LVSpec(relaxation=1.0)), **options)
    assert strict.tokens == plain.tokens
    assert sum(strict.report.accepted) == 0
    assert loose.report.accepted == loose.report.drafted == [4, 4, 4]
    assert (strict.report.lossless, loose.report.lossless) == (False, False)


def test_misuse_is_refused_in_a_sentence():
    for options in ({"relaxation": 1.2}, {"top": 0}, {"window": -1}, {"threshold": "best"}, {"shift": "both"}):
        with pytest.raises(BudgetError, match=r"LVSpec was asked for .*: use "):
            LVSpec(**options)
    with pytest.raises(FitError, match="LVSpec was asked to look at layer 7, but random-qwen has 3 layers"):
        Plan(Copies(()), LVSpec(layer=7)).check(random_family("qwen2_5_vl"))
