"""The command that shows a technique at work on what ships; its page, its notebook and `elvi show` name the same one.

Its samples are ones that the unmodified models answer right. It does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SHORT, LONG, CAPTION = 10003, 10000, 10007


@dataclass(frozen=True)
class Example:
    """Specs of a plan, the technique last, and the shipped model and sample that they run on."""

    plan: tuple[str, ...]
    model: str
    sample: int

    @property
    def command(self) -> str:
        return f"elvi run {' '.join(self.plan)} --model {self.model} --sample {self.sample} --baseline"


def example(
    name: str,
    needs: Collection[str],
    methods: Collection[str],
    companions: Sequence[str] = (),
    sweep: tuple[str, Sequence[float]] | None = None,
) -> Example:
    """A plan in which the technique of that id has something to do, from the facts of its class.

    needs: names of facts. methods: the public ones. sweep: the field that measurements vary, and its values.
    """
    model = "tiny-llava" if "CLS_TOKEN" in needs else "tiny-qwen"
    if "select_frames" in methods and sweep:  # papers choose from minutes, and the longest shipped sample is 32 seconds
        return Example((*companions, f"{name}:{sweep[0]}={sweep[1][-1]}"), model, LONG)
    drafts = {"start", "judge"} & set(methods)  # one word, the answer to the other questions, leaves nothing to draft
    return Example((*companions, name), model, CAPTION if drafts else SHORT)
