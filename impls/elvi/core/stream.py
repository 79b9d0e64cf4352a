"""A stream: frames arrive one after the other, the plan bounds the cache, and questions come at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from elvi.core.generate import Output, answer, check_request
from elvi.core.pieces import Pieces
from elvi.core.plan import Plan
from elvi.core.run import Run

if TYPE_CHECKING:
    from elvi.families.family import Family
    from elvi.media import Clip


class Stream:
    """A model watching a clip without an end.

    `see` reads frames into the cache, piece by piece, and techniques that stream then make it smaller; `ask` answers
    from the cache as it is, and leaves it as it was, so that questions do not know of each other. Besides the cache a
    few integers are kept for every token. Raises PlanError or FitError when the plan does not work in a stream.
    """

    def __init__(self, family: Family, plan: Plan | None = None) -> None:
        plan = plan or Plan()
        plan.check(family, stream=True)
        self.pieces = Pieces(Run(family, plan))

    @torch.inference_mode()
    def see(self, clip: Clip) -> None:
        """Read the next frames, whose times go on from those before; the last one is repeated to fill a time step."""
        self.pieces.read(self.pieces.run.family.steps(clip))

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> Output:
        """Answer a question about what has been seen so far (see `generate`); times and bytes are of this question."""
        check_request(self.pieces.run.plan, max_new_tokens, temperature)
        pieces = self.pieces.fork()
        return answer(
            pieces.run, lambda: (None, pieces.ask(question)), max_new_tokens, temperature, seed, ignore_eos=ignore_eos
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for the cache now."""
        return self.pieces.run.store.nbytes

    @property
    def kv_far_bytes(self) -> int:
        """Bytes of its second tier."""
        return self.pieces.run.store.far_bytes
