"""Draft & Verify: the target's own words whatever is skipped, and the threshold that follows the acceptance rate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Path, Sampler
from elvi.core.generate import decode, forward, generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Skip
from elvi.decode.draft_and_verify import DraftAndVerify, SelfDrafting
from elvi.errors import BudgetError, FitError

QUESTION = "what color is the star ?"
NEW = 14
SETS = [("none", "none"), ("0", "none"), ("0+1+2", "none"), ("none", "0+1+2"), ("0+1+2", "0+1+2"), ("1", "1+2")]


def answer(kind: str, plan: Plan | None = None, **options):
    clip = None if kind == "llama" else noise_clip(1, still=kind == "llava")
    options = {"max_new_tokens": NEW, "ignore_eos": True, **options}
    return generate(random_family(kind), clip, QUESTION, plan=plan, **options)


def skipping(attention: str, mlp: str, **options) -> Plan:
    return Plan(DraftAndVerify(skip_attention=attention, skip_mlp=mlp, **options))


@pytest.mark.parametrize(("attention", "mlp"), SETS)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
def test_greedy_tokens_are_those_of_plain_decoding_whatever_is_skipped(kind, attention, mlp):
    plain = answer(kind).tokens
    for options in ({"threshold": 0.0}, {"threshold": 0.3}, {"num_draft": 1}, {"num_draft": 0}):
        assert answer(kind, skipping(attention, mlp, **options)).tokens == plain
    for length in (1, 2, 3):
        assert answer(kind, skipping(attention, mlp), max_new_tokens=length).tokens == plain[:length]


def test_with_nothing_skipped_every_draft_stands_and_drafts_grow_to_their_limit():
    report = answer("llama", skipping("none", "none", num_draft=4, threshold=0.0), max_new_tokens=21).report
    assert report.accepted == report.drafted == [4, 4, 4, 4]


def test_with_everything_skipped_drafts_fall_and_get_short():
    report = answer("llama", skipping("0+1+2", "0+1+2", threshold=0.5, epsilon=0.5), max_new_tokens=25).report
    assert sum(report.accepted) <= 0.3 * sum(report.drafted)
    assert report.drafted[-2] == 1


@pytest.mark.parametrize(("attention", "mlp"), SETS)
@torch.inference_mode()
def test_the_cache_ends_as_after_plain_decoding(attention, mlp):
    caches = []
    for plan in (Plan(), skipping(attention, mlp, threshold=0.0)):
        run, sampler = Run(random_family("qwen2_5_vl"), plan), Sampler()
        clip, logits = prefill(run, noise_clip(1), QUESTION)
        ids = [sampler.pick(logits)]
        decode(run, ids, clip, sampler, NEW, set())
        caches.append(run.store.layers)
    for mine, theirs in zip(*caches):
        assert torch.equal(mine.row, theirs.row)
        for quick, slow in zip(mine.read(), theirs.read()):
            torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-5)


def session(**options) -> SelfDrafting:
    run = SimpleNamespace(family=random_family("llama"))
    return SelfDrafting(DraftAndVerify(**options), run, Sampler())


def test_the_threshold_follows_the_recurrence():
    drafting = session(num_draft=4, threshold=0.8)
    rate, gamma = 0.0, 0.8
    for accepted, drafted in [(0, 1), (4, 4), (4, 4), (3, 3), (3, 3), (3, 3), (2, 2), (1, 4), (0, 0), (4, 4)]:
        drafting.drafted = drafted
        drafting.heard(Path(list(range(accepted)), 5))
        if drafted:
            rate = 0.5 * rate + 0.5 * accepted / drafted
            wanted = gamma + 0.01 if rate < 0.9 else gamma if drafted == 4 else gamma - 0.01
            gamma = 0.9 * gamma + 0.1 * wanted
        assert drafting.rate == pytest.approx(rate)
        assert drafting.threshold == pytest.approx(gamma)


def test_a_fixed_threshold_stays():
    drafting = session(adaptive=False)
    drafting.drafted = 3
    drafting.heard(Path([0], 5))
    assert drafting.threshold == 0.8


@torch.inference_mode()
def test_drafting_stops_after_the_first_unsure_token():
    run = Run(random_family("llama"), Plan())
    prefill(run, None, QUESTION)
    technique = DraftAndVerify(skip_attention="1", skip_mlp="none", threshold=0.0)
    whole = technique.start(run, None, Sampler()).propose([11], 8).ids
    sure = []
    for depth, token in enumerate([11, *whole[:-1]]):
        sure.append(float(forward(run, [token], [depth], skip=Skip(frozenset({1})))[0].softmax(-1).max()))
    run.rollback()
    for threshold in (0.1, 0.3, 0.6, 1.0):
        stop = next((place for place, chance in enumerate(sure) if chance < threshold), 7)
        session = DraftAndVerify(skip_attention="1", skip_mlp="none", threshold=threshold).start(run, None, Sampler())
        assert session.propose([11], 8).ids == whole[: stop + 1]


def second_token_law(family, temperature: float) -> torch.Tensor:
    run = Run(family, Plan())
    _, logits = prefill(run, None, QUESTION)
    tree = torch.eye(family.vocabulary, dtype=torch.bool)
    second = forward(run, list(range(family.vocabulary)), [0] * family.vocabulary, tree)
    return (logits / temperature).softmax(-1) @ (second / temperature).softmax(-1)


@torch.inference_mode()
def distance(draft_law: str, trials: int = 240) -> tuple[float, int]:
    """Chi-square of the second token against its exact law in five cells (4 degrees of freedom); drafts accepted."""
    family, temperature = random_family("llama"), 4.0
    law = second_token_law(family, temperature)
    cell = torch.zeros(len(law), dtype=torch.long)
    cell[law.argsort(descending=True)] = (law.sort(descending=True).values.cumsum(0) * 5).long().clamp(max=4)
    expected = torch.zeros(5).index_add_(0, cell, law) * trials
    plan = skipping("1", "1", num_draft=1, draft_law=draft_law)
    counts, accepted = torch.zeros(5), 0
    for seed in range(trials):
        options = {"temperature": temperature, "seed": seed, "max_new_tokens": 3}
        out = answer("llama", plan, **options)
        counts[cell[out.tokens[1]]] += 1
        accepted += sum(out.report.accepted)
    full = expected > 0
    return float(((counts - expected)[full] ** 2 / expected[full]).sum()), accepted


@pytest.mark.parametrize("draft_law", ["drawn", "point"])
def test_sampled_tokens_follow_the_law_of_plain_sampling(draft_law):
    chi, accepted = distance(draft_law)
    assert chi < 18.5  # once in a thousand
    assert 0 < accepted < 240


def test_the_official_default_is_said_not_to_be_lossless_and_is_not():
    assert DraftAndVerify().lossless
    assert DraftAndVerify(draft_law="point").lossless
    assert not DraftAndVerify(draft_law="official").lossless
    assert distance("official")[0] > 18.5


def test_misuse_is_refused_in_a_sentence():
    for options in ({"num_draft": -1}, {"threshold": 2.0}, {"draft_law": "guess"}):
        with pytest.raises(BudgetError, match=r"DraftAndVerify was asked for .*: use "):
            DraftAndVerify(**options)
    with pytest.raises(BudgetError, match=r'skip_mlp=a\+b, which names no layers: write "auto", "none" or "1\+4\+7"'):
        DraftAndVerify(skip_mlp="a+b")
    with pytest.raises(FitError, match="skip layer 3, but random-llama has 3 layers: choose 0 to 2"):
        skipping("3", "none").check(random_family("llama"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_the_trained_models_keep_their_words_on_many_clips(name):
    family, drafted, accepted = elvi.load(name, device="cpu"), 0, 0
    for number in range(30):
        clip = elvi.sample(70_000 + number, kind="caption" if number % 2 else None, seconds=1 + number % 4)
        out = generate(family, clip, plan=Plan(DraftAndVerify(threshold=0.4)), max_new_tokens=40)
        assert out.tokens == generate(family, clip, max_new_tokens=40).tokens
        drafted, accepted = drafted + sum(out.report.drafted), accepted + sum(out.report.accepted)
    assert 0 < accepted < drafted
