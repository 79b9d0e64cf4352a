"""Qwen2.5-VL: native resolution tower without class token, two frames per time step, M-RoPE positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

from elvi.core.facts import Fact
from elvi.families import tower
from elvi.families.family import Encoding, Family, grid_cells, linear_flops

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from elvi.media import Clip


class Qwen25VL(Family):
    """Qwen2_5_VLForConditionalGeneration. Videos are sampled at 2 frames a second, as the official processor does."""

    model_types = ("qwen2_5_vl",)
    facts = Family.facts | {Fact.NATIVE_RESOLUTION}
    position_axes = 3
    frames_per_step = 2
    max_frames = 768

    def __init__(self, name: str, model: Any, tokenizer: Any, image_processor: Any = None) -> None:
        super().__init__(name, model, tokenizer, image_processor)
        tower.attach(model, model.config.vision_config)

    def placeholder(self, clip: Clip) -> int:
        config = self.model.config
        return config.video_token_id if self._as_video(clip) else config.image_token_id

    def pixels(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Patches [patches, C * 2 * p * p] and grid [T, 3] or [images, 3] of (t, h, w).

        The official image processor repeats an image to fill a time step. Here each frame goes through it, and every
        step takes its first half from one frame and its second half from the next; equal frames give the same patches.
        """
        frames = [*clip.frames]
        if clip.scale is not None:
            frames = [self._resized(frame, share) for frame, share in zip(frames, clip.scale.tolist(), strict=True)]
        out = self.image_processor(images=frames, return_tensors="pt")
        patches, grid = out["pixel_values"], out["image_grid_thw"]
        if not clip.still:
            config = self.model.config.vision_config
            halves = patches.view(len(clip), -1, config.in_channels, config.temporal_patch_size, config.patch_size**2)
            per_step = [halves[frame :: self.frames_per_step, :, :, frame] for frame in range(self.frames_per_step)]
            patches = torch.stack(per_step, dim=3).flatten(2).flatten(0, 1)
            grid = torch.tensor([[len(clip) // self.frames_per_step, *grid[0, 1:].tolist()]])
        return patches.to(self.device, self.dtype), grid.to(self.device)

    def _resized(self, frame: np.ndarray, share: float) -> np.ndarray:
        """A frame [H, W, 3] at a share of the sides at which the model reads it, within the bounds that it sets."""
        from PIL import Image

        processor = self.image_processor
        factor = processor.patch_size * processor.merge_size
        bounds = (factor, processor.size["shortest_edge"], processor.size["longest_edge"])
        height, width = smart_resize(frame.shape[0], frame.shape[1], *bounds)
        height, width = smart_resize(max(1, round(height * share)), max(1, round(width * share)), *bounds)
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))

    def encode(self, clip: Clip, tower_layers: Collection[float] = ()) -> Encoding:
        visual = self.model.model.visual
        patches, grid = self.pixels(clip)
        blocks = [block.attn for block in visual.blocks]
        probe = tower.Probe(blocks, tower_layers, has_cls=False, whole=visual.fullatt_block_indexes)
        with probe:
            hidden = visual(patches, grid_thw=grid).pooler_output
        slots = self._slots(grid)
        tokens = self.visual_tokens(hidden, torch.cat(slots), clip)
        order = torch.argsort(self._windows(grid)[0])
        return Encoding(tokens, probe.view(order, visual.spatial_merge_unit), slots, self._flops(grid))

    def _slots(self, grid: Tensor) -> list[Tensor]:
        """Cells [S, 3] of every grid; still images follow one another in time."""
        merge = self.model.model.visual.spatial_merge_size
        starts = [0, *grid[:, 0].cumsum(0).tolist()]
        cells = [grid_cells(t, h // merge, w // merge, start) for (t, h, w), start in zip(grid.tolist(), starts)]
        return [slots.to(self.device) for slots in cells]

    def _positions(self, ids: Tensor, clip: Clip | None, slots: Sequence[Tensor] | None) -> Tensor:
        """M-RoPE positions [3, N] as the model computes them; time comes from the frames' own times.

        For evenly sampled clips this is the official index; frames left out by a selection leave their gap in time.
        """
        if clip is None or slots is None:
            return super()._positions(ids, clip, slots)
        kind = 2 if self._as_video(clip) else 1
        types = (ids == self.placeholder(clip)).int() * kind
        key = "video_grid_thw" if kind == 2 else "image_grid_thw"
        grid = self._grid(slots)
        position, _ = self.model.model.get_rope_index(ids[None], types[None], **{key: grid})
        position = position[:, 0]
        if kind == 2:
            visual = (types > 0).nonzero()[:, 0]
            seconds = torch.as_tensor(clip.times[:: self.frames_per_step], device=self.device)
            offset = (seconds * self.model.config.vision_config.tokens_per_second).long()
            position[0, visual] = position[1, visual[0]] + offset[slots[0][:, 0]]
        return position

    def _grid(self, slots: Sequence[Tensor]) -> Tensor:
        merge = self.model.model.visual.spatial_merge_size
        sizes = [(cells.amax(0) - cells.amin(0) + 1).tolist() for cells in slots]
        return torch.tensor([[t, h * merge, w * merge] for t, h, w in sizes], device=self.device)

    def _windows(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.model.model.visual
        return get_vision_window_index(
            grid,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )

    def _flops(self, grid: Tensor) -> float:
        visual = self.model.model.visual
        patches = int(grid.prod(-1).sum())
        total = 2.0 * patches * visual.patch_embed.proj.weight.numel()
        total += linear_flops(visual.merger, patches // visual.spatial_merge_unit)
        windows = self._windows(grid)[1].diff().double()
        frames = get_vision_cu_seqlens(grid).diff().double()
        for index, block in enumerate(visual.blocks):
            spans = frames if index in visual.fullatt_block_indexes else windows
            total += linear_flops(block, patches) + 4.0 * float((spans**2).sum()) * block.attn.dim
        return total

    def inputs(self, clip: Clip | None, question: str) -> dict[str, Any]:
        if clip is None:
            return super().inputs(clip, question)
        clip = self.steps(clip)
        patches, grid = self.pixels(clip)
        video = self._as_video(clip)
        slots = self._slots(grid)
        ids, _ = self.expand(self.template(question, clip), clip, [len(cells) for cells in slots])
        types = (ids == self.placeholder(clip)).int() * (2 if video else 1)
        arguments = {
            "input_ids": ids[None],
            "mm_token_type_ids": types[None],
            "attention_mask": torch.ones_like(ids)[None],
        }
        if not video:
            return arguments | {"pixel_values": patches, "image_grid_thw": grid}
        spacing = float(np.median(np.diff(clip.times))) * self.frames_per_step if len(clip) > 1 else 1.0
        return arguments | {"pixel_values_videos": patches, "video_grid_thw": grid, "second_per_grid_ts": [spacing]}
