"""TokenTiming: the warping against a plain one, and what the two ways of testing proposals do to the law."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Draft, Sampler, accept_sampled
from elvi.core.generate import forward, generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.warp import levenshtein, warp
from elvi.decode.tokentiming import TokenTiming, align
from elvi.errors import BudgetError
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"
FAR = 10**9


def table(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strings as `warp` takes them: code points, ends, and the sequence of all of them."""
    codes = np.array([ord(letter) for letter in "".join(texts)], np.int32)
    return codes, np.cumsum([0, *map(len, texts)]).astype(np.int32), np.arange(len(texts))


def path(s: list[str], t: list[str], band: int = FAR) -> list[tuple[int, int]]:
    return list(zip(*(side.tolist() for side in warp(*table(s), *table(t), band))))


def plain_edits(a: str, b: str) -> int:
    if a.removeprefix(" ") and b.removeprefix(" "):
        a, b = a.removeprefix(" "), b.removeprefix(" ")
    grid = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = grid[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            grid[i, j] = min(change, grid[i - 1, j] + 1, grid[i, j - 1] + 1)
    return grid[len(a), len(b)]


def plain_path(s: list[str], t: list[str], band: int) -> list[tuple[int, int]]:
    if not s or not t:
        return []
    width = max(band, abs(len(s) - len(t)))
    cost = {(0, 0): 0}
    for i in range(1, len(s) + 1):
        for j in range(1, len(t) + 1):
            if abs(i - j) <= width:
                before = min(cost.get(step, FAR) for step in ((i - 1, j - 1), (i - 1, j), (i, j - 1)))
                cost[i, j] = plain_edits(s[i - 1], t[j - 1]) + before
    i, j = len(s), len(t)
    found = [(i - 1, j - 1)]
    while (i, j) != (1, 1):
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: (cost.get(step, FAR), steps.index(step)))
        found.append((i - 1, j - 1))
    return found[::-1]


WORDS = st.lists(st.sampled_from(["a", " a", "ab", " ba", "", " ", "b", "abc", " cab", "bb"]), max_size=9)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, st.sampled_from([0, 1, 2, 4, 20]))
def test_the_warping_is_the_plain_one(s, t, band):
    found = path(s, t, band)
    assert found == plain_path(s, t, band)
    if s and t:
        assert {i for i, _ in found} == set(range(len(s)))
        assert {j for _, j in found} == set(range(len(t)))
        assert all(0 <= i2 - i1 <= 1 and 0 <= j2 - j1 <= 1 for (i1, j1), (i2, j2) in pairwise(found))


@settings(max_examples=200, deadline=None)
@given(st.text("ab c", max_size=7), st.text("ab c", max_size=7))
def test_edit_distance_is_the_plain_one(a, b):
    assert levenshtein(*(np.array([ord(letter) for letter in text], np.int32) for text in (a, b))) == plain_edits(a, b)


def test_equal_sequences_are_aligned_one_to_one_and_empty_ones_to_nothing():
    words = ["the", " cat", " sat", " sat"]
    assert path(words, words) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert path([], words) == path(words, []) == path([], []) == []


def test_word_starts_do_not_count_and_a_lone_one_is_compared_as_it_is():
    assert plain_edits(" cat", "cat") == 0
    assert path([" un", "usual", " day"], ["unusual", "day"]) == [(0, 0), (1, 0), (2, 1)]
    assert path([" "], [" a"]) == [(0, 0)]


def test_a_band_that_is_too_narrow_is_widened_to_reach_the_corner():
    assert path(list("abcdefgh"), ["abcdefgh"], band=1)[-1] == (7, 0)
    assert len(path(list("abcdefgh"), ["abcdefgh"], band=1)) == 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
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


@pytest.mark.parametrize("q_mode", ["point", "transferred"])
@pytest.mark.parametrize("drafter", ["pieces", "bytes", "words"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llama"])
def test_greedy_tokens_are_those_of_plain_decoding(folders, kind, drafter, q_mode):
    plain = answer(kind).tokens
    for count in (0, 1, 6):
        plan = Plan(TokenTiming(folders[drafter], count, q_mode, threshold=0.0))
        assert answer(kind, plan).tokens == plain


@torch.inference_mode()
def test_a_transferred_probability_is_that_of_the_first_drafter_token_aligned(folders):
    target, drafter = random_family("llama"), elvi.load("tiny-drafter-bpe", device="cpu")
    run = Run(target, Plan())
    prefill(run, None, QUESTION)
    ids = target.tokenizer.encode("frame 1 : a", add_special_tokens=False)
    session = TokenTiming("tiny-drafter-bpe", 8, "transferred", threshold=0.0).start(run, None, Sampler(0.7, seed=1))
    draft = session.propose(ids, 9)
    again = (
        TokenTiming("tiny-drafter-bpe", 8, "transferred", threshold=0.0).start(run, None, Sampler(0.7, seed=1)).drafter
    )
    drafted = again.draft(again.spell(ids), 8, drawn=True)
    pairs = align(drafter, drafted.tokens, target, draft.ids, 8)
    assert len(draft) >= 2
    for place, token in enumerate(draft.ids):
        first = min(s for s, t in pairs if t == place)
        assert float(draft.probs[place, token]) == pytest.approx(float(drafted.laws[first][drafted.tokens[first]]))
        assert float(draft.probs[place].sum()) == pytest.approx(float(draft.probs[place, token]))


def emitted(q_mode: str) -> torch.Tensor:
    """Exact law of the token emitted for one proxy token, whose proposal law differs from the probability it inherits.

    Two drafter tokens are spelt as proxy token 0 (chances 0.5 and 0.2, so 0 is proposed with 0.7), one as 1 (0.3).
    """
    target, law = torch.tensor([0.5, 0.3, 0.2]), torch.zeros(3)
    for chance, token, inherited in ((0.5, 0, 0.5), (0.2, 0, 0.2), (0.3, 1, 0.3)):
        row = torch.zeros(1, 3)
        row[0, token] = inherited
        draft = Draft.chain([token], row if q_mode == "transferred" else None)
        trials, sampler = 4000, Sampler(1.0, seed=token + int(10 * chance))
        for _ in range(trials):
            path = accept_sampled(draft, torch.stack([target, target]).log(), sampler)
            law[token if path.nodes else path.next] += chance / trials
    return (law - target).abs().sum() / 2


def test_points_keep_the_targets_law_and_transferred_probabilities_do_not():
    """Total variation from the target's law: noise of about 0.005 for points, 0.26 for the paper's rule here."""
    assert emitted("point") < 0.02
    assert 0.2 < emitted("transferred") < 0.3
    assert TokenTiming().lossless
    assert not TokenTiming(q_mode="transferred").lossless


@torch.inference_mode()
def second_token_law(family, temperature: float) -> torch.Tensor:
    run = Run(family, Plan())
    _, logits = prefill(run, None, QUESTION)
    tree = torch.eye(family.vocabulary, dtype=torch.bool)
    second = forward(run, list(range(family.vocabulary)), [0] * family.vocabulary, tree)
    return (logits / temperature).softmax(-1) @ (second / temperature).softmax(-1)


def test_sampled_tokens_follow_the_law_of_plain_sampling(folders):
    family, temperature, trials = random_family("llama"), 4.0, 240
    law = second_token_law(family, temperature)
    cell = torch.zeros(len(law), dtype=torch.long)
    cell[law.argsort(descending=True)] = (law.sort(descending=True).values.cumsum(0) * 5).long().clamp(max=4)
    expected = torch.zeros(5).index_add_(0, cell, law) * trials
    plan, counts, accepted = Plan(TokenTiming(folders["words"], 1, threshold=0.0)), torch.zeros(5), 0
    for seed in range(trials):
        out = answer("llama", plan, temperature=temperature, seed=seed, max_new_tokens=3)
        counts[cell[out.tokens[1]]] += 1
        accepted += sum(out.report.accepted)
    assert 0 < accepted < trials
    assert ((counts - expected) ** 2 / expected)[expected > 0].sum() < 18.5  # 4 degrees of freedom


def test_sampling_with_transferred_probabilities_runs_and_repeats(folders):
    plan = Plan(TokenTiming(folders["words"], 6, "transferred", threshold=0.0))
    first, again = (answer("qwen2_5_vl", plan, temperature=1.0, seed=5) for _ in range(2))
    assert first.tokens == again.tokens
    assert sum(first.report.drafted) > 0
    assert not first.report.lossless


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_the_trained_models_keep_their_words_on_many_clips(name):
    family, drafted, accepted = elvi.load(name, device="cpu"), 0, 0
    for number in range(30):
        clip = elvi.sample(80_000 + number, kind="caption" if number % 2 else None, seconds=1 + number % 4)
        plain = generate(family, clip, max_new_tokens=40)
        for technique in (TokenTiming(), elvi.technique("universal-assisted-decoding")(method="tli")):
            out = generate(family, clip, plan=Plan(technique), max_new_tokens=40)
            assert out.tokens == plain.tokens
            drafted, accepted = drafted + sum(out.report.drafted), accepted + sum(out.report.accepted)
    assert 0 < accepted < drafted


def test_misuse_is_refused_in_a_sentence():
    for options in ({"q_mode": "soft"}, {"num_draft": -1}, {"band": -1}):
        with pytest.raises(BudgetError, match=r"TokenTiming was asked for .*: use "):
            TokenTiming(**options)
