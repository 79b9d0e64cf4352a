"""A prompt that is read piece by piece: the clip step by step as it arrives, and a question at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elvi.core.run import Run
from elvi.core.views import Seen
from elvi.core.walk import walk
from elvi.media import Clip

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.families.family import Encoding


class Pieces:
    """The prompt of a run in progress. What has been shown is remembered as times and cells, not as pictures.

    Every token gets the row, position and cell that it would have in the whole prompt read at once.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.slots: list[Tensor] = []
        self.times = np.empty(0)
        self.still = False

    def read(self, clip: Clip) -> None:
        """Whole time steps (see `Family.steps`): encode them, read them into the cache, let Keep act on it."""
        run, family = self.run, self.run.family
        with run.meter.time("encode"):
            encoding = encode(run, clip)
        visual = family.project(reduce_encoded(run, encoding, clip, None))
        self.slots = family.joined(self.slots, encoding.slots, clip)
        self.times, self.still = np.concatenate([self.times, clip.times]), clip.still
        with run.meter.time("prefill"):
            prompt = family.prompt("", self.shown, self.slots, run.num_rows)
            until = int(prompt.layout.visual.nonzero()[-1]) + 1
            tokens = prompt.fill(visual)
            run.phase = "piece"
            run.extend(prompt.layout.keep(torch.arange(until, device=family.device)))
            walk(tokens.keep(tokens.row < run.num_rows), run)
        run.commit()

    def ask(self, question: str) -> Tensor:
        """Read the question: logits [V] of the first token of the answer."""
        run, family = self.run, self.run.family
        with run.meter.time("prefill"):
            prompt = family.prompt(question, self.shown, self.slots or None, run.num_rows)
            run.phase = "prompt"
            run.extend(prompt.layout)
            run.asked(question, prompt.question_rows)
            logits = family.head(walk(prompt.layout, run)[-1:])[0]
        run.commit()
        run.phase = "answer"
        return logits

    @property
    def shown(self) -> Clip | None:
        """All that was shown, without its pixels."""
        frames = np.empty((len(self.times), 0, 0, 3), dtype=np.uint8)
        return Clip(frames, self.times, still=self.still) if len(self.times) else None

    def fork(self) -> Pieces:
        """The same state, to be asked without changing this one."""
        copied = Pieces(self.run.fork())
        copied.slots, copied.times, copied.still = self.slots, self.times, self.still
        return copied


def encode(run: Run, clip: Clip) -> Encoding:
    """A clip after the vision tower, inside of which techniques may have acted."""
    plan, family = run.plan, run.family
    if plan.towered and family.free_tower:
        return family.encode_reduced(clip, plan.towered)
    return family.encode(clip, plan.tower_layers)


def reduce_encoded(run: Run, encoding: Encoding, clip: Clip, question: str | None) -> Tokens:
    """What techniques leave of the tokens that came from the vision tower."""
    visual, counts = encoding.tokens, run.meter.visual_tokens
    counts["encoded"] = counts.get("encoded", 0) + len(visual)
    run.meter.tower_flops += encoding.flops
    nothing = torch.empty(0, dtype=torch.long)
    with run.meter.time("select"):
        for reducer in [*([] if run.family.free_tower else run.plan.towered), *run.plan.encoded]:
            memory = run.memory.setdefault((id(reducer), -1), {})
            visual = reducer.reduce(visual, Seen(question, nothing, encoding.tower, clip=clip, memory=memory))
    counts["reduced"] = counts.get("reduced", 0) + len(visual)
    return visual
