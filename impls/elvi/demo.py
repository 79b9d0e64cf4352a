"""Composed plans next to the unmodified model on shipped clips: real H.264 files of held-out scenes.

`python -m elvi.demo` renders the clips into the package again.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
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
REPEATS, MAX_NEW_TOKENS = 3, 256
CLIPS = Path(__file__).parent / "tiny" / "clips"


@dataclass(frozen=True)
class Scene:
    """Held-out sample `number` of a kind, as `<name>.mp4`, and the plan to answer its question with."""

    name: str
    number: int
    kind: str
    seconds: int
    plan: tuple[str, ...]

    @property
    def path(self) -> Path:
        return CLIPS / f"{self.name}.mp4"


SCENES = (
    # A pointed question about a long clip: most of what is seen can be left out.
    Scene(
        "find",
        10_000,
        "needle",
        16,
        (
            "aks:num_frames=8",
            "visionzip:keep_ratio=0.5",
            "fastv:layer=6,keep_ratio=0.5",
            "snapkv:keep_ratio=0.5",
            "speculative-sampling:draft=ngram",
        ),
    ),
    # A long answer that needs everything: fewer bits and fewer forwards.
    Scene("describe", 10_001, "caption", 5, ("calibquant:bits=4", "speculative-sampling")),
)


def compare(family: Family, scene: Scene) -> dict[str, Any]:
    """Answers of the plan and, under `baseline`, of the unmodified model; they take turns, times are medians."""
    clip = shipped(scene)
    plans = (Plan(), Plan(*map(spec.parse, scene.plan)))
    rounds = [
        [generate(family, clip, plan=plan, max_new_tokens=MAX_NEW_TOKENS) for plan in plans]
        for _ in range(1 + REPEATS)  # the first round warms up
    ]
    baseline, composed = (describe(clip, None, _median(list(outputs))) for outputs in zip(*rounds[1:]))
    return {**composed, "baseline": baseline}


def _median(outputs: list[Output]) -> Output:
    """The answer, with the median of its times over equal runs."""
    first = outputs[0]
    ttft = statistics.median(output.report.ttft_s for output in outputs)
    tpot = statistics.median(output.report.tpot_s or 0.0 for output in outputs)
    report = replace(first.report, ttft_s=ttft, tpot_s=None if first.report.tpot_s is None else tpot)
    return replace(first, report=report)


def shipped(scene: Scene) -> Clip:
    """The clip of a scene, decoded from its file, with its question and the right answer."""
    told = json.loads(scene.path.with_suffix(".json").read_text())
    return replace(read_video(scene.path, told["question"]), expected=told["expected"], kind=scene.kind)


def render(scene: Scene, path: Path) -> None:
    """Encode a scene, and write what is asked about it, and the right answer, next to it."""
    clip = sample(scene.number, scene.kind, scene.seconds)
    path.parent.mkdir(exist_ok=True)
    write_video(path, clip, frames_per_second=PACE)
    told = {"question": clip.question, "expected": clip.expected}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    for each in SCENES:
        render(each, each.path)
