"""CLIP as a judge of how well a frame fits a text: the only file that names its class."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.errors import FitError
from elvi.families.load import default_device, locate

if TYPE_CHECKING:
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
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer([text], truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        spoken = self.model.get_text_features(input_ids=ids.to(self.model.device)).pooler_output
        seen = torch.cat([self._frames(clip.frames[start : start + BATCH]) for start in range(0, len(clip), BATCH)])
        return (normalize(seen.float(), dim=-1) @ normalize(spoken.float(), dim=-1)[0]).cpu()

    def _frames(self, frames: Any) -> Tensor:
        pixels = self.image_processor(images=[*frames], return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output


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
