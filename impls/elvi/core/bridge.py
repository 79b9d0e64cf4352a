"""Drafting in another vocabulary: a text model with a tokenizer of its own follows the text that the target emits.

Between two tokenizers there is only text. The drafter's context is the emitted text as its own tokenizer spells it;
what it drafts is turned into text and spelt again with the target's. Special tokens and pictures do not travel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elvi import tiny
from elvi.core.generate import forward, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import FitError
from elvi.families.load import load_drafter

if TYPE_CHECKING:
    from elvi.core.accept import Sampler
    from elvi.families.family import Family

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoding puts where the bytes of a character are not complete
LOOKBEHIND = 10  # emitted tokens that are spelt again together with a draft


def check_text_drafter(technique: object, target: Family, drafter: Family) -> None:
    """Raise FitError unless the drafter reads text and is on the target's device; its vocabulary may be another."""
    asked = f"{type(technique).__name__} was asked to draft with {drafter.name}"
    if drafter.image_processor is not None:
        raise FitError(
            f"{asked}, which looks at pictures, but only text goes from one tokenizer to another: use a language model."
        )
    if drafter.device != target.device:
        raise FitError(
            f"{asked} on {drafter.device} for {target.name} on {target.device}, but their tokens would have to travel "
            "in every step: load both on one device."
        )


def text_drafter(technique: object, name: str, target: Family) -> Family:
    """The text model that drafts for `target`: by name, or the one that ships for it ("auto")."""
    if name == "auto":
        if target.name not in tiny.TEXT_DRAFTERS:
            raise FitError(
                f"{type(technique).__name__} was asked to choose a text drafter for {target.name}, but none ships for "
                "it: name one with draft=."
            )
        name = tiny.TEXT_DRAFTERS[target.name]
    return load_drafter(name, target) or target


@lru_cache(maxsize=8)
def surfaces(family: Family) -> list[str | None]:
    """What each token adds to a text that it continues; None for special tokens and parts of characters."""
    tokenizer = family.tokenizer
    special = family.special_tokens
    ids = range(family.vocabulary)
    alone = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    anchor = next(token for token in ids if token not in special and alone[token].strip().isalpha())
    both = tokenizer.batch_decode([[anchor, token] for token in ids], clean_up_tokenization_spaces=False)
    added = [text.removeprefix(alone[anchor]) for text in both]
    return [None if token in special or not added[token] or BROKEN in added[token] else added[token] for token in ids]


class TextDrafting:
    """A language model drafting text for a target that spells it differently.

    Its cache holds the question in its own chat template, then `held`, the tokens it has read of the answer; what the
    target did not accept is cut off again, however the drafter spelt it.
    """

    def __init__(self, family: Family, target: Run, sampler: Sampler) -> None:
        self.run, self.target, self.sampler = Run(family, Plan()), target, sampler
        prefill(self.run, None, target.question or "")
        self.first = self.run.next_row
        self.head_width = target.family.model.get_output_embeddings().weight.shape[0]
        self.held: list[int] = []

    def spell(self, ids: list[int]) -> list[int]:
        """The emitted tokens in the drafter's own; empty while they end inside a character, or hold no text."""
        text = self.target.family.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [] if text.endswith(BROKEN) else _encode(self.run.family, text)

    def draft(
        self, context: list[int], count: int, *, drawn: bool, threshold: float = 0.0, allowed: Tensor | None = None
    ) -> Drafted:
        """Up to `count` tokens after the context: drawn at the sampler's temperature, else the best; an end ends it.

        threshold: drafting stops where no token is as likely as this, before one is drawn, so that the law of those
        that are drawn stays what it is said to be; allowed: bool [V] of the drafter's own vocabulary, to which its law
        is narrowed.
        """
        self._read(context)
        tokens: list[int] = []
        laws: list[Tensor] = []
        logits = self.logits
        while len(tokens) < count:
            logits = logits[: self.run.family.vocabulary]
            if allowed is not None:
                logits = logits.masked_fill(~allowed, float("-inf"))
            if threshold and float(logits.softmax(-1).max()) < threshold:
                break
            law = self.sampler.probs(logits) if drawn else logits
            token = self._draw(law) if drawn else int(logits.argmax())
            tokens, laws = [*tokens, token], [*laws, law]
            if len(tokens) == count or token in self.run.family.eos:
                break
            logits = forward(self.run, [token], [0])[0]
            self.run.commit()
            self.held.append(token)
        return Drafted(tokens, laws)

    def _read(self, context: list[int]) -> None:
        """Bring the cache to the context, keeping what they share; `logits` [V] are those after it."""
        shared = 0
        while shared < min(len(self.held), len(context) - 1) and self.held[shared] == context[shared]:
            shared += 1
        self.run.crop(self.first + shared)
        new = context[shared:]
        self.logits = forward(self.run, new, list(range(len(new))))[-1]
        self.run.commit()
        self.held = list(context)

    def _draw(self, law: Tensor) -> int:
        return int(torch.multinomial(law, 1, generator=self.sampler.draft_generator))

    def respell(self, ids: list[int], context: list[int], drafted: list[int]) -> list[int]:
        """Drafted tokens in the target's own, following the emitted `ids`; an end becomes the target's end.

        The last few emitted tokens are spelt again together with the draft, so that leading spaces come out right;
        where that spells them differently, the draft is spelt alone. It is cut where it holds no text.
        """
        own, other = self.target.family, self.run.family
        before = _decode(other, context[-LOOKBEHIND:])
        text = _decode(other, [*context[-LOOKBEHIND:], *(token for token in drafted if token not in other.eos)])
        text = text.removeprefix(before).rstrip(BROKEN)
        tail = [token for token in ids[-LOOKBEHIND:] if token not in own.special_tokens]
        found = _encode(own, _decode(own, tail) + text)
        new = found[len(tail) :] if found[: len(tail)] == tail else _encode(own, text)
        if drafted and drafted[-1] in other.eos:
            new.append(min(own.eos))
        strange = own.special_tokens - own.eos
        return new[: next((place for place, token in enumerate(new) if token in strange), len(new))]


class Drafted:
    """Tokens of the drafter, and the law [V] that each came from (its logits where the best was taken)."""

    def __init__(self, tokens: list[int], laws: list[Tensor]) -> None:
        self.tokens, self.laws = tokens, laws


def _encode(family: Any, text: str) -> list[int]:
    return family.tokenizer.encode(text, add_special_tokens=False)


def _decode(family: Any, ids: list[int]) -> str:
    return family.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
