"""One cell of a sweep: quality on held-out clips, then time next to the unmodified model."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elvi.bench.prompts import prompts
from elvi.core.generate import Output, generate
from elvi.core.plan import Plan
from elvi.tiny.data import HELD_OUT, KINDS, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from elvi.bench.results import Cell, Quality, Speculation, Spread
    from elvi.core.meter import Report
    from elvi.families.family import Family
    from elvi.media import Clip

LONGEST = 256  # tokens; a caption of 8 seconds has at most 205
LONGEST_TEXT = 64  # tokens of the answer to a text prompt, which has no right answer
TIMED_TOKENS, TIMED_SECONDS, WARM_UP_TOKENS = 64, 8, 4


@dataclass(frozen=True)
class Protocol:
    """What is asked: `clips` held-out clips (all kinds in turn) once each, and `repeats` captions for the clock.

    Timed captions are of 8 seconds and 64 tokens, whatever the answer; baseline and technique take turns going first.
    A model that reads text only is asked the first `clips` text prompts, and is timed on the first `repeats` of them.
    """

    clips: int = 60
    repeats: int = 5
    first_seed: int = HELD_OUT

    def asked(self, family: Family) -> Iterable[tuple[int, Clip | None, str]]:
        """(number, clip, question) of everything that is asked."""
        if family.image_processor is None:
            for number, prompt in enumerate(prompts()[: self.clips]):
                yield number, None, prompt.text
            return
        for number in range(self.first_seed, self.first_seed + self.clips):
            clip = sample(number)
            yield number, clip, clip.question or ""

    def timed(self, family: Family) -> list[tuple[Clip | None, str]]:
        if family.image_processor is None:
            return [(None, prompt.text) for prompt in prompts()[: self.repeats]]
        clips = [sample(self.first_seed + repeat, "caption", TIMED_SECONDS) for repeat in range(self.repeats)]
        return [(clip, clip.question or "") for clip in clips]

    def to_dict(self, family: Family) -> dict[str, Any]:
        """As it was carried out: a text model has been asked `clips` prompts, as many as there are at most."""
        if family.image_processor is None:
            asked = {"clips": min(self.clips, len(prompts())), "repeats": min(self.repeats, len(prompts()))}
            return {**asdict(self), **asked, "kinds": ["text"]}
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
    plain = _unmodified(family, protocol, tick if baseline is None else lambda: None)
    answers = plain if baseline is None else answered(family, plan_for, protocol, tick)
    same = sum(mine.tokens == theirs.tokens for (_, mine), (_, theirs) in zip(answers, plain))
    reports = [output.report for _, output in answers]
    seams = {seam: _mean(report.visual_tokens[seam] for report in reports) for seam in reports[0].visual_tokens}
    kv_bytes = _mean(report.kv_bytes for report in reports)
    read = _mean(report.kv_read_bytes or 0.0 for report in reports)
    reference = baseline or {"visual_tokens": seams, "kv_bytes": kv_bytes, "kv_read_bytes": read}
    measured = pairs(family, plan, protocol.timed(family), tick) if timed else []
    clocks = _clocks(measured) if timed else dict.fromkeys(CLOCKS)
    return {
        "setting": setting,
        "plan": reports[0].plan,
        "lossless": reports[0].lossless,
        "quality": quality(answers),
        "same_answers": {"same": same, "of": len(answers)},
        "visual_tokens": seams,
        "kept_share": _share(seams["cache_mean"], reference["visual_tokens"]["cache_mean"]),
        "kv_bytes": kv_bytes,
        "kv_ratio": kv_bytes / reference["kv_bytes"],
        "kv_far_bytes": _mean(report.kv_far_bytes for report in reports),
        "kv_read_bytes": read,
        "kv_read_ratio": _share(read, reference["kv_read_bytes"]),
        **clocks,
        "forwards": _mean(report.forwards for report in reports),
        "acceptance_length": _acceptance(reports) if plan.drafters else None,
        "speculation": speculation(reports, measured) if plan.drafters and timed else None,
    }


_PLAIN: dict[tuple[Family, Protocol], list[tuple[Clip | None, Output]]] = {}


def _unmodified(family: Family, protocol: Protocol, tick: Callable[[], None]) -> list[tuple[Clip | None, Output]]:
    """The unmodified model's answers; kept, because every cell is compared with them."""
    if (family, protocol) in _PLAIN:
        for _ in _PLAIN[family, protocol]:
            tick()
    else:
        _PLAIN[family, protocol] = answered(family, lambda _: Plan(), protocol, tick)
    return _PLAIN[family, protocol]


def answered(
    family: Family, plan_for: Callable[[int], Plan], protocol: Protocol, tick: Callable[[], None]
) -> list[tuple[Clip | None, Output]]:
    """(clip, output) of everything that the protocol asks."""
    answers = []
    for number, clip, question in protocol.asked(family):
        longest = LONGEST if clip else LONGEST_TEXT
        answers.append((clip, generate(family, clip, question, plan=plan_for(number), max_new_tokens=longest)))
        tick()
    return answers


def speculation(reports: list[Report], measured: list[tuple[Report, Report]]) -> Speculation:
    """What drafting came to over all answers, and over timed (plain, ours) pairs what it cost and what it gained."""
    accepted = [count for report in reports for count in report.accepted]
    rounds = len(accepted)
    return {
        "accepted_histogram": [accepted.count(count) for count in range(max(accepted, default=0) + 1)],
        "drafted_per_round": sum(count for report in reports for count in report.drafted) / max(rounds, 1),
        "accepted_per_round": sum(accepted) / max(rounds, 1),
        "tokens_per_round": _acceptance(reports) or 0.0,
        **{key: spread([found[key] for found in map(_costs, measured)]) for key in _costs(measured[0])},
    }


def _costs(pair: tuple[Report, Report]) -> dict[str, float]:
    """One timed pair, as `results.Speculation` says."""
    plain, ours = pair
    step, steps = plain.tpot_s or 0.0, plain.generated_tokens - 1
    decode = (ours.tpot_s or 0.0) * (ours.generated_tokens - 1)
    drafted, rounds = sum(ours.drafted), ours.forwards
    draft_cost = (ours.draft_s - ours.draft_start_s) / max(drafted, 1) / step
    verify_cost = ours.verify_s / rounds / step
    return {
        "draft_share": (ours.draft_s - ours.bridge_s) / decode,
        "bridge_share": ours.bridge_s / decode,
        "verify_share": ours.verify_s / decode,
        "draft_start_s": ours.draft_start_s,
        "draft_cost": draft_cost,
        "verify_cost": verify_cost,
        "modelled_speedup": (ours.acceptance_length or 1.0) / (drafted / rounds * draft_cost + verify_cost),
        "decode_speedup": step * steps / decode,
        "speedup": (plain.ttft_s + step * steps) / (ours.ttft_s + decode),
    }


def quality(answers: list[tuple[Clip | None, Output]]) -> Quality:
    """How many answers are right word for word (see `results.Quality` for what counts)."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"correct": 0, "of": 0})
    for clip, output in answers:
        if clip is None:
            continue  # a text prompt has no right answer
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
    family: Family, plan: Plan, asked: list[tuple[Clip | None, str]], tick: Callable[[], None] = lambda: None
) -> list[tuple[Report, Report]]:
    """(unmodified model, plan) on each (clip, question), one right after the other, after a warm-up of both."""
    plans = (Plan(), plan)
    for each in plans:
        generate(family, *asked[0], plan=each, max_new_tokens=WARM_UP_TOKENS)
    measured = []
    for repeat, what in enumerate(asked):
        reports: dict[int, Report] = {}
        for turn in (0, 1) if repeat % 2 == 0 else (1, 0):
            out = generate(family, *what, plan=plans[turn], max_new_tokens=TIMED_TOKENS, ignore_eos=True)
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


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _mean(values: Iterable[float]) -> float:
    return float(statistics.fmean(values))


def _acceptance(reports: list[Report]) -> float | None:
    """Tokens emitted per decoding forward, over all clips."""
    forwards = sum(report.forwards for report in reports)
    return sum(report.generated_tokens - 1 for report in reports) / forwards if forwards else None
