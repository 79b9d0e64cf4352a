"""Ratios of speculative decoding: speed-ups, next to transformers' own, and of aligning token sequences."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from elvi.bench.measure import spread
from elvi.bench.prompts import prompts
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.bridge import text_drafter
from elvi.core.generate import generate
from elvi.core.meter import synchronise
from elvi.core.plan import Plan
from elvi.decode.speculative_sampling import SpeculativeSampling
from elvi.decode.tokentiming import align
from elvi.decode.universal_assisted_decoding import UniversalAssistedDecoding
from elvi.errors import FitError
from elvi.families.load import SMOLLM2, load
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family
    from elvi.media import Clip

TOKENS = 64
LOOKUP, DRAFTED = 10, 8  # tokens drafted a round: looked up, and by a model in another vocabulary


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """On the shipped model, and on SmolLM2 where it is installed."""
    yield speculation(family)
    try:
        language = load(SMOLLM2)
    except FitError as error:
        tell(f"left out: {error}")
    else:
        yield prompt_lookup(language)
        yield assisted(language)
    try:
        yield warping(family)
    except ImportError:
        tell("left out: the warping of token sequences is compared with dtaidistance, which is not installed.")


def speculation(family: Family) -> Ratio:
    """Wall-clock speed-up of whole captions by the shipped drafter, its own reading of the clip included."""
    technique, speedups = SpeculativeSampling(num_draft=8), []
    for number in range(HELD_OUT, HELD_OUT + common.REPEATS + 1):
        clip = sample(number, "caption", 8)
        plain, ours = (_seconds(family, clip, plan) for plan in (Plan(), Plan(technique)))
        speedups.append(plain / ours)
    what = f"wall-clock speed-up of captions on {family.name}, plain / {technique!r}"
    return Ratio("speculation", what, spread(speedups[1:]), 1.8, None)


def _seconds(family: Family, clip: Clip, plan: Plan) -> float:
    start = time.perf_counter()
    generate(family, clip, plan=plan, max_new_tokens=256)
    synchronise(family.device)
    return time.perf_counter() - start


def prompt_lookup(family: Family) -> Ratio:
    """Tokens a second with drafts looked up in the text / the same by transformers."""
    technique = SpeculativeSampling(draft="ngram", num_draft=LOOKUP)
    theirs = {"prompt_lookup_num_tokens": LOOKUP}
    what = f"tokens a second on {family.name}, {technique!r} / transformers' prompt lookup, same answers"
    return Ratio("prompt-lookup", what, spread(_against(family, technique, theirs)), 1.2, None)


def assisted(family: Family) -> Ratio:
    """Tokens a second with a drafter in another vocabulary / the same by transformers' assisted generation."""
    technique = UniversalAssistedDecoding(num_draft=DRAFTED)
    drafter = text_drafter(technique, "auto", family)
    assistant = common.unmodified(drafter)
    assistant.generation_config.num_assistant_tokens = DRAFTED
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    theirs = {"assistant_model": assistant, "tokenizer": family.tokenizer, "assistant_tokenizer": drafter.tokenizer}
    what = f"tokens a second on {family.name}, {technique!r} / transformers' assisted generation, same answers"
    return Ratio("assisted-generation", what, spread(_against(family, technique, theirs)), 1.2, None)


def _against(family: Family, technique: Any, options: dict[str, Any]) -> list[float]:
    """Seconds of transformers' `generate` with the options / ours, on text prompts that both answer alike."""
    plain, ratios = common.unmodified(family), []
    for prompt in prompts()[: common.REPEATS + 1]:
        inputs = family.inputs(None, prompt.text)
        start = time.perf_counter()
        with torch.inference_mode():
            said = plain.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **options)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        ours = generate(family, None, prompt.text, plan=Plan(technique), max_new_tokens=TOKENS)
        ratios.append(seconds / (time.perf_counter() - start))
        assert said[0, inputs["input_ids"].shape[1] :].tolist() == ours.tokens, "both decode greedily"
    return ratios[1:]


def warping(family: Family) -> Ratio:
    """Time of dtaidistance's warping path over numbers / of ours over strings, on sequences of 8 to 64 tokens."""
    from dtaidistance import dtw

    drafter = load("tiny-drafter-bpe", device="cpu")
    text = " ".join(sample(HELD_OUT + i, "caption", 8).expected or "" for i in range(4))
    spelt = [each.tokenizer.encode(text, add_special_tokens=False) for each in (drafter, family)]
    ratios = []
    for length in (8, 8, 16, 32, 64):  # the first one compiles
        s, t = (ids[:length] for ids in spelt)
        ours = _median_seconds(partial(align, drafter, s, family, t, 8))
        theirs = _median_seconds(partial(dtw.warping_path, np.array(s, float), np.array(t, float), window=9))
        ratios.append(theirs / ours)
    what = "aligning 8 to 64 tokens, dtaidistance's warping_path over numbers / ours over strings"
    return Ratio("dtw", what, spread(ratios[1:]), 5.0, None)


def _median_seconds(work: Callable[[], Any]) -> float:
    work()
    return float(np.median([common.clocked(work)[0] for _ in range(50)]))
