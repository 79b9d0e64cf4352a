"""The state of one generation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elvi.core.meter import Meter
from elvi.core.store import Store
from elvi.core.views import LayerView, Phase, Skip, TowerView

if TYPE_CHECKING:
    from elvi.core.plan import Plan
    from elvi.core.tokens import Tokens
    from elvi.families.family import Family
    from elvi.media import Clip


class Run:
    """One generation in progress: the cache, what is in flight, and what has been measured.

    `layout` is the whole prompt, what was dropped included: positions and cells by row number, and the mass that each
    row has been given. Noted only for techniques that ask for it (see Accept and Drafter in the seams): `entered`, the
    prompt as the language model got it; `watched`, the tokens of the latest forward as they left a layer;
    `question_attention` [N], what the question's rows pay each row of the prompt, mean over layers, heads and those
    rows.
    """

    def __init__(self, family: Family, plan: Plan) -> None:
        self.family = family
        self.plan = plan
        self.store = Store(family.num_layers)
        self.meter = Meter(family)
        self.phase: Phase = "prompt"
        nothing = torch.empty(0, dtype=torch.long, device=family.device)
        self.layout = _bare(family.text_tokens(nothing, nothing, nothing))
        self.question: str | None = None
        self.clip: Clip | None = None
        self.tower: TowerView | None = None
        self.question_rows = torch.empty(0, dtype=torch.long)
        self.tree: Tensor | None = None
        self.skip: Skip | None = None  # None: nothing is skipped, and what is read counts
        self.recent: dict[int, tuple[Tensor, Tensor]] = {}
        self.inputs: dict[int, Tensor] = {}
        self.entering: dict[int, Tokens] = {}
        self.due: int | None = None  # rows that will be committed when the codec acts again
        self.memory: dict[tuple[int, int], dict[str, Any]] = {}
        self.last: tuple[Tensor, Tensor, float] | None = None
        self.watched_layer = None if plan.hidden_layer is None else plan.hidden_layer % family.num_layers
        self.entered: Tokens
        self.watched: Tokens
        self.question_attention = torch.empty(0)

    @property
    def num_rows(self) -> int:
        """Rows of the prompt so far, before anything was dropped."""
        return len(self.layout)

    def extend(self, layout: Tokens) -> None:
        """Take note of a prompt, or the next part of one, that is about to be read; hidden states are not kept."""
        self.layout = self.layout.then(_bare(layout))
        # As `model.generate` counts: on from the last token, though the time axis of a long clip may have run ahead.
        self.next_position = int(layout.position[0, -1]) + 1
        self.next_row = len(self.layout)

    def placed(self, tokens: Tokens) -> None:
        """Take note of the positions and masses that techniques left the prompt's tokens with."""
        position, mass = self.layout.position.clone(), self.layout.mass.clone()
        position[:, tokens.row], mass[tokens.row] = tokens.position, tokens.mass
        self.layout = replace(self.layout, position=position, mass=mass)
        self.next_position = int(tokens.position[0, -1]) + 1

    def asked(self, question: str, rows: Tensor) -> None:
        """Take note of the question, which stands in these rows of the prompt."""
        self.question, self.question_rows = question, rows
        self.question_attention = torch.zeros(self.num_rows, device=rows.device)

    def fork(self) -> Run:
        """The same state of the cache in a run of its own, with counts of its own."""
        copied = Run(self.family, self.plan)
        copied.store, copied.layout, copied.phase = self.store.fork(), self.layout, self.phase
        copied.memory = {key: dict(remembered) for key, remembered in self.memory.items()}
        return copied

    @property
    def prefilling(self) -> bool:
        """Whether the prompt, or a piece of it, is being read."""
        return self.phase != "answer"

    def view(self, technique: Any, layer: int, query: Tensor, query_row: Tensor) -> LayerView:
        """The cache of one layer as the technique sees it."""
        return LayerView(
            layer,
            self.store.layers[layer],
            query,
            query_row,
            self.family.scaling,
            self.layout,
            self.family,
            self.phase,
            self.tree,
            self.inputs.get(layer),
            self.memory.setdefault((id(technique), layer), {}),
            self.entering.get(layer),
            self.memory.setdefault((id(technique), -1), {}),
        )

    def attended(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Remember what later stages of this forward pass will ask for; nothing is remembered without need."""
        if self.skip is not None:
            return
        if self.prefilling and self.plan.reducers_at(layer + 1):
            self.last = (query, key, scaling)
        if self.prefilling and self.plan.question_attention:
            self._note_question(layer, query)
        if self.window:
            rows = self.store.rows
            if not self.prefilling and self.store.layers[layer].tail > len(rows):  # forwards before it in this round
                query = torch.cat([self.recent[layer][0], query], dim=1)
                rows = torch.cat([self.recent[layer][1], rows])
            # Clones, so that the full query tensor of the layer can be freed; a round of decoding keeps all its rows,
            # of which some are accepted.
            first = max(0, query.shape[1] - self.window) if self.prefilling else 0
            self.recent[layer] = (query[:, first:].clone(), rows[first:])

    def _note_question(self, layer: int, query: Tensor) -> None:
        """Add one layer to `question_attention` [N]: what the question pays each row of the prompt, over all heads."""
        asking = torch.isin(self.store.rows, self.question_rows).nonzero()[:, 0]
        if len(asking):
            paid = self.view(None, layer, query[:, asking], self.store.rows[asking]).attention().mean(1)  # [Hq, K]
            row = self.store.layers[layer].row
            share = paid.view(*row.shape[:1], -1, row.shape[1]).mean(1) / (row.shape[0] * self.family.num_layers)
            self.question_attention.index_add_(0, row.flatten(), share.flatten())

    @property
    def window(self) -> int:
        """How many query rows the techniques still to come will ask for."""
        windows = [keep.window for keep in self.plan.keeps if self._acts(keep) or keep.rolling]
        if self.prefilling:
            windows += [getattr(codec, "window", 0) for codec in self.plan.codecs]
        return max(windows, default=0)

    def _acts(self, keep: Any) -> bool:
        """Whether a Keep acts at the end of this phase."""
        if self.phase == "piece":
            return keep.rolling or getattr(keep, "streams", False)
        return self.phase == "prompt" or keep.rolling

    @property
    def cached_visual_tokens(self) -> float:
        """Visual tokens in the cache, mean over layers and heads."""
        visual = torch.nn.functional.pad(self.layout.visual, (0, self.next_row - len(self.layout)))
        counts = [(visual[store.row] & (store.row >= 0)).float().sum(-1).mean() for store in self.store.layers]
        return float(torch.stack(counts).mean())

    def depth(self, most: int) -> int:
        """How deep a draft may be that could be `most` deep: no row in flight may wait for the codec to act."""
        return most if self.due is None else min(most, self.due - 1)

    def crop(self, row: int) -> None:
        """Forget the text from row number `row` on, committed rows too; nothing before it may have been dropped."""
        self.next_position -= self.next_row - row
        self.next_row = row
        for layer in self.store.layers:
            layer.crop(row)

    def rollback(self) -> None:
        """Drop the tail, however long it is in each layer, as if it had never been read."""
        self.store.commit([])

    def commit(self, accepted: list[int] | None = None) -> None:
        """Accept rows of the tail, a run of text; then let Keep select and, after the prompt, let the codec pack."""
        self.store.commit(accepted)
        self.tree = None  # what is committed is one line of text
        if not self.prefilling:
            advanced = len(self.store.rows) if accepted is None else len(accepted)
            self.next_position += advanced
            self.next_row += advanced
            self.due = None if self.due is None else self.due - advanced
            if accepted is not None:
                self.recent = {at: (query[:, accepted], rows[accepted]) for at, (query, rows) in self.recent.items()}
        with self.meter.time("select"):
            for keep in self.plan.keeps:
                if self._acts(keep):
                    self._keep(keep)
            if self.phase == "prompt" or (self.due is not None and self.due <= 0):
                for codec in self.plan.codecs:
                    self.due = codec.pack(self._committed_views(codec))
        self.inputs.clear()
        self.entering.clear()
        self.recent.clear()

    def _keep(self, keep: Any) -> None:
        for store, kept in zip(self.store.layers, keep.keep(self._committed_views(keep))):
            if kept is not None:
                store.gather(kept)

    def _committed_views(self, technique: Any) -> list[LayerView]:
        nothing = (torch.empty(0), torch.empty(0))
        layers = range(len(self.store.layers))
        return [self.view(technique, layer, *self.recent.get(layer, nothing)) for layer in layers]


def _bare(layout: Tokens) -> Tokens:
    """Without hidden states."""
    return layout.with_hidden(layout.hidden.new_empty(len(layout), 0))
