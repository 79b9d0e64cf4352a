"""A plan: techniques that act together, checked before anything runs."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from elvi.core.facts import Fact
from elvi.core.seams import (
    Accept,
    Attend,
    Codec,
    Drafter,
    Encoded,
    Fetch,
    Fit,
    Keep,
    Layer,
    Reduce,
    Resize,
    SelectFrames,
    Tower,
)
from elvi.errors import FitError, PlanError

if TYPE_CHECKING:
    from elvi.families.family import Family

NOT_IN_A_STREAM = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN})  # what no model offers there


class Plan:
    """Techniques in the order in which they act along the lifecycle; those at one seam act as listed.

    Plan(a, b) only sorts and stores; `check` tells whether they work together on a model.
    """

    def __init__(self, *techniques: Any) -> None:
        self.techniques: tuple[Any, ...] = tuple(sorted(techniques, key=seam))
        self.selectors: list[SelectFrames] = [t for t in self.techniques if isinstance(t, SelectFrames)]
        self.resizers: list[Resize] = [t for t in self.techniques if isinstance(t, Resize)]
        reducers = [t for t in self.techniques if isinstance(t, Reduce)]
        self.towered: list[Reduce] = [t for t in reducers if isinstance(t.at, Tower)]
        self.encoded: list[Reduce] = [t for t in reducers if isinstance(t.at, Encoded)]
        self.layered: list[Reduce] = [t for t in reducers if isinstance(t.at, Layer)]
        self.attends: list[Attend] = [t for t in self.techniques if isinstance(t, Attend)]
        self.keeps: list[Keep] = [t for t in self.techniques if isinstance(t, Keep)]
        self.fetchers: list[Fetch] = [t for t in self.techniques if isinstance(t, Fetch)]
        self.codecs: list[Codec] = [t for t in self.techniques if isinstance(t, Codec)]
        self.drafters: list[Drafter] = [t for t in self.techniques if isinstance(t, Drafter)]
        self.accepts: list[Accept] = [t for t in self.techniques if isinstance(t, Accept)]

    def __repr__(self) -> str:
        return f"Plan({', '.join(map(repr, self.techniques))})"

    def reducers_at(self, layer: int) -> list[Reduce]:
        """Those that act entering a decoder layer, in order."""
        return [reducer for reducer in self.layered if isinstance(reducer.at, Layer) and layer in reducer.at]

    @property
    def lossless(self) -> bool:
        """Whether the answer is the unmodified model's by construction."""
        return all(technique.lossless for technique in self.techniques)

    @property
    def compacts(self) -> bool:
        """Whether the tokens that reach the language model are numbered anew, without gaps."""
        return any(getattr(reducer, "positions", "original") == "compact" for reducer in self._reducers)

    @property
    def tower_layers(self) -> set[float]:
        """Layers of the vision tower whose attention a technique asks for."""
        return {layer for reducer in self._reducers for layer in getattr(reducer, "tower_layers", ())}

    @property
    def _reducers(self) -> list[Reduce]:
        return [*self.towered, *self.encoded, *self.layered]

    @property
    def streams(self) -> bool:
        """Whether clips are read piece by piece."""
        return any(getattr(keep, "streams", False) for keep in self.keeps)

    @property
    def inputs(self) -> bool:
        """Whether a technique looks at what enters the attention of the layers."""
        return any(getattr(keep, "inputs", False) for keep in self.keeps)

    @property
    def entering(self) -> bool:
        """Whether a technique looks at the tokens that enter the layers."""
        return any(getattr(technique, "entering", False) for technique in self.techniques)

    @property
    def hidden_layer(self) -> int | None:
        """The layer whose output is looked at while drafts are judged; negative ones count from the last."""
        return next((getattr(accept, "hidden_layer", None) for accept in self.accepts), None)

    @property
    def question_attention(self) -> bool:
        """Whether a drafter wants to know what the question attends to."""
        return any(getattr(drafter, "question_attention", False) for drafter in self.drafters)

    def check(self, family: Family, *, stream: bool = False) -> None:
        """Raise PlanError (two techniques), FitError (technique and model); naming both sides, before anything runs.

        stream: whether the prompt is read piece by piece, and questions are asked later.
        """
        self._check_single(self.resizers, "choose the size of frames")
        self._check_single(self.drafters, "draft")
        self._check_single(self.towered, "act inside the vision tower")
        self._check_single(self.accepts, "decide which drafts stand")
        self._check_single(self.codecs, "pack the cache")
        self._check_single(self.fetchers, "fetch from the second tier of the cache")
        if self.accepts and not self.drafters:
            name = type(self.accepts[0]).__name__
            raise PlanError(f"{name} decides which drafts stand, but nothing in the plan drafts: add a drafter.", name)
        broken: dict[Fact, Any] = {}
        for technique in self.techniques:
            name = type(technique).__name__
            for fact in sorted(technique.needs, key=lambda fact: fact.name):
                if fact not in family.facts:
                    raise FitError(
                        f"{name} was asked of {family.name}, but it needs that {fact.value}, which is not so there: "
                        "use another model or another technique."
                    )
                if stream and fact in NOT_IN_A_STREAM:
                    raise FitError(
                        f"{name} was asked to act in a stream, but it needs that {fact.value}, which is not so there: "
                        "ask about a whole clip, or use another technique."
                    )
                if fact in broken:
                    other = type(broken[fact]).__name__
                    raise PlanError(
                        f"{name} needs that {fact.value}, which {other} (acting before it) ends: drop one of the two.",
                        name,
                        other,
                    )
            broken |= {fact: technique for fact in technique.breaks if fact not in broken}
        if stream and self.compacts:
            raise FitError(
                "Positions without gaps were asked for in a stream, where what comes later is numbered on from all "
                "that was shown: use positions=original."
            )
        if stream and (self.selectors or self.resizers):
            name = type((self.selectors or self.resizers)[0]).__name__
            raise FitError(
                f"{name} was asked to act in a stream, but it chooses among all frames of a clip, which are not there "
                "yet: ask about a whole clip, or use another technique."
            )
        self._check_rolling()
        self._check_tower(family)
        for technique in self.techniques:
            if isinstance(technique, Fit):
                technique.fit(family)
        layer, layers = self.hidden_layer, family.num_layers
        if layer is not None and not -layers <= layer < layers:
            raise FitError(
                f"{type(self.accepts[0]).__name__} was asked to look at layer {layer}, but {family.name} has {layers} "
                f"layers: choose {-layers} to {layers - 1}."
            )
        for reducer in self.layered:
            if isinstance(reducer.at, Layer) and not 0 <= reducer.at.index < family.num_layers:
                raise FitError(
                    f"{type(reducer).__name__} was asked to act at layer {reducer.at.index}, but {family.name} has "
                    f"{family.num_layers} layers: choose 0 to {family.num_layers - 1}."
                )

    def _check_rolling(self) -> None:
        """What acts again after every round or piece needs its facts then, too, when all others have acted.

        What chooses nothing then (see `follows`) does not.
        """
        again = [t for t in self.techniques if getattr(t, "rolling", False) or getattr(t, "streams", False)]
        again = [technique for technique in again if not getattr(technique, "follows", False)]
        for technique, other in product(again, self.techniques):
            lost = sorted(technique.needs & other.breaks, key=lambda fact: fact.name)
            if lost and other is not technique:
                name, culprit = type(technique).__name__, type(other).__name__
                raise PlanError(
                    f"{name} acts again and again and needs that {lost[0].value}, which {culprit} ends: drop one of "
                    "the two.",
                    name,
                    culprit,
                )

    def _check_tower(self, family: Family) -> None:
        """What looks into the vision tower finds every patch there, which none may have left."""
        for first, other in product(self.towered if family.free_tower else (), self.encoded):
            if getattr(other, "tower_layers", ()):
                name, culprit = type(other).__name__, type(first).__name__
                raise PlanError(
                    f"{name} reads attention of the vision tower patch by patch, and {culprit} merges patches inside "
                    "of it: drop one of the two.",
                    name,
                    culprit,
                )

    def _check_single(self, found: list, what: str) -> None:
        if len(found) > 1:
            first, second = (type(technique).__name__ for technique in found[:2])
            raise PlanError(f"{first} and {second} both {what}, and only one can: drop one of the two.", first, second)


def seam(technique: Any) -> tuple[int, int]:
    """Where along the lifecycle a technique acts first; those that have the clip read in pieces come before all.

    One that chooses frames and reduces tokens, too, stands where it reduces: facts are about tokens.
    """
    if getattr(technique, "streams", False):
        return -1, 0
    if isinstance(technique, Reduce):
        if isinstance(technique.at, Layer):
            return 2, technique.at.index
        return 1, int(isinstance(technique.at, Encoded))
    if isinstance(technique, SelectFrames):
        return 0, 0
    if isinstance(technique, Resize):
        return 0, 1
    for place, protocol in enumerate((Keep, Fetch, Codec, Attend, Drafter, Accept), start=3):
        if isinstance(technique, protocol):
            return place, 0
    raise PlanError(
        f"{type(technique).__name__} has none of the methods of a technique: see elvi.core.seams.",
        type(technique).__name__,
    )
