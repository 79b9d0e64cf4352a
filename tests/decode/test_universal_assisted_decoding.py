"""SLEM and TLI: the target's own tokens from a drafter that spells differently."""

from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Sampler
from elvi.core.bridge import surfaces
from elvi.core.generate import forward, generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.speculative_sampling import SpeculativeSampling
from elvi.decode.universal_assisted_decoding import UniversalAssistedDecoding, shared
from elvi.errors import BudgetError, FitError
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"
METHODS = ("slem", "tli")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Text models in other vocabularies: word pieces and single bytes; and one of words, as the random targets have."""
    made = {}
    for name, corpus in (("pieces", [QUESTION, "blue red circle at top left . frame 1 :"] * 20), ("bytes", [""])):
        torch.manual_seed(3)
        made[name] = tmp_path_factory.mktemp(name)
        models.save(models.drafter(), tokenizer.byte_pairs(corpus), made[name], "text")
    made["words"] = tmp_path_factory.mktemp("words")
    models.save(random_family("llama", 1).model, tokenizer.words("text"), made["words"], "text")
    return {name: str(folder) for name, folder in made.items()}


def answer(kind: str, plan: Plan | None = None, **options):
    clip = None if kind == "llama" else noise_clip(1, still=kind == "llava")
    options = {"max_new_tokens": 14, "ignore_eos": True, **options}
    return generate(random_family(kind), clip, QUESTION, plan=plan, **options)


@pytest.mark.parametrize("drafter", ["pieces", "bytes", "words"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
def test_greedy_tokens_are_those_of_plain_decoding(folders, kind, method, drafter):
    technique = UniversalAssistedDecoding(method, folders[drafter], num_draft=5, threshold=0.0)
    if (method, drafter) == ("tli", "bytes"):
        with pytest.raises(FitError, match=r"but no token of .* is one of random-.*: use method=slem"):
            Plan(technique).check(random_family(kind))
        return
    assert answer(kind, Plan(technique)).tokens == answer(kind).tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_drafter_with_the_targets_tokenizer_does_what_speculative_sampling_does(folders, method):
    """The same drafts, so the same acceptances, round by round."""
    ours = answer(
        "llama",
        Plan(UniversalAssistedDecoding(method, folders["words"], num_draft=4, threshold=0.0)),
        max_new_tokens=30,
    )
    known = answer("llama", Plan(SpeculativeSampling(draft=folders["words"], num_draft=4)), max_new_tokens=30)
    assert ours.tokens == known.tokens
    assert ours.report.accepted == known.report.accepted


def test_shared_tokens_add_the_same_string_on_both_sides():
    drafter, target = elvi.load("tiny-drafter-bpe", device="cpu"), random_family("qwen2_5_vl")
    pairs = shared(drafter, target)
    assert len(pairs) > 8
    assert len(set(pairs.values())) == len(pairs)
    assert pairs.pop(min(drafter.eos)) == min(target.eos)
    assert all(surfaces(drafter)[own] == surfaces(target)[other] for own, other in pairs.items())


@torch.inference_mode()
def test_the_narrowed_law_is_normalised_over_shared_tokens_and_zero_elsewhere():
    drafter, target = elvi.load("tiny-drafter-bpe", device="cpu"), random_family("qwen2_5_vl")
    run, sampler = Run(target, Plan()), Sampler(1.0, seed=3)
    prefill(run, None, QUESTION)
    technique = UniversalAssistedDecoding("tli", "tiny-drafter-bpe", num_draft=4, threshold=0.0)
    ids = target.tokenizer.encode("frame 1 : a", add_special_tokens=False)
    draft = technique.start(run, None, sampler).propose(ids, 9)
    pairs = shared(drafter, target)
    other = Run(drafter, Plan())
    prefill(other, None, QUESTION)
    context = drafter.tokenizer.encode("frame 1 : a", add_special_tokens=False)
    logits = forward(other, context, list(range(len(context))))[-1]
    own = torch.tensor(list(pairs))
    expected = torch.zeros(draft.probs.shape[1])
    expected[torch.tensor(list(pairs.values()))] = logits[own].softmax(-1)
    torch.testing.assert_close(draft.probs[0], expected)
    torch.testing.assert_close(draft.probs.sum(-1), torch.ones(len(draft)))
    assert set(draft.ids) <= set(pairs.values())


@torch.inference_mode()
def second_token_law(family, temperature: float) -> torch.Tensor:
    run = Run(family, Plan())
    _, logits = prefill(run, None, QUESTION)
    tree = torch.eye(family.vocabulary, dtype=torch.bool)
    second = forward(run, list(range(family.vocabulary)), [0] * family.vocabulary, tree)
    return (logits / temperature).softmax(-1) @ (second / temperature).softmax(-1)


@pytest.mark.parametrize(("method", "threshold"), [("slem", 0.0), ("tli", 0.0), ("tli", 0.05)])
def test_sampled_tokens_follow_the_law_of_plain_sampling(folders, method, threshold):
    family, temperature, trials = random_family("llama"), 4.0, 200
    law = second_token_law(family, temperature)
    cell = torch.zeros(len(law), dtype=torch.long)
    cell[law.argsort(descending=True)] = (law.sort(descending=True).values.cumsum(0) * 5).long().clamp(max=4)
    expected = torch.zeros(5).index_add_(0, cell, law) * trials
    plan = Plan(UniversalAssistedDecoding(method, folders["words"], num_draft=1, threshold=threshold))
    counts, drafted, accepted = torch.zeros(5), 0, 0
    for seed in range(trials):
        out = answer("llama", plan, temperature=temperature, seed=seed, max_new_tokens=3)
        counts[cell[out.tokens[1]]] += 1
        drafted, accepted = drafted + sum(out.report.drafted), accepted + sum(out.report.accepted)
    assert 0 < accepted < drafted
    assert ((counts - expected) ** 2 / expected)[expected > 0].sum() < 18.5  # 4 degrees of freedom


def test_time_between_the_tokenizers_is_told():
    report = generate(
        elvi.load("tiny-qwen", device="cpu"),
        elvi.sample(10_003),
        plan=Plan(UniversalAssistedDecoding()),
        max_new_tokens=12,
        ignore_eos=True,
    ).report
    assert 0 < report.bridge_s < report.draft_s


def test_misuse_is_refused_in_a_sentence():
    for options in ({"method": "slrs"}, {"num_draft": -1}):
        with pytest.raises(BudgetError, match=r"UniversalAssistedDecoding was asked for .*: use "):
            UniversalAssistedDecoding(**options)
