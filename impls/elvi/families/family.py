"""What every model family offers to the core: an unmodified transformers model, opened up at its seams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from elvi.core.facts import Fact
from elvi.core.tokens import Tokens
from elvi.core.views import TowerView
from elvi.core.walk import attach
from elvi.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from elvi.core.seams import Reduce
    from elvi.media import Clip

FALLBACK_TEMPLATE = "USER: {pictures}{question} ASSISTANT:"


@dataclass(frozen=True)
class Encoding:
    """A clip after the vision tower.

    tokens: visual tokens in raster order, `row` counting them from 0; tower: attention inside the tower; slots: for
    every placeholder of the prompt the cells [S, 3] of the slots it expands to, -1 where a slot is a separator;
    flops: of the tower and adapter, as the shapes imply.
    """

    tokens: Tokens
    tower: TowerView
    slots: list[Tensor]
    flops: float


@dataclass(frozen=True)
class Prompt:
    """A prompt, or the end of one, before any visual token was dropped.

    layout: its row; slots: index in it of the visual slots; question_rows: row numbers of the text after the last one.
    """

    layout: Tokens
    slots: Tensor
    question_rows: Tensor

    def fill(self, visual: Tokens | None) -> Tokens:
        """The row that is prefilled: text, and the visual tokens [M] that are left, each in its slot.

        `visual.row` counts the visual tokens of this prompt from 0.
        """
        if visual is None:
            return self.layout
        place = self.layout.visual.nonzero()[:, 0][visual.row]
        hidden, mass = self.layout.hidden.clone(), self.layout.mass.clone()
        hidden[place] = visual.hidden.to(hidden.dtype)
        mass[place] = visual.mass.to(mass.dtype)
        stays = ~self.layout.visual
        stays[place] = True
        return replace(self.layout, hidden=hidden, mass=mass).keep(stays)


class Family:
    """Base of the families. Subclasses name model classes; nothing else does.

    model_types: `config.model_type` values it loads; position_axes: 1, or 3 for M-RoPE;
    frames_per_step: frames that share one time step of the grid;
    steps_per_second: rate at which videos are sampled; max_frames: most frames taken from one video.
    """

    model_types: ClassVar[tuple[str, ...]]
    facts: ClassVar[frozenset[Fact]] = frozenset(Fact) - {Fact.CLS_TOKEN, Fact.NATIVE_RESOLUTION}
    position_axes: int = 1
    frames_per_step: int = 1
    steps_per_second: float = 1.0
    max_frames: int = 64

    def __init__(self, name: str, model: Any, tokenizer: Any, image_processor: Any = None) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.attention_kernel = attach(model)
        self.config = model.config.get_text_config()
        if other := set(getattr(self.config, "layer_types", None) or ()) - {"full_attention"}:
            raise FitError(
                f"{name} has layers of {', '.join(sorted(other))}, whose cache cannot be cut back to "
                "what was accepted: use a model with full attention in every layer."
            )
        end = model.generation_config.eos_token_id if model.generation_config.eos_token_id is not None else ()
        self.eos: set[int] = {end} if isinstance(end, int) else set(end)

    # -- the language model -------------------------------------------------------------------------------------------

    @property
    def text(self) -> Any:
        """The module with `layers`, `norm`, `rotary_emb` and `embed_tokens`."""
        return self.model.model.language_model

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def scaling(self) -> float:
        return self.text.layers[0].self_attn.scaling

    @property
    def device(self) -> torch.device:
        return self.text.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text.embed_tokens.weight.dtype

    @property
    def vocabulary(self) -> int:
        """Rows of the output head that stand for tokens of the tokenizer (heads may be padded)."""
        return min(len(self.tokenizer), self.model.get_output_embeddings().weight.shape[0])

    @property
    def special_tokens(self) -> set[int]:
        """Ids that are not text: ends, placeholders of pictures, marks of turns."""
        return self.eos | set(self.tokenizer.all_special_ids)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [Q, V] of normed hidden states [Q, D]."""
        return self.model.get_output_embeddings()(hidden)

    def queries(self, layer: int, hidden: Tensor, position: Tensor) -> Tensor:
        """Queries [Hq, n, d] that a layer's attention asks for its normed inputs [n, D] at rotary positions [P, n]."""
        attention = self.text.layers[layer].self_attn
        return self._projected(attention.q_proj, getattr(attention, "q_norm", None), hidden, position)

    def keys(self, layer: int, hidden: Tensor, position: Tensor) -> Tensor:
        """Keys [H, n, d] that a layer's attention makes of its normed inputs [n, D] at rotary positions [P, n]."""
        attention = self.text.layers[layer].self_attn
        return self._projected(attention.k_proj, getattr(attention, "k_norm", None), hidden, position)

    def _projected(self, linear: nn.Module, norm: nn.Module | None, hidden: Tensor, position: Tensor) -> Tensor:
        heads = linear(hidden).view(len(hidden), -1, self.head_dim)
        return self.rotate((heads if norm is None else norm(heads)).transpose(0, 1), position)

    def rotate(self, x: Tensor, position: Tensor, back: bool = False) -> Tensor:
        """x [H, n, d] turned to rotary positions [P, n] or [P, H, n], or back from there."""
        batch = position if position.ndim == 3 else position[:, None]
        cos, sin = self.text.rotary_emb(x, batch if self.position_axes > 1 else batch[0])  # [1 or H, n, d]
        if back:  # both carry the attention scaling, which some long-context variants have
            scale = self.text.rotary_emb.attention_scaling**2
            cos, sin = cos / scale, -sin / scale
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def text_tokens(self, ids: Tensor, position: Tensor, row: Tensor) -> Tokens:
        """Text tokens [n] at rotary positions [n] (equal on all axes)."""
        count = len(ids)
        return Tokens(
            hidden=self.text.embed_tokens(ids),
            position=position.expand(self.position_axes, count),
            token=ids,
            cell=torch.full((count, 3), -1, device=self.device),
            mass=torch.ones(count, device=self.device),
            row=row,
        )

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            [token for token in ids if token not in self.eos], skip_special_tokens=True
        ).strip()

    # -- pictures -----------------------------------------------------------------------------------------------------

    def steps(self, clip: Clip) -> Clip:
        """The clip sampled as this family does, a whole number of time steps long."""
        clip = clip.at(self.steps_per_second * self.frames_per_step, self.max_frames)
        missing = -len(clip) % self.frames_per_step
        if clip.still or not missing:
            return clip
        return clip.take([*range(len(clip)), *[len(clip) - 1] * missing])

    def _per_step(self, clip: Clip) -> int:
        return 1 if clip.still else self.frames_per_step

    def one_per_step(self, clip: Clip) -> Clip:
        """One frame for each time step, for techniques that choose among them."""
        return clip.take(np.arange(0, len(clip), self._per_step(clip)))

    def take_steps(self, clip: Clip, steps: np.ndarray) -> Clip:
        per_step = self._per_step(clip)
        return clip.take((np.asarray(steps)[:, None] * per_step + np.arange(per_step)).reshape(-1))

    def resized(self, clip: Clip, scale: np.ndarray) -> Clip:
        """The steps whose share [T] of their sides is not 0, as still images of these sizes (see Clip.scale).

        Where none is resized, they stay what they were.
        """
        shown = np.flatnonzero(scale)
        if (scale[shown] == 1).all():
            return self.take_steps(clip, shown)
        return replace(self.one_per_step(clip).take(shown), still=True, scale=scale[shown])

    def visual_tokens(self, hidden: Tensor, cell: Tensor, clip: Clip) -> Tokens:
        """Tokens of the picture alone: their rows count from 0, their positions are given by the prompt."""
        count = len(cell)
        return Tokens(
            hidden=hidden,
            position=torch.zeros(self.position_axes, count, dtype=torch.long, device=self.device),
            token=torch.full((count,), self.placeholder(clip), device=self.device),
            cell=cell,
            mass=torch.ones(count, device=self.device),
            row=torch.arange(count, device=self.device),
        )

    def encode(self, clip: Clip, tower_layers: Collection[float] = ()) -> Encoding:
        """Run the vision tower on a clip from `steps`; remember attention in the layers asked for (see Probe)."""
        raise FitError(f"{self.name} reads text only, so it cannot look at a clip: use a vision-language model.")

    @property
    def free_tower(self) -> bool:
        """Whether tokens inside the vision tower may be dropped or merged: nothing after it asks for their grid."""
        return False

    def encode_reduced(self, clip: Clip, reducers: Sequence[Reduce]) -> Encoding:
        """As `encode`, with reducers acting in the blocks of a free tower, which then does not show its attention."""
        raise NotImplementedError

    def project(self, tokens: Tokens) -> Tokens:
        """The adapter, where it comes after the place called Encoded; else it has run already."""
        return tokens

    # -- the prompt ---------------------------------------------------------------------------------------------------

    def prompt(
        self, question: str, clip: Clip | None = None, slots: Sequence[Tensor] | None = None, start: int = 0
    ) -> Prompt:
        """The prompt from row `start` on, its visual slots still empty (zero hidden states).

        slots: cells [S, 3] of every placeholder (see Encoding); of the clip only the times and what kind it is matter.
        """
        counts = [] if slots is None else [len(cells) for cells in slots]
        ids, places = self.expand(self.template(question, clip), clip, counts)
        position = self._positions(ids, clip, slots)
        layout = self.text_tokens(ids[start:], position[..., start:], torch.arange(start, len(ids), device=self.device))
        if slots is None:
            return Prompt(layout, places, layout.row)
        later = places >= start
        places, cells = places[later] - start, torch.cat([*slots]).to(self.device)[later]
        cell, hidden = layout.cell.clone(), layout.hidden.clone()
        cell[places] = cells
        hidden[places] = 0
        separators = places[cells[:, 0] < 0]
        if len(separators):
            hidden[separators] = self.separator()
        layout = replace(layout, hidden=hidden, cell=cell)
        last = int(places.max()) + 1 if len(places) else 0
        return Prompt(layout, places, layout.row[last:])

    def joined(self, before: Sequence[Tensor], piece: Sequence[Tensor], clip: Clip) -> list[Tensor]:
        """Slots of all that a stream has shown, from those before a piece and its own; time goes on counting.

        A video stays one placeholder, at whose end alone separators stand; images get one each.
        """
        if not before:
            return [*piece]
        shift = torch.tensor([int(before[-1][:, 0].max()) + 1, 0, 0], device=before[-1].device)
        later = [torch.where(cells[:, :1] >= 0, cells + shift, cells) for cells in piece]
        if not self._as_video(clip):
            return [*before, *later]
        shown = int((before[0][:, 0] >= 0).nonzero()[-1]) + 1
        return [torch.cat([before[0][:shown], later[0]])]

    def template(self, question: str, clip: Clip | None) -> list[int]:
        """Token ids of the rendered chat prompt, one placeholder per picture."""
        kind = "video" if clip is not None and self._as_video(clip) else "image"
        pictures = 0 if clip is None else self.pictures(clip)
        if not getattr(self.tokenizer, "chat_template", None):
            text = FALLBACK_TEMPLATE.format(pictures="<image>\n" * pictures, question=question)
            return self.tokenizer(text)["input_ids"]
        content = [{"type": kind}] * pictures + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content if pictures else question}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _as_video(self, clip: Clip) -> bool:
        """Whether a clip enters the prompt as one video rather than as an image per step."""
        return not clip.still

    def pictures(self, clip: Clip) -> int:
        """How many placeholders the prompt holds."""
        return 1 if self._as_video(clip) else len(clip)

    def placeholder(self, clip: Clip) -> int:
        """Vocabulary id that stands for a picture."""
        raise NotImplementedError

    def separator(self) -> Tensor:
        """Hidden state [D] of slots that show nothing (line breaks between rows of tokens)."""
        raise NotImplementedError

    def expand(self, ids: list[int], clip: Clip | None, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Every placeholder repeated as often as its picture has slots, and the index of all slots."""
        if clip is None:
            return torch.tensor(ids, device=self.device), torch.empty(0, dtype=torch.long, device=self.device)
        placeholder = self.placeholder(clip)
        if ids.count(placeholder) != len(counts):
            raise FitError(
                f"The chat template of {self.name} left {ids.count(placeholder)} places for {len(counts)} pictures: "
                "the tokenizer does not belong to this model, so load them from one folder."
            )
        remaining = iter(counts)
        row = [token for token in ids for _ in range(next(remaining) if token == placeholder else 1)]
        expanded = torch.tensor(row, device=self.device)
        return expanded, (expanded == placeholder).nonzero()[:, 0]

    def _positions(self, ids: Tensor, clip: Clip | None, slots: Sequence[Tensor] | None) -> Tensor:
        """Rotary positions, [N] or [P, N]."""
        return torch.arange(len(ids), device=self.device)

    def inputs(self, clip: Clip | None, question: str) -> dict[str, Any]:
        """Arguments for the unmodified model's `forward` and `generate`, as its own processor would make them."""
        ids = torch.tensor([self.template(question, clip)], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    # -- shapes -------------------------------------------------------------------------------------------------------

    def layer_flops(self, tokens: int, cached: int = 0) -> float:
        """FLOPs of one decoder layer reading that many tokens (causally, so half the square) after a cache."""
        config = self.config
        queries = config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        linear = config.hidden_size * (2 * queries + 2 * keys) + 3 * config.hidden_size * config.intermediate_size
        return 2.0 * tokens * linear + 2.0 * tokens * (tokens + 1 + 2 * cached) * queries


def grid_cells(steps: int, height: int, width: int, start: int = 0) -> Tensor:
    """Cells [steps * height * width, 3] of a full grid in raster order, time counting from `start`."""
    return torch.cartesian_prod(torch.arange(start, start + steps), torch.arange(height), torch.arange(width))


def linear_flops(module: nn.Module, rows: int) -> float:
    """FLOPs of all linear maps of a module on that many rows."""
    return 2.0 * rows * sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
