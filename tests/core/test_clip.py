"""The judge of frames and patches, next to the unmodified CLIP model."""

import torch
from support import noise_clip
from torch.nn.functional import normalize

from elvi.families import clip as families_clip
from elvi.families.clip import frame_scorer

QUESTION = "what color is the star ?"


@torch.inference_mode()
def test_features_are_those_that_the_unmodified_model_compares():
    scorer, clip = frame_scorer("tiny-clip"), noise_clip(2)
    pixels = scorer.image_processor(images=[*clip.frames], return_tensors="pt")["pixel_values"]
    out = scorer.model(**scorer.tokenizer([QUESTION], return_tensors="pt"), pixel_values=pixels)
    torch.testing.assert_close(normalize(scorer.features(clip), dim=-1), out.image_embeds)
    torch.testing.assert_close(normalize(scorer.text_feature(QUESTION), dim=-1), out.text_embeds[0])


def test_long_clips_are_looked_at_in_parts_that_make_no_difference(monkeypatch):
    scorer, clip = frame_scorer("tiny-clip"), noise_clip(3)
    whole = scorer.features(clip), scorer.patch_features(clip)
    monkeypatch.setattr(families_clip, "BATCH", 4)
    torch.testing.assert_close(scorer.features(clip), whole[0])
    torch.testing.assert_close(scorer.patch_features(clip), whole[1])
