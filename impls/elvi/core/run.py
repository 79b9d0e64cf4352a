"""The state of one generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.core.meter import Meter
from elvi.core.store import Store
from elvi.core.views import LayerView, Skip, attention_rows

if TYPE_CHECKING:
    from elvi.core.plan import Plan
    from elvi.core.tokens import Tokens
    from elvi.families.family import Family, Prompt


class Run:
    """One generation in progress: the cache, what is in flight, and what has been measured.

    `layout` is the whole prompt before anything was dropped: positions and cells by row number. Noted only for
    techniques that ask for it (see Accept and Drafter in the plan): `entered`, the prompt as the language model got it;
    `watched`, the tokens of the latest forward as they left a layer; `question_attention` [N], what the question's rows
    pay each row of the prompt, mean over layers, heads and those rows.
    """

    def __init__(self, family: Family, plan: Plan) -> None:
        self.family = family
        self.plan = plan
        self.store = Store(family.num_layers)
        self.meter = Meter(family)
        self.prefilling = True
        self.layout: Tokens
        self.question: str | None = None
        self.question_rows = torch.empty(0, dtype=torch.long)
        self.tree: Tensor | None = None
        self.skip: Skip | None = None  # None: nothing is skipped, and what is read counts
        self.recent: dict[int, tuple[Tensor, Tensor]] = {}
        self.last: tuple[Tensor, Tensor, float] | None = None
        self.watched_layer = None if plan.hidden_layer is None else plan.hidden_layer % family.num_layers
        self.entered: Tokens
        self.watched: Tokens
        self.question_attention = torch.empty(0)

    def read(self, prompt: Prompt, question: str) -> None:
        """Take note of the prompt that is about to be prefilled."""
        self.layout = prompt.layout
        self.question, self.question_rows = question, prompt.question_rows
        # As `model.generate` counts: on from the last token, though the time axis of a long clip may have run ahead.
        self.next_position = int(prompt.layout.position[0, -1]) + 1
        self.next_row = len(prompt.layout)
        self.question_attention = torch.zeros(len(prompt.layout), device=prompt.layout.hidden.device)

    def view(self, layer: int, query: Tensor, query_row: Tensor, key_value: tuple[Tensor, Tensor]) -> LayerView:
        """The cache of one layer as techniques see it; key_value [H, K, d] as `LayerStore.read` returns them."""
        row = self.store.layers[layer].row
        return LayerView(layer, *key_value, row, query, query_row, self.family.scaling, self.layout)

    def attended(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Remember what later stages of this forward pass will ask for; nothing is remembered without need."""
        if self.skip is not None:
            return
        if self.prefilling and layer + 1 in self.plan.layer_reducers:
            self.last = (query, key, scaling)
        if self.prefilling and self.plan.question_attention:
            self._note_question(query, key, scaling)
        if self.window:
            rows = self.store.rows
            if not self.prefilling and layer in self.recent:
                query = torch.cat([self.recent[layer][0], query], dim=1)
                rows = torch.cat([self.recent[layer][1], rows])
            # Clones, so that the full query tensor of the layer can be freed; drafts may be rejected, so a round of
            # decoding keeps its rows until `settle`.
            first = max(0, query.shape[1] - self.window) if self.prefilling else 0
            self.recent[layer] = (query[:, first:].clone(), rows[first:])

    def _note_question(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add one layer to `question_attention` [N]: what the question pays each row of the prompt, over all heads."""
        asking = torch.isin(self.store.rows, self.question_rows).nonzero()[:, 0]
        paid = attention_rows(query[:, asking], key, asking, scaling).mean(dim=(0, 1))
        self.question_attention.index_add_(0, self.store.rows, paid / self.family.num_layers)

    @property
    def window(self) -> int:
        """How many query rows the techniques still to come will ask for."""
        return max((keep.window for keep in self.plan.keeps if self.prefilling or keep.rolling), default=0)

    @property
    def cached_visual_tokens(self) -> float:
        """Visual tokens in the cache, mean over layers and heads."""
        visual = torch.nn.functional.pad(self.layout.visual, (0, self.next_row - len(self.layout)))
        counts = [visual[store.row].float().sum(-1).mean() for store in self.store.layers]
        return float(torch.stack(counts).mean())

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
        if not self.prefilling:
            advanced = len(self.store.rows) if accepted is None else len(accepted)
            self.next_position += advanced
            self.next_row += advanced
        if self.window and not self.prefilling:
            self._settle_queries(accepted)
        with self.meter.time("select"):
            for keep in self.plan.keeps:
                if self.prefilling or keep.rolling:
                    self._keep(keep)
            if self.prefilling:
                for codec in self.plan.codecs:
                    for layer, store in enumerate(self.store.layers):
                        codec.pack(self._committed_view(layer), store)
        if self.prefilling and not any(keep.rolling and keep.window for keep in self.plan.keeps):
            self.recent.clear()

    def _keep(self, keep) -> None:
        views = [self._committed_view(layer) for layer in range(len(self.store.layers))]
        for store, slots in zip(self.store.layers, keep.keep(views)):
            if slots is not None and slots.shape[1] < store.length:
                store.gather(slots)

    def _committed_view(self, layer: int) -> LayerView:
        empty = torch.empty(0)
        query, rows = self.recent.get(layer, (empty, empty))
        return self.view(layer, query, rows, self.store.layers[layer].read())

    def _settle_queries(self, accepted: list[int] | None) -> None:
        count = len(self.store.rows)
        for layer, (query, rows) in self.recent.items():
            old = query.shape[1] - count
            index = list(range(old)) + [old + node for node in (range(count) if accepted is None else accepted)]
            index = index[-self.window :]
            self.recent[layer] = (query[:, index], rows[index])
