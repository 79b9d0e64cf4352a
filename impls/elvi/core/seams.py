"""The seams at which techniques act, as protocols: a technique has the methods of one or several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from elvi.core.accept import Draft, Path, Sampler
    from elvi.core.blocks import Blocks
    from elvi.core.facts import Fact
    from elvi.core.run import Run
    from elvi.core.store import Kept
    from elvi.core.tokens import Tokens
    from elvi.core.views import Fetched, LayerView, Seen
    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class Encoded:
    """Between vision tower and adapter: all visual tokens, no text."""


@dataclass(frozen=True)
class _Place:
    """every: acts again after that many layers, and so on to the last."""

    index: int
    every: int | None = None

    def __contains__(self, layer: int) -> bool:
        beyond = layer - self.index
        return beyond == 0 or (self.every is not None and beyond > 0 and beyond % self.every == 0)


@dataclass(frozen=True)
class Tower(_Place):
    """In block `index` of the vision tower, between attention and MLP, with the patches of all frames in one row.

    every: acts again after that many blocks, and so on to the last one that the language model reads. Every frame must
    be left with as many tokens. Towers whose tokens are bound to a grid to the end (see Family.free_tower) have no such
    place: there it is Encoded, and `Seen.block` is None.
    """


@dataclass(frozen=True)
class Layer(_Place):
    """Entering decoder layer `index` (0: before the language model) with the whole prompt in one row.

    every: acts again after that many layers, and so on to the last.
    """


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
class Resize(Protocol):
    """Choose how large each time step is encoded, after all selection: float [T], shares of its sides, 0 leaves it out.

    1 is the size at which the model reads it by itself; the least size that it reads is the least there is. As soon as
    one step is resized, each becomes a picture of its own, of one frame. It needs NATIVE_RESOLUTION and breaks GRID and
    EQUAL_FRAMES.
    """

    def resize(self, clip: Clip, question: str | None) -> np.ndarray: ...


@runtime_checkable
class Reduce(Protocol):
    """Drop or merge visual tokens at `at`; text tokens come back untouched. `tower_layers`: see Seen.tower.

    With an attribute `positions` of "compact" (else "original"), what is left before the language model is numbered
    anew, as if what was dropped had never been there. At Tower, a false attribute `proportional` says that tokens which
    stand for several patches are not to get as much more attention.
    """

    @property
    def at(self) -> Tower | Encoded | Layer: ...

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens: ...


@runtime_checkable
class Attend(Protocol):
    """What each query row reads: bool [Hq, Q, K] (may read), float [Hq, Q, K] (added to the logits), None (all).

    While a prompt is read in one piece it may be Blocks: alone at its layer, what they leave out is not computed.

    `prefill` says whether it acts while the prompt is read, `decode` whether it acts afterwards.
    """

    prefill: ClassVar[bool]
    decode: ClassVar[bool]

    def attend(self, view: LayerView) -> Tensor | Blocks | None: ...


@runtime_checkable
class Keep(Protocol):
    """Which slots (ascending) the heads of each layer keep when rows are committed; None keeps all.

    `window`: how many last query rows of the prompt the views carry; `rolling`: act after every round of decoding too,
    whose accepted rows the views then carry (unless window is 0).
    With a true attribute `streams`, clips are read piece by piece (a time step each), and it acts after each piece too
    (as rolling ones do in a stream); with a true attribute `inputs`, its views carry the prompt's rows as they entered
    the layer's attention, with a true attribute `entering`, the prompt's tokens as they entered the layer (a Codec may
    ask for that, too). With a true attribute `follows`, it chooses nothing itself: the cache keeps the rows that the
    technique's own `reduce` has left, be it that `keep` brings them about or only takes note of what was accepted.
    """

    @property
    def window(self) -> int: ...

    rolling: ClassVar[bool]

    def keep(self, views: list[LayerView]) -> Sequence[Kept | Tensor | Sequence[Tensor] | None]: ...


@runtime_checkable
class HeadKinds(Protocol):
    """Optional, of a Keep that treats heads as one of two kinds, `head_names`: the kind of each head, 0 or 1.

    One row per layer; heads are those that the technique tells apart. The views are those of `keep`. Only `elvi bench`
    asks, so that pages can show it.
    """

    head_names: ClassVar[tuple[str, ...]]

    def head_map(self, views: list[LayerView]) -> list[list[int]]: ...


@runtime_checkable
class Fetch(Protocol):
    """Which rows of the second tier each query row reads, besides all that is in the first one.

    Per head the slots [Q, m] (-1: none, for rows that read fewer), counted along `view.store.far`; None of all heads:
    none at all. What a row reads may depend on that row only. `looked` bytes were read to decide.
    """

    def fetch(self, view: LayerView) -> Fetched: ...


@runtime_checkable
class Codec(Protocol):
    """Store some slots in fewer bits: calls `view.store.pack(packed, slots)` for any of the layers.

    It acts when the prompt is read, and says after how many more rows it acts again (None: never). Rounds of decoding
    end there, however deep the drafts could be, so that no row reads what is packed only later on.
    With an attribute `window`, the views after the prompt carry so many last query rows.
    """

    def pack(self, views: list[LayerView]) -> int | None: ...


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


Judge = Callable[["Draft", "Tensor"], "Path"]  # a draft and the model's logits [n+1, V] -> what stands


@runtime_checkable
class Accept(Protocol):
    """Which drafted tokens stand: `judge`, called when the prompt is read, returns the rule for this sequence.

    The rule takes a draft and the model's logits [n+1, V] (row 0: after the last emitted token). greedy_only: whether
    it makes no sense when tokens are sampled. With an attribute `hidden_layer` (-1: the last), `run.watched` holds the
    tokens of the latest forward as they leave that layer: the prompt's when `judge` is called, then root and draft.
    """

    greedy_only: ClassVar[bool]

    def judge(self, run: Run, sampler: Sampler) -> Judge: ...
