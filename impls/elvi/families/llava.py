"""LLaVA: CLIP tower with a class token, one image per time step, a projector of two linear maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.views import TowerView
from elvi.families import tower
from elvi.families.family import Encoding, Family, grid_cells, linear_flops

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from elvi.core.seams import Reduce
    from elvi.core.tokens import Tokens
    from elvi.media import Clip


class Llava(Family):
    """LlavaForConditionalGeneration. A video enters as one image per frame; Encoded is before the projector."""

    model_types = ("llava",)

    def __init__(self, name: str, model: Any, tokenizer: Any, image_processor: Any = None) -> None:
        super().__init__(name, model, tokenizer, image_processor)
        tower.attach(model, model.config.vision_config)
        self.has_cls = model.config.vision_config.model_type == "clip_vision_model"
        self.facts = Family.facts | ({Fact.CLS_TOKEN} if self.has_cls else set())

    def _as_video(self, clip: Clip) -> bool:
        return False

    def placeholder(self, clip: Clip) -> int:
        return self.model.config.image_token_id

    def pixels(self, clip: Clip) -> Tensor:
        """[F, 3, size, size] from the official image processor."""
        out = self.image_processor(images=[*clip.frames], return_tensors="pt")
        return out["pixel_values"].to(self.device, self.dtype)

    def features(self, pixels: Tensor) -> Tensor:
        """Patch features [F, n, Dv] of the layer that LLaVA reads, without the class token where it is left out."""
        config = self.model.config
        out = self.model.model.vision_tower(pixels, output_hidden_states=True)
        layers = config.vision_feature_layer
        hidden = [out.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        start = 1 if config.vision_feature_select_strategy == "default" else 0
        return torch.cat([part[:, start:] for part in hidden], dim=-1)

    def encode(self, clip: Clip, tower_layers: Collection[float] = ()) -> Encoding:
        modules = [layer.self_attn for layer in self.model.model.vision_tower.encoder.layers]
        probe = tower.Probe(modules, tower_layers, self.has_cls)
        with probe:
            features = self.features(self.pixels(clip))
        side = round(features.shape[1] ** 0.5)
        slots = [grid_cells(1, side, side, step).to(self.device) for step in range(len(clip))]
        tokens = self.visual_tokens(features.flatten(0, 1), torch.cat(slots), clip)
        return Encoding(tokens, probe.view(), slots, self._flops(features))

    @property
    def free_tower(self) -> bool:
        config = self.model.config
        drops_first = config.vision_feature_select_strategy == "default"
        return isinstance(config.vision_feature_layer, int) and drops_first == self.has_cls

    def encode_reduced(self, clip: Clip, reducers: Sequence[Reduce]) -> Encoding:
        vision, config = self.model.model.vision_tower, self.model.config
        hidden = vision.embeddings(self.pixels(clip))
        hidden = vision.pre_layrnorm(hidden) if hasattr(vision, "pre_layrnorm") else hidden
        blocks = vision.encoder.layers[: config.vision_feature_layer % (len(vision.encoder.layers) + 1)]
        first = int(self.has_cls)
        side = round((hidden.shape[1] - first) ** 0.5)
        slots = [grid_cells(1, side, side, step).to(self.device) for step in range(len(clip))]
        tokens = self.visual_tokens(hidden[:, first:].flatten(0, 1), torch.cat(slots), clip)
        tokens, flops = tower.through(blocks, hidden[:, :first], tokens, reducers)
        flops += linear_flops(self.model.model.multi_modal_projector, len(tokens))
        return Encoding(tokens, TowerView(self.has_cls), slots, flops)

    def project(self, tokens: Tokens) -> Tokens:
        return tokens.with_hidden(self.model.model.multi_modal_projector(tokens.hidden))

    def _flops(self, features: Tensor) -> float:
        frames, patches = features.shape[:2]
        length = patches + int(self.has_cls)
        encoder = self.model.model.vision_tower.encoder
        attention = 4.0 * frames * length**2 * self.model.config.vision_config.hidden_size * len(encoder.layers)
        projector = linear_flops(self.model.model.multi_modal_projector, frames * patches)
        return linear_flops(encoder, frames * length) + attention + projector

    def inputs(self, clip: Clip | None, question: str) -> dict[str, Any]:
        if clip is None:
            return super().inputs(clip, question)
        clip = self.steps(clip)
        pixels = self.pixels(clip)
        config = self.model.config.vision_config
        count = (config.image_size // config.patch_size) ** 2
        ids, _ = self.expand(self.template(question, clip), clip, [count] * len(clip))
        return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "pixel_values": pixels}
