"""A composed plan next to the unmodified model on a shipped clip: a real H.264 file of a held-out scene.

`python -m elvi.demo N` renders held-out clip N into the package again.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvi import spec
from elvi.ask import describe
from elvi.core.generate import Output, generate
from elvi.core.plan import Plan
from elvi.media import read_video, write_video
from elvi.tiny.data import PACE, sample

if TYPE_CHECKING:
    from elvi.families.family import Family
    from elvi.media import Clip

MODEL = "tiny-qwen"
PLAN = ("visionzip:keep_ratio=0.6", "fastv:layer=6,keep_ratio=0.5", "snapkv:keep_ratio=0.6", "speculative-sampling")
REPEATS, MAX_NEW_TOKENS = 3, 256
CLIP = Path(__file__).parent / "tiny" / "clips" / "describe.mp4"


def compare(family: Family) -> dict[str, Any]:
    """Answers of the plan and, under `baseline`, of the unmodified model; they take turns, times are medians."""
    clip = shipped_clip()
    plans = (Plan(), Plan(*map(spec.parse, PLAN)))
    for plan in plans:
        generate(family, clip, plan=plan, max_new_tokens=MAX_NEW_TOKENS)
    rounds = [
        [generate(family, clip, plan=plan, max_new_tokens=MAX_NEW_TOKENS) for plan in plans] for _ in range(REPEATS)
    ]
    baseline, composed = (describe(clip, None, _median(list(outputs))) for outputs in zip(*rounds, strict=True))
    return {**composed, "baseline": baseline}


def _median(outputs: list[Output]) -> Output:
    """The answer, with the median of its times over equal runs."""
    first = outputs[0]
    ttft = statistics.median(output.report.ttft_s for output in outputs)
    tpot = statistics.median(output.report.tpot_s or 0.0 for output in outputs)
    report = replace(first.report, ttft_s=ttft, tpot_s=None if first.report.tpot_s is None else tpot)
    return replace(first, report=report)


def shipped_clip() -> Clip:
    """The clip that comes with the package, decoded from its file, with its question and the right answer."""
    known = json.loads(CLIP.with_suffix(".json").read_text())
    return replace(read_video(CLIP, known["question"]), expected=known["expected"], kind=known["kind"])


def render(number: int, path: Path = CLIP, *, kind: str = "caption", seconds: int = 5) -> None:
    """Encode a held-out sample, and write what is asked about it next to it."""
    clip = sample(number, kind, seconds)
    path.parent.mkdir(exist_ok=True)
    write_video(path, clip, frames_per_second=PACE)
    known = {"sample": number, "kind": clip.kind, "question": clip.question, "expected": clip.expected}
    path.with_suffix(".json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    render(int(sys.argv[1]))
