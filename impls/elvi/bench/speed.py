"""Ratios of speed and memory of elvi itself, each with the bar it has to meet: `elvi bench --speed`.

Both sides of a ratio are measured one after the other in one process; the value is the median over such pairs. The
result is `<out>/<hardware-id>/speed.json`: the provenance of a results file, and `ratios`, a list of Ratio as JSON.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor

from elvi import tiny
from elvi.bench import provenance, results
from elvi.bench.measure import spread
from elvi.bench.prompts import prompts
from elvi.core.bridge import text_drafter
from elvi.core.generate import generate
from elvi.core.meter import synchronise
from elvi.core.plan import Plan
from elvi.core.tokens import budget
from elvi.decode.snapkv import SnapKV
from elvi.decode.speculative_sampling import SpeculativeSampling
from elvi.decode.tokentiming import align
from elvi.decode.universal_assisted_decoding import UniversalAssistedDecoding
from elvi.errors import FitError
from elvi.families.load import SMOLLM2, load
from elvi.media import Clip
from elvi.prefill import divprune
from elvi.prefill.fastv import FastV
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from elvi.bench.results import Spread
    from elvi.families.family import Family

MODEL, TOKENS, REPEATS, WIDE_REPEATS = "tiny-qwen", 64, 5, 3
LOOKUP, DRAFTED = 10, 8  # tokens drafted a round: looked up, and by a model in another vocabulary
STORY = "Write a long story about a lighthouse keeper and a storm."


@dataclass(frozen=True)
class Ratio:
    """One ratio, and the range low … high it has to lie in (None: no limit on that side)."""

    name: str
    what: str
    value: Spread
    low: float | None
    high: float | None

    @property
    def met(self) -> bool:
        median = self.value["median"]
        return (self.low is None or median >= self.low) and (self.high is None or median <= self.high)

    def __str__(self) -> str:
        limits = [f"at {word} {bar:g}" for word, bar in (("least", self.low), ("most", self.high)) if bar is not None]
        value, verdict = self.value, "met" if self.met else "MISSED"
        quartiles = f"{value['q1']:.3f} to {value['q3']:.3f}, n={value['n']}"
        return f"{verdict:6} {value['median']:8.3f} ({quartiles}), {' and '.join(limits)}: {self.what}"


def run(out: Path, *, command: str, tell: Callable[[str], None]) -> Path:
    """Measure everything, tell each ratio as it is known, and save them all; returns the file. Raises ResultsError."""
    family = load(MODEL)
    machine = provenance.hardware(family.device)
    path = out / machine["id"] / "speed.json"
    results.check_writable(path)
    found = []
    for ratio in measured(family, tell):
        tell(str(ratio))
        found.append({**asdict(ratio), "met": ratio.met})
    data: dict[str, Any] = {
        "schema": results.SCHEMA,
        "hardware": machine,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": provenance.today(),
        "command": command,
        "model": provenance.model(family),
        "ratios": found,
    }
    results.save(path, data, done=True)
    return path


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """All ratios, cheapest first; SmolLM2 is left out, and that is told, where it is not installed."""
    yield snapkv_bytes(family)
    yield divprune_kernel()
    yield token_time(family, sample(HELD_OUT, "caption", 8), None)
    yield prefill_time(family, sample(HELD_OUT, "caption", 8))
    yield speculation(family)
    large = wide()
    yield pruning(large, FastV(layer=2, keep_ratio=0.5))
    yield pruning(large, divprune.DivPrune(keep_ratio=0.25))
    try:
        language = load(SMOLLM2)
    except FitError as error:
        tell(f"left out: {error}")
    else:
        yield token_time(language, None, STORY)
        yield prompt_lookup(language)
        yield assisted(language)
    try:
        yield warping(family)
    except ImportError:
        tell("left out: the warping of token sequences is compared with dtaidistance, which is not installed.")


def token_time(family: Family, clip: Clip | None, question: str | None) -> Ratio:
    """TPOT of `elvi.generate` with an empty plan / of the unmodified model's own `generate`, greedy, same tokens."""
    plain = unmodified(family)
    inputs = family.inputs(clip, question or (clip.question if clip else None) or "")
    ratios = []
    for _ in range(REPEATS + 1):
        clock = _Clock()
        with torch.inference_mode():
            plain.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, streamer=clock)
        ours = generate(family, clip, question, max_new_tokens=TOKENS, ignore_eos=True).report
        ratios.append((ours.tpot_s or 0.0) / clock.seconds_per_token)
    what = f"time per output token on {family.name}, elvi.generate / model.generate ({TOKENS} tokens)"
    return Ratio(f"tpot-{family.name}", what, spread(ratios[1:]), None, 1.0)


class _Clock:
    """A transformers streamer that notes when tokens arrive (the prompt is announced first)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...

    @property
    def seconds_per_token(self) -> float:
        first, last = self.times[1], self.times[-1]
        return (last - first) / (len(self.times) - 2)


def prefill_time(family: Family, clip: Clip) -> Ratio:
    """From frames to the first token: elvi / preparing the model's inputs and one `model.forward`."""
    plain, ratios = unmodified(family), []
    for _ in range(REPEATS + 1):
        synchronise(family.device)
        start = time.perf_counter()
        with torch.inference_mode():
            plain(**family.inputs(clip, clip.question or ""), logits_to_keep=1, use_cache=True)
        synchronise(family.device)
        forward = time.perf_counter() - start
        ratios.append(generate(family, clip, max_new_tokens=1).report.ttft_s / forward)
    what = f"time to first token on {family.name}, elvi.generate / model.forward, both from frames"
    return Ratio("prefill", what, spread(ratios[1:]), None, 1.05)


def speculation(family: Family) -> Ratio:
    """Wall-clock speed-up of whole captions by the shipped drafter, its own reading of the clip included."""
    technique, speedups = SpeculativeSampling(num_draft=8), []
    for number in range(HELD_OUT, HELD_OUT + REPEATS + 1):
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
    assistant = unmodified(drafter)
    assistant.generation_config.num_assistant_tokens = DRAFTED
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    theirs = {"assistant_model": assistant, "tokenizer": family.tokenizer, "assistant_tokenizer": drafter.tokenizer}
    what = f"tokens a second on {family.name}, {technique!r} / transformers' assisted generation, same answers"
    return Ratio("assisted-generation", what, spread(_against(family, technique, theirs)), 1.2, None)


def _against(family: Family, technique: Any, options: dict[str, Any]) -> list[float]:
    """Seconds of transformers' `generate` with the options / ours, on text prompts that both answer alike."""
    plain, ratios = unmodified(family), []
    for prompt in prompts()[: REPEATS + 1]:
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
    return float(np.median([_clocked(work)[0] for _ in range(50)]))


def pruning(family: Family, technique: Any) -> Ratio:
    """TTFT ratio, selection included / the FLOP ratio that the meter predicts."""
    frames = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)
    clip = Clip(frames, np.arange(16) / 2, "what color is the star ?")
    plans = Plan(), Plan(technique)
    reports = [
        [generate(family, clip, plan=plan, max_new_tokens=1).report for plan in plans] for _ in range(WIDE_REPEATS + 1)
    ]
    assert reports[0][0].visual_tokens["encoded"] == 2048, "the clip was made for 2,048 visual tokens"
    values = [(ours.ttft_s / plain.ttft_s) / (ours.flops / plain.flops) for plain, ours in reports[1:]]
    what = f"TTFT ratio / FLOP ratio of {technique!r} at 2,048 visual tokens, width {family.config.hidden_size}"
    return Ratio(f"ttft-{type(technique).__name__.lower()}", what, spread(values), 0.85, 1.15)


def wide() -> Family:
    """A random-weight Qwen2.5-VL with a thin tower, and a language model so wide that arithmetic decides its speed."""
    small = load(MODEL)
    config = transformers.AutoConfig.from_pretrained(tiny.path(MODEL))
    text, layers = config.text_config, 14
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 2816, layers
    text.num_attention_heads, text.num_key_value_heads = 16, 4
    text.layer_types = ["full_attention"] * layers
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    vision = config.vision_config
    vision.depth, vision.fullatt_block_indexes, vision.out_hidden_size = 1, [], text.hidden_size
    torch.manual_seed(0)
    model = type(small.model)(config).to(small.device)
    processor = copy.deepcopy(small.image_processor)
    processor.size = {"shortest_edge": 256 * 256, "longest_edge": 256 * 256}
    return type(small)("wide-qwen", model, small.tokenizer, processor)


def unmodified(family: Family) -> Any:
    """A copy of the model on its own attention kernel, as transformers made it."""
    plain = copy.deepcopy(family.model)
    plain.set_attn_implementation(family.attention_kernel)
    return plain


def divprune_kernel() -> Ratio:
    """DivPrune's compiled choice against the plain loop, both from the same similarities."""
    torch.manual_seed(0)
    cosine = divprune.similarity(torch.randn(2048, 1024))
    speedups = []
    for _ in range(REPEATS + 1):
        plain, expected = _clocked(lambda: plain_loop(cosine, 256))
        ours, chosen = _clocked(lambda: divprune.spread(cosine.numpy(), 256))
        assert chosen.tolist() == expected.tolist()
        speedups.append(plain / ours)
    what = "DivPrune's kernel, times faster than the plain torch loop (2,048 tokens, 256 kept, width 1,024)"
    return Ratio("divprune-kernel", what, spread(speedups[1:]), 10.0, None)


def plain_loop(cosine: Tensor, count: int) -> Tensor:
    """The choice as it is usually written: in every step the rows of all chosen tokens are looked at again."""
    chosen = cosine.clone().fill_diagonal_(float("-inf")).amax(0).argmin()[None]
    while len(chosen) < count:
        nearest = cosine[chosen].amax(0)
        nearest[chosen] = float("inf")
        chosen = torch.cat([chosen, nearest.argmin()[None]])
    return chosen


def _clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call on the CPU."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def snapkv_bytes(family: Family) -> Ratio:
    """Allocated cache bytes after SnapKV / rows x layers x heads x head size x 2 x bytes per number: exactly 1."""
    clip, ratios = sample(HELD_OUT, "caption", 8), []
    for keep_ratio in (0.1, 0.25, 0.5, 0.75):
        report = generate(family, clip, plan=Plan(SnapKV(keep_ratio=keep_ratio)), max_new_tokens=1).report
        rows = budget(keep_ratio, report.prompt_tokens)
        numbers = rows * family.num_layers * family.config.num_key_value_heads * family.head_dim * 2
        ratios.append(report.kv_bytes / (numbers * family.dtype.itemsize))
    return Ratio("snapkv-bytes", "bytes of the cache after SnapKV / as the budget says", spread(ratios), 1.0, 1.0)
