"""Speculative sampling: the target's own tokens, faster."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Draft, Path, Sampler
from elvi.core.draft import ModelDrafting, Shape
from elvi.core.generate import forward, generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.speculative_sampling import SpeculativeSampling, _continuations
from elvi.errors import BudgetError, FitError
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"
NEW = 16


@pytest.fixture(scope="module")
def drafters(tmp_path_factory) -> dict[str, str]:
    """Folders of drafters for the random model: itself, half of it, a stranger, one that reads text only."""
    target = random_family("qwen2_5_vl").model
    half, stranger = models.qwen(1), models.qwen(1)
    half.load_state_dict({name: target.state_dict()[name] for name in half.state_dict()})
    made = {"same": (target, "qwen"), "half": (half, "qwen"), "stranger": (stranger, "qwen")}
    made["text"] = (random_family("llama", 1).model, "text")
    folders = {}
    for name, (model, kind) in made.items():
        folder = tmp_path_factory.mktemp(name)
        models.save(model, tokenizer.words(kind), folder, kind)
        folders[name] = str(folder)
    return folders


def answer(plan: Plan | None = None, seed: int = 0, new: int = NEW, **options):
    clip = noise_clip(1 + seed % 2, seed=seed)
    return generate(
        random_family("qwen2_5_vl"), clip, QUESTION, plan=plan, max_new_tokens=new, ignore_eos=True, **options
    )


@pytest.mark.parametrize("branching", [1, 3])
@pytest.mark.parametrize("name", ["same", "half", "stranger", "text"])
def test_greedy_tokens_are_those_of_plain_decoding(drafters, name, branching):
    for depth in (1, 2, 5, 8):
        plan = Plan(SpeculativeSampling(draft=drafters[name], num_draft=depth, branching=branching))
        assert answer(plan, seed=depth).tokens == answer(seed=depth).tokens


@pytest.mark.parametrize("branching", [1, 2])
def test_the_target_as_its_own_drafter_is_accepted_almost_always(drafters, branching):
    plan = Plan(SpeculativeSampling(draft=drafters["same"], num_draft=4, branching=branching))
    report = answer(plan, new=21).report
    assert sum(report.accepted) >= 15


@torch.inference_mode()
@pytest.mark.parametrize("branching", [1, 3])
def test_the_drafters_cache_follows_what_was_accepted(drafters, branching):
    """A drafter that has been through rounds of any outcome proposes what a fresh one does."""
    family, clip = elvi.load(drafters["half"], device="cpu"), noise_clip(1)
    target = Run(random_family("qwen2_5_vl"), Plan())
    prefill(target, clip, QUESTION)
    old = ModelDrafting(family, target, clip, Sampler(), Shape.branches(branching, 4))
    ids, random = [11], np.random.default_rng(0)
    for _ in range(6):
        fresh = ModelDrafting(family, target, clip, Sampler(), Shape.branches(branching, 4)).propose(ids, 9)
        draft = old.propose(ids, 9)
        assert (draft.ids, draft.parents) == (fresh.ids, fresh.parents)
        path = down(draft, int(random.integers(0, 5)), int(random.integers(0, branching)))
        ids = [*ids, *(draft.ids[node] for node in path.nodes), path.next]
        old.heard(path)
    assert old.run.store.lengths == [len(old.run.layout) + old.known] * family.num_layers


def down(draft: Draft, depth: int, branch: int) -> Path:
    """A path of that depth down one branch."""
    nodes = [node for node in range(len(draft)) if node % draft.parents.count(-1) == branch]
    return Path(nodes[:depth], 20)


@torch.inference_mode()
def test_greedy_drafts_are_the_drafters_own_greedy_tokens(drafters):
    family, clip = elvi.load(drafters["half"], device="cpu"), noise_clip(1)
    target = Run(random_family("qwen2_5_vl"), Plan())
    prefill(target, clip, QUESTION)
    draft = ModelDrafting(family, target, clip, Sampler(), Shape.branches(3, 4)).propose([11], 9)
    for branch in range(3):
        chain = draft.ids[branch::3]
        run = Run(family, Plan())
        prefill(run, clip, QUESTION)
        logits = forward(run, [11, *chain], [0, 1, 2, 3, 4])
        assert chain[0] in logits[0].topk(3).indices.tolist()
        assert logits[1:-1].argmax(-1).tolist() == chain[1:]


@torch.inference_mode()
def test_drawn_drafts_state_the_law_they_were_drawn_from(drafters):
    family, clip = elvi.load(drafters["half"], device="cpu"), noise_clip(1)
    target = Run(random_family("qwen2_5_vl"), Plan())
    prefill(target, clip, QUESTION)
    draft = ModelDrafting(family, target, clip, Sampler(1.5, seed=2), Shape.branches(2, 3)).propose([11], 9)
    run = Run(family, Plan())
    prefill(run, clip, QUESTION)
    laws = (forward(run, [11, *draft.ids[1::2]], [0, 1, 2, 3]) / 1.5).softmax(-1)
    torch.testing.assert_close(draft.probs[0], laws[0])
    rest = laws[0].clone()
    rest[draft.ids[0]] = 0
    torch.testing.assert_close(draft.probs[1], rest / rest.sum())
    torch.testing.assert_close(draft.probs[[3, 5]], laws[1:3])
    assert len(set(draft.ids[:2])) == 2


def law_of_the_second_token(family, temperature: float) -> torch.Tensor:
    """Exact [V]: every first token is verified as one child of a tree."""
    run = Run(family, Plan())
    _, logits = prefill(run, None, QUESTION)
    first = (logits / temperature).softmax(-1)
    tree = torch.eye(family.vocabulary, dtype=torch.bool)
    second = forward(run, list(range(family.vocabulary)), [0] * family.vocabulary, tree)
    return first @ (second / temperature).softmax(-1)


@pytest.mark.parametrize("branching", [1, 3])
@torch.inference_mode()
def test_sampled_tokens_follow_the_law_of_plain_sampling(drafters, branching):
    family, temperature, trials = random_family("llama"), 4.0, 160
    law = law_of_the_second_token(family, temperature)
    plan = Plan(SpeculativeSampling(draft=drafters["text"], num_draft=1, branching=branching))
    cell = torch.zeros(len(law), dtype=torch.long)
    cell[law.argsort(descending=True)] = (law.sort(descending=True).values.cumsum(0) * 5).long().clamp(max=4)
    expected = torch.zeros(5).index_add_(0, cell, law) * trials
    counts, accepted = torch.zeros(5), 0
    for seed in range(trials):
        options = {"max_new_tokens": 3, "temperature": temperature, "seed": seed, "ignore_eos": True}
        out = generate(family, None, QUESTION, plan=plan, **options)
        counts[cell[out.tokens[1]]] += 1
        accepted += sum(out.report.accepted)
    assert 0 < accepted < trials
    full = expected > 0
    assert ((counts - expected)[full] ** 2 / expected[full]).sum() < 18.5  # 4 degrees of freedom: once in a thousand


def test_lookup_proposes_what_followed_the_earliest_longest_match():
    text = np.array([1, 2, 3, 4, 9, 2, 3, 5, 7, 3, 6, 2, 3])
    assert _continuations(text, 3, 1) == [3, 7]
    assert _continuations(text, 1, 1) == [3, 7, 10]
    assert _continuations(np.array([1, 2, 3]), 3, 1) == []
    assert _continuations(np.array([1, 2, 1]), 3, 1) == [1]
    assert _continuations(np.array([1, 2, 1]), 3, 2) == []
    assert _continuations(np.array([4, 4, 4, 4]), 2, 2) == [2]
    assert _continuations(np.array([4]), 2, 1) == []


@pytest.mark.parametrize("branching", [1, 3])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llama"])
def test_lookup_emits_what_plain_decoding_emits(kind, branching):
    family = random_family(kind)
    clip = noise_clip(1) if kind != "llama" else None
    plan = Plan(SpeculativeSampling(draft="ngram", branching=branching, max_ngram=2, min_ngram=1))
    for question in (QUESTION, "how many objects are there in frame 1 ?"):
        plain = generate(family, clip, question, max_new_tokens=40, ignore_eos=True)
        fast = generate(family, clip, question, plan=plan, max_new_tokens=40, ignore_eos=True)
        assert fast.tokens == plain.tokens


def test_no_draft_is_plain_decoding(drafters):
    out = answer(Plan(SpeculativeSampling(draft=drafters["half"], num_draft=0)))
    assert out.tokens == answer().tokens
    assert out.report.forwards == NEW - 1


def test_a_drafter_with_another_vocabulary_is_refused_by_name(tmp_path):
    pieces = tokenizer.byte_pairs([QUESTION] * 10)
    models.save(models.drafter(), pieces, tmp_path / "speller", "text")
    plan = Plan(SpeculativeSampling(draft=str(tmp_path / "speller")))
    with pytest.raises(FitError, match=r"draft with speller .* for random-qwen .* vocabularies differ"):
        plan.check(random_family("qwen2_5_vl"))


@pytest.mark.parametrize("options", [{"num_draft": -1}, {"branching": 0}, {"max_ngram": 0}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(BudgetError, match="SpeculativeSampling was asked for"):
        SpeculativeSampling(**options)


@cache
def trained(name: str):
    return elvi.load(name, device="cpu")


def check_trained(name: str, number: int, **options) -> tuple[int, int]:
    """Assert equality on one clip with the shipped drafter (or lookup where there is none); drafted and accepted."""
    clip = elvi.sample(50_000 + number, kind="caption" if number % 2 else None, seconds=1 + number % 4)
    plain = generate(trained(name), clip, max_new_tokens=40)
    fast = generate(trained(name), clip, plan=Plan(SpeculativeSampling(**options)), max_new_tokens=40)
    assert fast.tokens == plain.tokens
    return sum(fast.report.drafted), sum(fast.report.accepted)


OPTIONS = [{}, {"branching": 3, "num_draft": 3}, {"draft": "ngram", "num_draft": 4}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_trained_models_emit_what_they_do_plainly(name, options):
    drafted, accepted = np.sum([check_trained(name, number, **options) for number in range(3)], axis=0)
    assert 0 < accepted < drafted


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_trained_models_emit_what_they_do_plainly_on_many_clips(name, options):
    for number in range(3, 40):
        check_trained(name, number, **options)


@pytest.mark.parametrize("branching", [1, 3])
def test_a_cache_that_slides_between_rounds_gives_what_it_gives_plainly(branching):
    sliding, model = elvi.technique("streamingllm")(recent=24), trained("tiny-qwen")
    drafting = SpeculativeSampling(num_draft=4, branching=branching)
    for number in range(3):
        clip = elvi.sample(50_100 + number, kind="caption", seconds=4)
        plain = generate(model, clip, plan=Plan(sliding), max_new_tokens=40, ignore_eos=True)
        fast = generate(model, clip, plan=Plan(sliding, drafting), max_new_tokens=40, ignore_eos=True)
        assert fast.tokens == plain.tokens
        assert sum(fast.report.accepted) < sum(fast.report.drafted)
