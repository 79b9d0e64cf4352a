"""One question and its answer as the object that `elvi run --json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elvi.core.generate import Output, generate
from elvi.core.plan import Plan
from elvi.errors import ElviError
from elvi.media import read_images, read_video
from elvi.tiny.data import HELD_OUT, sample

if TYPE_CHECKING:
    from elvi.families.family import Family
    from elvi.media import Clip

WARM_UP_TOKENS = 2


def clip_from(video: str | None, images: list[str] | None, number: int | None, prompt: str | None) -> Clip | None:
    """What to look at: a video, images or a sample. A prompt alone is text only; nothing is the first held-out sample.

    Raises MediaError for files that cannot be read, ElviError when nothing is asked about them.
    """
    if video is not None or images is not None:
        if not prompt:
            raise ElviError("No question was asked about the pictures, so there is nothing to answer: add --prompt.")
        return read_video(video, prompt) if video is not None else read_images(images or [], prompt)
    if number is None and prompt:
        return None
    clip = sample(HELD_OUT if number is None else number)
    return clip.ask(prompt) if prompt else clip


def ask(family: Family, clip: Clip | None, prompt: str | None, plan: Plan, **settings: Any) -> dict[str, Any]:
    """Generate, after a short warm-up that keeps first-call costs out of the seconds. `settings`: those of generate."""
    warm_up = {**settings, "max_new_tokens": min(WARM_UP_TOKENS, settings["max_new_tokens"])}
    generate(family, clip, prompt, plan=plan, **warm_up)
    return describe(clip, prompt, generate(family, clip, prompt, plan=plan, **settings))


def describe(clip: Clip | None, prompt: str | None, output: Output) -> dict[str, Any]:
    """plan, question, expected (None for own input), answer, tokens, report."""
    return {
        "plan": output.report.plan,
        "question": prompt or (clip.question if clip else None),
        "expected": clip.expected if clip else None,
        "answer": output.text,
        "tokens": output.tokens,
        "report": output.report.to_dict(),
    }
