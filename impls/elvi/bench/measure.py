"""One cell of a sweep: quality on held-out clips, then time next to the unmodified model."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elvi.core.generate import Output, generate
from elvi.core.plan import Plan
from elvi.tiny.data import HELD_OUT, KINDS, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from elvi.bench.results import Cell, Quality, Spread
    from elvi.core.meter import Report
    from elvi.families.family import Family
    from elvi.media import Clip

LONGEST = 256  # tokens; a caption of 8 seconds has at most 205
TIMED_TOKENS, TIMED_SECONDS, WARM_UP_TOKENS = 64, 8, 4


@dataclass(frozen=True)
class Protocol:
    """What is asked: `clips` held-out clips (all kinds in turn) once each, and `repeats` captions for the clock.

    Timed captions are of 8 seconds and 64 tokens, whatever the answer; baseline and technique take turns going first.
    """

    clips: int = 60
    repeats: int = 5
    first_seed: int = HELD_OUT

    def asked(self) -> Iterable[tuple[int, Clip]]:
        for number in range(self.first_seed, self.first_seed + self.clips):
            yield number, sample(number)

    def timed(self) -> list[Clip]:
        return [sample(self.first_seed + repeat, "caption", TIMED_SECONDS) for repeat in range(self.repeats)]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kinds": list(KINDS)}


def measure(
    family: Family,
    plan_for: Callable[[int], Plan],
    protocol: Protocol,
    setting: dict[str, Any],
    baseline: Cell | None,
    *,
    timed: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Cell:
    """Measure the plan (`plan_for(clip number)`). `baseline`: the unmodified model's cell; None when this is it.

    tick is called protocol.clips times, and twice for every timed repeat.
    """
    plan = plan_for(protocol.first_seed)
    answers = []
    for number, clip in protocol.asked():
        answers.append((clip, generate(family, clip, plan=plan_for(number), max_new_tokens=LONGEST)))
        tick()
    reports = [output.report for _, output in answers]
    seams = {seam: _mean(report.visual_tokens[seam] for report in reports) for seam in reports[0].visual_tokens}
    kv_bytes = _mean(report.kv_bytes for report in reports)
    reference = baseline or {"visual_tokens": seams, "kv_bytes": kv_bytes}
    clocks = _clocks(pairs(family, plan, protocol.timed(), tick)) if timed else dict.fromkeys(CLOCKS)
    return {
        "setting": setting,
        "plan": reports[0].plan,
        "lossless": reports[0].lossless,
        "quality": quality(answers),
        "visual_tokens": seams,
        "kept_share": seams["cache_mean"] / reference["visual_tokens"]["cache_mean"],
        "kv_bytes": kv_bytes,
        "kv_ratio": kv_bytes / reference["kv_bytes"],
        **clocks,
        "forwards": _mean(report.forwards for report in reports),
        "acceptance_length": _acceptance(reports) if plan.drafters else None,
    }


def quality(answers: list[tuple[Clip, Output]]) -> Quality:
    """How many answers are right word for word (see `results.Quality` for what counts)."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"correct": 0, "of": 0})
    for clip, output in answers:
        split = sentences if clip.kind == "caption" else lambda text: [_plain(text)]
        expected, said = split(clip.expected or ""), split(output.text)
        tally = kinds[clip.kind or ""]
        tally["correct"] += sum(right == mine for right, mine in zip(expected, said))
        tally["of"] += len(expected)
    captions = kinds.pop("caption", {"correct": 0, "of": 0})
    questions = {key: sum(tally[key] for tally in kinds.values()) for key in ("correct", "of")}
    return {**_scored(questions), "by_kind": dict(kinds), "captions": _scored(captions)}


def _scored(tally: dict[str, int]) -> dict[str, Any]:
    return {**tally, "accuracy": tally["correct"] / tally["of"] if tally["of"] else 0.0}


def sentences(caption: str) -> list[str]:
    """A caption split at its full stops: one sentence per second."""
    return [_plain(sentence) for sentence in caption.split(" .") if sentence.strip()]


def _plain(text: str) -> str:
    return text.lower().strip(" .")


def pairs(
    family: Family, plan: Plan, clips: list[Clip], tick: Callable[[], None] = lambda: None
) -> list[tuple[Report, Report]]:
    """(unmodified model, plan) on each clip, one right after the other, after a warm-up of both."""
    plans = (Plan(), plan)
    for each in plans:
        generate(family, clips[0], plan=each, max_new_tokens=WARM_UP_TOKENS)
    measured = []
    for repeat, clip in enumerate(clips):
        reports: dict[int, Report] = {}
        for turn in (0, 1) if repeat % 2 == 0 else (1, 0):
            out = generate(family, clip, plan=plans[turn], max_new_tokens=TIMED_TOKENS, ignore_eos=True)
            reports[turn] = out.report
            tick()
        measured.append((reports[0], reports[1]))
    return measured


CLOCKS = ("ttft_s", "ttft_ratio", "tpot_s", "tpot_ratio", "select_s")


def _clocks(measured: list[tuple[Report, Report]]) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for name in ("ttft", "tpot"):
        times = [tuple(getattr(report, f"{name}_s") for report in pair) for pair in measured]
        found[f"{name}_s"] = spread([mine for _, mine in times])
        found[f"{name}_ratio"] = spread([mine / plain for plain, mine in times])
    return {**found, "select_s": spread([mine.frames_s + mine.select_s for _, mine in measured])}


def spread(values: list[float]) -> Spread:
    """Median and quartiles (linear interpolation between neighbours)."""
    q1, median, q3 = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def _mean(values: Iterable[float]) -> float:
    return float(statistics.fmean(values))


def _acceptance(reports: list[Report]) -> float | None:
    """Tokens emitted per decoding forward, over all clips."""
    forwards = sum(report.forwards for report in reports)
    return sum(report.generated_tokens - 1 for report in reports) / forwards if forwards else None
