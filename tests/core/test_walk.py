import pytest
import torch
from support import FAMILIES, clip_for, random_family

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.walk import walk

QUESTION = "what color is the star ?"


def walked(family, clip):
    """Logits of all prompt rows through our walk, from pixels."""
    run = Run(family, Plan())
    clip = clip and family.steps(clip)
    encoding = clip and family.encode(clip)
    prompt = family.prompt(QUESTION, clip, encoding and encoding.slots)
    run.extend(prompt.layout)
    return family.head(walk(prompt.fill(encoding and family.project(encoding.tokens)), run))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("still", [False, True])
@torch.inference_mode()
def test_walk_equals_forward_from_pixels(kind, still):
    family, clip = random_family(kind), clip_for(kind, still=still)
    expected = family.model(**family.inputs(clip, QUESTION)).logits[0]
    assert (walked(family, clip) - expected).abs().max() == 0.0


@torch.inference_mode()
def test_single_image_is_tiled_by_onevision():
    family, clip = random_family("llava_onevision"), clip_for("llava_onevision", seconds=1, still=True, size=(84, 60))
    expected = family.model(**family.inputs(clip, QUESTION)).logits[0]
    assert len(expected) > 49 + 40
    assert (walked(family, clip) - expected).abs().max() == 0.0


@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_prefill_returns_the_logits_after_the_last_prompt_token(kind):
    family, clip = random_family(kind), clip_for(kind)
    _, logits = prefill(Run(family, Plan()), clip, QUESTION)
    torch.testing.assert_close(logits, walked(family, clip)[-1])
