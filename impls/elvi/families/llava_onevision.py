"""LLaVA-OneVision: SigLIP tower without class token; videos pooled to a quarter of their tokens, images in tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elvi.core.views import TowerView
from elvi.families import tower
from elvi.families.family import Encoding, Family, grid_cells, linear_flops

if TYPE_CHECKING:
    from collections.abc import Collection

    from elvi.media import Clip


class LlavaOnevision(Family):
    """LlavaOnevisionForConditionalGeneration. 32 frames per video at most, as in its paper.

    The adapter and the pooling come before the place called Encoded, because pooling needs the whole grid.
    """

    model_types = ("llava_onevision",)
    max_frames = 32

    def __init__(self, name: str, model: Any, tokenizer: Any, image_processor: Any = None) -> None:
        super().__init__(name, model, tokenizer, image_processor)
        tower.attach(model, model.config.vision_config)

    def placeholder(self, clip: Clip) -> int:
        config = self.model.config
        return config.video_token_id if self._as_video(clip) else config.image_token_id

    @property
    def _side(self) -> int:
        config = self.model.config.vision_config
        return config.image_size // config.patch_size

    def pixels(self, clip: Clip) -> dict[str, Any]:
        """Keyword arguments of the model for the pictures.

        Every frame of a video is resized whole to the tower's input, as the official video processor does. A single
        image is tiled; several images are not.
        """
        if self._as_video(clip):
            size = self.model.config.vision_config.image_size
            out = self.image_processor(
                images=[*clip.frames],
                size={"height": size, "width": size},
                image_grid_pinpoints=[[size, size]],
                return_tensors="pt",
            )
            return {"pixel_values_videos": out["pixel_values"][:, 0][None].to(self.device, self.dtype)}
        out = self.image_processor(images=[[*clip.frames]], return_tensors="pt")
        sizes = {name: out[name].to(self.device) for name in ("image_sizes", "batch_num_images")}
        return {"pixel_values": out["pixel_values"].to(self.device, self.dtype), **sizes}

    def encode(self, clip: Clip, tower_layers: Collection[float] = ()) -> Encoding:
        model, pixels = self.model.model, self.pixels(clip)
        if self._as_video(clip):
            modules = [layer.self_attn for layer in model.vision_tower.encoder.layers]
            probe = tower.Probe(modules, tower_layers, has_cls=False)
            with probe:
                features = model.get_video_features(**pixels).pooler_output[0]
            cells, view = self._video_cells(len(clip)), self._pooled(probe.view(), len(clip))
            return self._encoding(features, [cells.to(self.device)], view, clip)
        features = model.get_image_features(**pixels).pooler_output
        cells = [self._image_cells(image, step).to(self.device) for step, image in enumerate(features)]
        return self._encoding(torch.cat(list(features)), cells, TowerView(has_cls=False), clip)

    def _encoding(self, features: Tensor, slots: list[Tensor], view: TowerView, clip: Clip) -> Encoding:
        cell = torch.cat(slots)
        shown = cell[:, 0] >= 0
        return Encoding(self.visual_tokens(features[shown], cell[shown], clip), view, slots, self._flops(slots))

    def _video_cells(self, frames: int) -> Tensor:
        side = -(-self._side // 2)
        return torch.cat([grid_cells(frames, side, side), torch.full((1, 3), -1)])

    def _image_cells(self, features: Tensor, step: int) -> Tensor:
        """Cells of one image: the whole picture at time `step`, its tiles (if any) below it in the same step."""
        side = self._side
        newline = (features == self.separator()).all(-1).cpu()
        cells = torch.full((len(features), 3), -1)
        cells[: side * side] = grid_cells(1, side, side, step)
        rest = (~newline[side * side :]).nonzero()[:, 0] + side * side
        if len(rest):
            width = int(newline[side * side :].nonzero()[0])
            tiles = grid_cells(1, len(rest) // width, width, step)
            cells[rest] = tiles + torch.tensor([0, side, 0])
        return cells

    def _pooled(self, view: TowerView, frames: int) -> TowerView:
        """Per-patch statistics [F * side * side, ...] brought to the pooled grid in the way the features are."""

        def pool(values: Tensor) -> Tensor:
            wide = values.view(frames, self._side**2, -1)
            return self.model.model.apply_pooling(wide).flatten(0, 1).view(-1, *values.shape[1:])

        return TowerView(
            False,
            mean={layer: pool(values) for layer, values in view.mean.items()},
            key={layer: pool(values) for layer, values in view.key.items()},
        )

    def separator(self) -> Tensor:
        return self.model.model.image_newline

    def _flops(self, slots: list[Tensor]) -> float:
        config, length = self.model.config.vision_config, self._side**2
        shown = sum(int((cells[:, 0] >= 0).sum()) for cells in slots)
        frames = int(slots[0][:, 0].max()) + 1 if len(slots) == 1 else len(slots)
        crops = frames if len(slots) > 1 or frames > 1 else -(-shown // length)
        encoder = self.model.model.vision_tower.encoder
        attention = 4.0 * crops * length**2 * config.hidden_size * len(encoder.layers)
        projector = linear_flops(self.model.model.multi_modal_projector, crops * length)
        return linear_flops(encoder, crops * length) + attention + projector

    def inputs(self, clip: Clip | None, question: str) -> dict[str, Any]:
        if clip is None:
            return super().inputs(clip, question)
        clip = self.steps(clip)
        counts = [len(cells) for cells in self.encode(clip).slots]
        ids, _ = self.expand(self.template(question, clip), clip, counts)
        return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **self.pixels(clip)}
