"""A plan: techniques that act together, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from elvi.core.facts import Fact
from elvi.errors import FitError, PlanError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from elvi.core.accept import Draft, Path, Sampler
    from elvi.core.run import Run
    from elvi.core.store import Kept, LayerStore
    from elvi.core.tokens import Tokens
    from elvi.core.views import Fetched, LayerView, Seen
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class Encoded:
    """Between vision tower and adapter: all visual tokens, no text."""


@dataclass(frozen=True)
class Layer:
    """Entering decoder layer `index` (0: before the language model) with the whole prompt in one row."""

    index: int


class Technique(Protocol):
    """A frozen dataclass. `needs` must hold when it acts, `breaks` no longer holds afterwards."""

    needs: ClassVar[frozenset[Fact]]
    breaks: ClassVar[frozenset[Fact]]
    lossless: ClassVar[bool]


@runtime_checkable
class Fit(Protocol):
    """Optional: look at the model before anything runs, and raise FitError if it will not do."""

    def fit(self, family: Family) -> None: ...


@runtime_checkable
class SelectFrames(Protocol):
    """Choose which time steps are encoded: ascending index into `clip` (one frame per step)."""

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray: ...


@runtime_checkable
class Reduce(Protocol):
    """Drop or merge visual tokens at `at`; text tokens come back untouched. `tower_layers`: see Seen.tower."""

    @property
    def at(self) -> Encoded | Layer: ...

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens: ...


@runtime_checkable
class Attend(Protocol):
    """What each query row reads: bool [Hq, Q, K] (may read), float [Hq, Q, K] (added to the logits), None (all).

    `prefill` says whether it acts while the prompt is read, `decode` whether it acts afterwards.
    """

    prefill: ClassVar[bool]
    decode: ClassVar[bool]

    def attend(self, view: LayerView) -> Tensor | None: ...


@runtime_checkable
class Keep(Protocol):
    """Which slots (ascending) the heads of each layer keep when rows are committed; None keeps all.

    `window`: how many last query rows the views carry; `rolling`: act after every round, not only after the prompt.
    With a true attribute `streams`, clips are read piece by piece (a time step each), and it acts after each piece too;
    with a true attribute `inputs`, its views carry the prompt's rows as they entered the layer's attention.
    """

    @property
    def window(self) -> int: ...

    rolling: ClassVar[bool]

    def keep(self, views: list[LayerView]) -> Sequence[Kept | Tensor | Sequence[Tensor] | None]: ...


@runtime_checkable
class Fetch(Protocol):
    """Which rows of the second tier each query row reads, besides all that is in the first one.

    Per head the slots [Q, m] (-1: none, for rows that read fewer), counted along `view.store.far`; None of all heads:
    none at all. What a row reads may depend on that row only. `looked` bytes were read to decide.
    """

    def fetch(self, view: LayerView) -> Fetched: ...


@runtime_checkable
class Codec(Protocol):
    """Store some slots of a layer in fewer bits: calls `store.pack(packed, slots)`, once, after the prompt."""

    def pack(self, view: LayerView, store: LayerStore) -> None: ...


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens that the model then verifies in one forward; `clip` holds the frames that the model saw.

    With a true attribute `question_attention`, `run.question_attention` is there when `start` is called.
    """

    def start(self, run: Run, clip: Clip | None, sampler: Sampler) -> Drafting: ...


class Drafting(Protocol):
    """A drafter at work on one sequence. `ids` are the tokens emitted so far; at most `limit` deep."""

    def propose(self, ids: list[int], limit: int) -> Draft: ...

    def heard(self, path: Path) -> None: ...


Judge = Callable[["Draft", "Tensor"], "Path"]


@runtime_checkable
class Accept(Protocol):
    """Which drafted tokens stand: `judge`, called when the prompt is read, returns the rule for this sequence.

    The rule takes a draft and the model's logits [n+1, V] (row 0: after the last emitted token). greedy_only: whether
    it makes no sense when tokens are sampled. With an attribute `hidden_layer` (-1: the last), `run.watched` holds the
    tokens of the latest forward as they leave that layer: the prompt's when `judge` is called, then root and draft.
    """

    greedy_only: ClassVar[bool]

    def judge(self, run: Run, sampler: Sampler) -> Judge: ...


class Plan:
    """Techniques in the order in which they act along the lifecycle; those at one seam act as listed.

    Plan(a, b) only sorts and stores; `check` tells whether they work together on a model.
    """

    def __init__(self, *techniques: Any) -> None:
        self.techniques: tuple[Any, ...] = tuple(sorted(techniques, key=seam))
        self.selectors: list[SelectFrames] = [t for t in self.techniques if isinstance(t, SelectFrames)]
        reducers = [t for t in self.techniques if isinstance(t, Reduce)]
        self.encoded: list[Reduce] = [t for t in reducers if isinstance(t.at, Encoded)]
        self.layer_reducers: dict[int, list[Reduce]] = {}
        for reducer in reducers:
            if isinstance(reducer.at, Layer):
                self.layer_reducers.setdefault(reducer.at.index, []).append(reducer)
        self.attends: list[Attend] = [t for t in self.techniques if isinstance(t, Attend)]
        self.keeps: list[Keep] = [t for t in self.techniques if isinstance(t, Keep)]
        self.fetchers: list[Fetch] = [t for t in self.techniques if isinstance(t, Fetch)]
        self.codecs: list[Codec] = [t for t in self.techniques if isinstance(t, Codec)]
        self.drafters: list[Drafter] = [t for t in self.techniques if isinstance(t, Drafter)]
        self.accepts: list[Accept] = [t for t in self.techniques if isinstance(t, Accept)]

    def __repr__(self) -> str:
        return f"Plan({', '.join(map(repr, self.techniques))})"

    @property
    def lossless(self) -> bool:
        """Whether the answer is the unmodified model's by construction."""
        return all(technique.lossless for technique in self.techniques)

    @property
    def tower_layers(self) -> set[int]:
        return {layer for reducer in self.encoded for layer in getattr(reducer, "tower_layers", ())}

    @property
    def streams(self) -> bool:
        """Whether clips are read piece by piece."""
        return any(getattr(keep, "streams", False) for keep in self.keeps)

    @property
    def inputs(self) -> bool:
        """Whether a technique looks at what enters the attention of the layers."""
        return any(getattr(keep, "inputs", False) for keep in self.keeps)

    @property
    def hidden_layer(self) -> int | None:
        """The layer whose output is looked at while drafts are judged; negative ones count from the last."""
        return next((getattr(accept, "hidden_layer", None) for accept in self.accepts), None)

    @property
    def question_attention(self) -> bool:
        """Whether a drafter wants to know what the question attends to."""
        return any(getattr(drafter, "question_attention", False) for drafter in self.drafters)

    def check(self, family: Family) -> None:
        """Raise PlanError (two techniques), FitError (technique and model); naming both sides, before anything runs."""
        self._check_single(self.drafters, "draft")
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
                if fact in broken:
                    other = type(broken[fact]).__name__
                    raise PlanError(
                        f"{name} needs that {fact.value}, which {other} (acting before it) ends: drop one of the two.",
                        name,
                        other,
                    )
            broken |= {fact: technique for fact in technique.breaks if fact not in broken}
        for technique in self.techniques:
            if isinstance(technique, Fit):
                technique.fit(family)
        layer, layers = self.hidden_layer, family.num_layers
        if layer is not None and not -layers <= layer < layers:
            raise FitError(
                f"{type(self.accepts[0]).__name__} was asked to look at layer {layer}, but {family.name} has {layers} "
                f"layers: choose {-layers} to {layers - 1}."
            )
        for index, reducers in self.layer_reducers.items():
            if not 0 <= index < family.num_layers:
                raise FitError(
                    f"{type(reducers[0]).__name__} was asked to act at layer {index}, but {family.name} has "
                    f"{family.num_layers} layers: choose 0 to {family.num_layers - 1}."
                )

    def _check_single(self, found: list, what: str) -> None:
        if len(found) > 1:
            first, second = (type(technique).__name__ for technique in found[:2])
            raise PlanError(f"{first} and {second} both {what}, and only one can: drop one of the two.", first, second)


def seam(technique: Any) -> tuple[int, int]:
    """Where along the lifecycle a technique acts first; those that have the clip read in pieces come before all."""
    if getattr(technique, "streams", False):
        return -1, 0
    if isinstance(technique, SelectFrames):
        return 0, 0
    if isinstance(technique, Reduce):
        return (1, 0) if isinstance(technique.at, Encoded) else (2, technique.at.index)
    for place, protocol in enumerate((Keep, Fetch, Codec, Attend, Drafter, Accept), start=3):
        if isinstance(technique, protocol):
            return place, 0
    raise PlanError(
        f"{type(technique).__name__} has none of the methods of a technique: see elvi.core.plan.",
        type(technique).__name__,
    )
