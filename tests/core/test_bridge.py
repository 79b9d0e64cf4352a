"""Drafting in another vocabulary: contexts, spellings, and the cache that follows them."""

from __future__ import annotations

import pytest
import torch
from support import random_family

import elvi
from elvi.core.accept import Sampler
from elvi.core.bridge import TextDrafting, check_text_drafter, surfaces, text_drafter
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError
from elvi.families.llama import Llama
from elvi.tiny import models, tokenizer

QUESTION = "what color is the star ?"
TEXTS = ["frame 1 : a blue circle", "déjà vu — 日本語 🙂 done", "  two  spaces\nand a line", "a a a a a a a a", "x"]


def speller(corpus: list[str]) -> Llama:
    """A random Llama with byte pairs learnt from a corpus, so it can spell anything."""
    torch.manual_seed(1)
    return Llama("speller", models.drafter().eval(), tokenizer.byte_pairs(corpus))


@pytest.fixture(scope="module")
def pieces() -> Llama:
    return speller([QUESTION, "frame 1 : a blue circle at top left"] * 10)


@pytest.fixture(scope="module")
def letters() -> Llama:
    """Byte by byte: nothing was learnt."""
    return speller([""])


def following(drafter, target) -> TextDrafting:
    with torch.inference_mode():
        run = Run(target, Plan())
        prefill(run, None, QUESTION)
        return TextDrafting(drafter, run, Sampler())


def ids_of(family, text: str) -> list[int]:
    return family.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_context_is_the_text_in_the_drafters_spelling_and_back(pieces, letters, text):
    ids = ids_of(pieces, text)
    spelt = following(letters, pieces).spell(ids)
    assert letters.tokenizer.decode(spelt) == text
    assert following(pieces, letters).spell(spelt) == ids


def test_a_text_that_ends_inside_a_character_waits_for_the_rest(pieces, letters):
    whole, bridge = ids_of(letters, "日本"), following(pieces, letters)
    assert len(whole) == 6
    assert [bool(bridge.spell(whole[:count])) for count in range(1, 7)] == [False, False, True, False, False, True]


@pytest.mark.parametrize("text", TEXTS)
def test_a_draft_is_spelt_so_that_it_continues_the_text(pieces, letters, text):
    """Wherever the text is cut, emitted tokens and respelt draft decode to the whole."""
    whole = ids_of(letters, text)
    for cut in range(1, len(whole)):
        bridge = following(letters, pieces)
        before = letters.tokenizer.decode(whole[:cut])
        if before.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        ids = ids_of(pieces, before)
        found = bridge.respell(ids, whole[:cut], whole[cut:])
        assert pieces.tokenizer.decode(ids + found) == text


def test_the_same_tokenizer_on_both_sides_changes_nothing(pieces):
    whole = ids_of(pieces, "frame 1 : a blue circle at top left")
    bridge = following(pieces, pieces)
    for cut in range(1, len(whole) - 1):
        assert bridge.spell(whole[:cut]) == whole[:cut]
        assert bridge.respell(whole[:cut], whole[:cut], whole[cut:]) == whole[cut:]


def test_words_of_a_tokenizer_that_adds_spaces_itself():
    target, drafter = random_family("llama"), elvi.load("tiny-drafter-bpe", device="cpu")
    bridge = following(drafter, target)
    ids = ids_of(target, "frame 1 : a blue")
    drafted = ids_of(drafter, " circle at top")
    assert bridge.respell(ids, bridge.spell(ids), drafted) == ids_of(target, "circle at top")
    assert bridge.respell(ids, bridge.spell(ids), ids_of(drafter, " zebra at")) == []  # no word of the target's
    end = min(drafter.eos)
    assert bridge.respell(ids, bridge.spell(ids), [*drafted, end]) == [*ids_of(target, "circle at top"), *target.eos]
    assert bridge.respell(ids, bridge.spell(ids), [end]) == list(target.eos)


@torch.inference_mode()
def test_the_cache_holds_the_context_and_follows_any_change_of_it(pieces, letters):
    """After contexts that grow, shrink and differ, drafts are those of a fresh session."""
    old = following(pieces, letters)
    for text in ("frame", "frame 1 : a", "frame 1 :", "frame 2 : blue", "blue circle", "b"):
        context = ids_of(pieces, text)
        drafted = old.draft(context, 4, drawn=False).tokens
        assert drafted == following(pieces, letters).draft(context, 4, drawn=False).tokens
        assert old.held == context + drafted[:-1]
        assert old.run.store.lengths == [old.first + len(old.held)] * pieces.num_layers


@torch.inference_mode()
def test_drafts_are_the_drafters_own_greedy_tokens(pieces, letters):
    context = ids_of(pieces, "frame 1 : a")
    drafted = following(pieces, letters).draft(context, 3, drawn=False).tokens
    run = Run(pieces, Plan())
    prefill(run, None, QUESTION)
    logits = forward(run, context + drafted, list(range(len(context) + 3)))
    assert logits[len(context) - 1 : -1].argmax(-1).tolist() == drafted


@torch.inference_mode()
def test_drafting_stops_where_the_drafter_is_not_sure(pieces, letters):
    context, bridge = ids_of(pieces, "frame 1 : a"), following(pieces, letters)
    whole = bridge.draft(context, 6, drawn=False)
    sure = [float(law.softmax(-1).max()) for law in whole.laws]
    for threshold in (0.001, *(0.999 * chance for chance in sure), 1.0):
        count = next((place for place, chance in enumerate(sure) if chance < threshold), len(sure))
        assert bridge.draft(context, 6, drawn=False, threshold=threshold).tokens == whole.tokens[:count]


def test_surfaces_say_what_a_token_adds(letters):
    words, pieces = random_family("llama"), elvi.load("tiny-drafter-bpe", device="cpu")
    assert surfaces(words)[ids_of(words, "blue")[0]] == " blue"
    assert (surfaces(pieces)[ids_of(pieces, " circle")[0]] or "").startswith(" ")
    assert all(surfaces(words)[token] is None for token in words.special_tokens)
    assert surfaces(letters)[ids_of(letters, "日")[0]] is None


def test_misuse_is_refused_in_a_sentence():
    target = random_family("qwen2_5_vl")
    with pytest.raises(FitError, match="tiny-llava-drafter, which looks at pictures"):
        check_text_drafter(object(), target, elvi.load("tiny-llava-drafter", device="cpu"))
    with pytest.raises(FitError, match="tiny-drafter-bpe on meta for random-qwen on cpu"):
        check_text_drafter(object(), target, elvi.load("tiny-drafter-bpe", device="meta"))
    with pytest.raises(FitError, match="a text drafter for random-qwen, but none ships for it: name one"):
        text_drafter(object(), "auto", target)
