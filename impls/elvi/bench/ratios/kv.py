"""Ratios of what leaves the key-value cache: its bytes, the time per token, and the time that choosing takes.

What a step reads is measured on a wide model with as many key-value heads as query heads and narrow MLPs, so that the
cache is about half of it; the time of choosing on two layers of the dimensions of Qwen2.5-VL-3B, since what it is
compared with hangs on the proportions of a layer. Every round runs the plans one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elvi import discover
from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.tokens import budget
from elvi.decode.snapkv import SnapKV
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.core.meter import Report
    from elvi.families.family import Family
    from elvi.media import Clip

    Setting = tuple[str, float]  # a technique and its keep_ratio
    Round = dict[Setting, Report]

VISUAL, TOKENS = 4096, 64  # visual tokens of the prompt, tokens of the answer
WIDE = {"layers": 8, "width": 1024, "inner": 1024, "key_value_heads": 16}
REAL = {"layers": 2, "width": 2048, "inner": 11008, "key_value_heads": 2, "head_dim": 128}
FULL, SNAPKV, SHIFTKV = ("full", 1.0), ("snapkv", 0.1), ("mm-shiftkv", 0.1)
HYBRID_10, HYBRID_20 = ("hybridkv", 0.1), ("hybridkv", 0.2)
PILOT = {FULL: (1.73, 58.94), HYBRID_20: (0.40, 42.08), HYBRID_10: (0.22, 38.65)}  # GB of cache, ms per token


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """What techniques that are not there (yet) would show is left out."""
    yield snapkv_bytes(family)
    large, plans = common.wide(**WIDE), {FULL: Plan()}
    for name, keep_ratio in (SNAPKV, SHIFTKV, HYBRID_20, HYBRID_10):
        if name in discover.list_techniques():
            plans[name, keep_ratio] = Plan(discover.technique(name)(keep_ratio=keep_ratio))
        else:
            tell(f"left out: there is no technique {name!r}, so nothing can be measured of it at {keep_ratio:.0%}.")
    reading = {each: plan for each, plan in plans.items() if each != SHIFTKV}
    found = rounds(large, common.noise(VISUAL), reading, TOKENS)
    assert found[0][FULL].visual_tokens["encoded"] == VISUAL, "the clip was made for so many"
    yield token_time(large, found)
    real, choosing = common.wide(**REAL), [each for each in (SNAPKV, SHIFTKV) if each in plans]
    chosen = rounds(real, common.noise(VISUAL), {each: plans[each] for each in choosing}, 1)
    for setting in choosing:
        yield selection(setting, real, chosen)
    if HYBRID_10 in plans:
        yield hybrid_read(large, found)
        for setting in (HYBRID_20, HYBRID_10):
            yield from pilot(setting, large, found)


def snapkv_bytes(family: Family) -> Ratio:
    """Allocated cache bytes after SnapKV / rows x layers x heads x head size x 2 x bytes per number: exactly 1."""
    clip, ratios = sample(HELD_OUT, "caption", 8), []
    for keep_ratio in (0.1, 0.25, 0.5, 0.75):
        report = generate(family, clip, plan=Plan(SnapKV(keep_ratio=keep_ratio)), max_new_tokens=1).report
        rows = budget(keep_ratio, report.prompt_tokens)
        numbers = rows * family.num_layers * family.config.num_key_value_heads * family.head_dim * 2
        ratios.append(report.kv_bytes / (numbers * family.dtype.itemsize))
    return Ratio("snapkv-bytes", "bytes of the cache after SnapKV / as the budget says", spread(ratios), 1.0, 1.0)


def rounds(family: Family, clip: Clip, plans: dict[Setting, Plan], tokens: int) -> list[Round]:
    """Reports of all plans, round by round, after each has run on the first time step alone."""
    for plan in plans.values():
        generate(family, clip.take(range(2)), plan=plan, max_new_tokens=2)
    return [
        {
            setting: generate(family, clip, plan=plan, max_new_tokens=tokens, ignore_eos=True).report
            for setting, plan in plans.items()
        }
        for _ in range(common.WIDE_REPEATS)
    ]


def token_time(family: Family, found: list[Round]) -> Ratio:
    """TPOT with SnapKV / with the full cache, divided by the same ratio of the bytes that a step has to read."""
    weights = step_weights(family)
    values = [
        _quotient(each, SNAPKV, lambda report: report.tpot_s)
        / _quotient(each, SNAPKV, lambda report: weights + report.kv_read_bytes)
        for each in found
    ]
    share = found[0][FULL].kv_read_bytes / (weights + found[0][FULL].kv_read_bytes)
    what = (
        f"TPOT ratio / ratio of the bytes of weights and cache that a step reads, {_spelt(SNAPKV)} / full cache "
        f"({share:.0%} of the bytes), {shape(family, found)}"
    )
    return Ratio("kv-tpot", what, spread(values), 0.8, 1.2)


def selection(setting: Setting, family: Family, found: list[Round]) -> Ratio:
    """Seconds of choosing / TTFT."""
    values = [each[setting].select_s / each[setting].ttft_s for each in found]
    what = f"seconds of selection / TTFT, {_spelt(setting)}, {shape(family, found)}"
    return Ratio(f"selection-{setting[0]}", what, spread(values), None, 0.05)


def hybrid_read(family: Family, found: list[Round]) -> Ratio:
    """Key-value bytes that a step reads, from either tier and to choose among them."""
    values = [_quotient(each, HYBRID_10, lambda report: report.kv_read_bytes) for each in found]
    what = f"key-value bytes read per decoding forward, {_spelt(HYBRID_10)} / full cache, {shape(family, found)}"
    return Ratio("hybridkv-read", what, spread(values), None, 1 / 7.9)


def pilot(setting: Setting, family: Family, found: list[Round]) -> Iterator[Ratio]:
    """Memory and time per token next to the survey's pilot, in shape: other model, other machine, random weights.

    Memory is what a step needs in the first tier: rows that are fetched have to be there too while they are read.
    """
    (full_gb, full_ms), (gb, ms) = PILOT[FULL], PILOT[setting]
    name, where = _spelt(setting), f"on Qwen2.5-VL-7B, Video-ChatGPT; here {shape(family, found)}"
    memory = [_quotient(each, setting, lambda report: report.kv_read_bytes) for each in found]
    what = (
        f"key-value bytes that a step needs at hand, {name} / full cache; the survey reports {gb:.2f} / {full_gb:.2f} "
    )
    yield Ratio(f"pilot-memory-{setting[1]:g}", f"{what}GB = {gb / full_gb:.3f} {where}", spread(memory), None, None)
    times = [_quotient(each, setting, lambda report: report.tpot_s) for each in found]
    what = f"TPOT, {name} / full cache; the survey reports {ms:.2f} / {full_ms:.2f} "
    yield Ratio(f"pilot-tpot-{setting[1]:g}", f"{what}ms = {ms / full_ms:.3f} {where}", spread(times), None, None)


def step_weights(family: Family) -> int:
    """Bytes of the parameters that a decoding step reads: decoder layers, norm and output head (one row embeds)."""
    parts = (family.text.layers, family.text.norm, family.model.get_output_embeddings())
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def shape(family: Family, found: list[Round]) -> str:
    """The model and the prompt, in words."""
    config, report = family.config, next(iter(found[0].values()))
    return (
        f"{report.visual_tokens['encoded']:,.0f} visual tokens, {family.num_layers} layers of width "
        f"{config.hidden_size}, {config.num_attention_heads} query and {config.num_key_value_heads} key-value heads of "
        f"{family.head_dim}, MLPs of {config.intermediate_size}, {report.attention} kernel"
    )


def _spelt(setting: Setting) -> str:
    """As on the command line."""
    return f"{setting[0]}:keep_ratio={setting[1]:g}"


def _quotient(each: Round, setting: Setting, cost: Callable[[Report], float]) -> float:
    """What the technique costs / what the full cache costs in the same round."""
    return cost(each[setting]) / cost(each[FULL])
