"""CLIP as a judge of how well a frame, or a patch of it, fits a text: the only file that names its class."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.errors import FitError
from elvi.families.load import default_device, locate

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.media import Clip

BATCH = 64  # frames that go through the tower together


class FrameScorer:
    """A CLIPModel with its tokenizer and image processor; texts longer than it can read are cut."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @torch.inference_mode()
    def scores(self, clip: Clip, text: str) -> Tensor:
        """Cosine similarity float32 [F] of every frame of a clip and a text, on the CPU."""
        return likeness(self.features(clip), self.text_feature(text))

    @torch.inference_mode()
    def products(self, clip: Clip, text: str) -> Tensor:
        """Dot products float32 [F] of a text and every frame, as for `scores` but not normalised."""
        return self.features(clip) @ self.text_feature(text)

    @torch.inference_mode()
    def patch_scores(self, clip: Clip, text: str) -> Tensor:
        """Cosine similarity float32 [F, side, side] of every patch of a clip and a text, on the CPU."""
        return likeness(self.patch_features(clip), self.text_feature(text))

    @torch.inference_mode()
    def patch_products(self, clip: Clip, text: str) -> Tensor:
        """Dot products float32 [F, side, side] of a text and every patch, as for `patch_scores` but not normalised."""
        return self.patch_features(clip) @ self.text_feature(text)

    @torch.inference_mode()
    def features(self, clip: Clip) -> Tensor:
        """Projected features float32 [F, d] of the frames, on the CPU."""
        return self._seen(clip, self._frames)

    @torch.inference_mode()
    def patch_features(self, clip: Clip) -> Tensor:
        """Projected features float32 [F, side, side, d] of the patches, on the CPU.

        Patches as they enter the tower's last layer, projected like the class token, which alone was trained for it.
        """
        return self._seen(clip, self._patches)

    @torch.inference_mode()
    def text_feature(self, text: str) -> Tensor:
        """Projected feature float32 [d] of a text, on the CPU."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer([text], truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        return self.model.get_text_features(input_ids=ids.to(self.model.device)).pooler_output[0].float().cpu()

    def _seen(self, clip: Clip, look: Callable[[Tensor], Tensor]) -> Tensor:
        batches = (clip.frames[start : start + BATCH] for start in range(0, len(clip), BATCH))
        return torch.cat([look(self._pixels(frames)).float().cpu() for frames in batches])

    def _pixels(self, frames: Any) -> Tensor:
        return self.image_processor(images=[*frames], return_tensors="pt")["pixel_values"].to(self.model.device)

    def _frames(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def _patches(self, pixels: Tensor) -> Tensor:
        tower = self.model.vision_model
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        side = round(hidden.shape[1] ** 0.5)
        return self.model.visual_projection(tower.post_layernorm(hidden)).unflatten(1, (side, side))


def likeness(seen: Tensor, spoken: Tensor) -> Tensor:
    """Cosine similarity [...] of features [..., d] and a text's feature [d]."""
    return normalize(seen, dim=-1) @ normalize(spoken, dim=-1)


@cache
def frame_scorer(name: str) -> FrameScorer:
    """The scorer in a folder, behind a hub id, or shipped; loaded once. Raises FitError if it is no CLIP model."""
    import transformers

    path, _ = locate(name)
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise FitError(
            f"The frame scorer {name} cannot be loaded ({str(error).splitlines()[0]}): give tiny-clip, a folder with a "
            "config.json, or a hub id that this machine can reach."
        ) from error
    if config.model_type != "clip":
        raise FitError(f"{name} is a {config.model_type} model, which does not score frames: give a CLIP model.")
    model = transformers.CLIPModel.from_pretrained(path, dtype=torch.float32).to(default_device())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return FrameScorer(model, tokenizer, transformers.AutoImageProcessor.from_pretrained(path))
