"""Kinds of heads: what a technique that treats heads differently says of each head (see `seams.HeadKinds`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.seams import HeadKinds

if TYPE_CHECKING:
    from elvi.bench.measure import Protocol
    from elvi.bench.results import Heads
    from elvi.core.facts import Fact
    from elvi.core.views import LayerView
    from elvi.families.family import Family


@dataclass(eq=False)
class _Watch:
    """Sees what the technique would see when the prompt is committed, and keeps everything."""

    of: Any
    grid: list[list[int]] = field(default_factory=list)

    rolling: ClassVar[bool] = False
    lossless: ClassVar[bool] = True
    breaks: ClassVar[frozenset[Fact]] = frozenset()

    @property
    def needs(self) -> frozenset[Fact]:
        return self.of.needs

    @property
    def window(self) -> int:
        return self.of.window

    @property
    def streams(self) -> bool:
        return getattr(self.of, "streams", False)

    @property
    def inputs(self) -> bool:
        return getattr(self.of, "inputs", False)

    def keep(self, views: list[LayerView]) -> list[None]:
        self.grid = [[int(kind) for kind in layer] for layer in self.of.head_map(views)]
        return [None] * len(views)


def head_map(family: Family, technique: Any, protocol: Protocol) -> Heads | None:
    """The kinds of all heads on the first thing that is asked; None of a technique that tells no kinds apart."""
    if not isinstance(technique, HeadKinds):
        return None
    number, clip, question = next(iter(protocol.asked(family)))
    watch = _Watch(technique)
    generate(family, clip, question, plan=Plan(watch), max_new_tokens=1)
    what = f"{technique!r} after {'clip' if clip else 'prompt'} {number}"
    return {"what": what, "names": list(technique.head_names), "grid": watch.grid}
