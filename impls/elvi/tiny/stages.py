"""The stages of training: for each model, what is trained, on which batches, for how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from elvi.errors import ElviError
from elvi.tiny import lessons, models, relevance, sight, speech
from elvi.tiny.data import HELD_OUT, KINDS, draw
from elvi.tiny.tokenizer import ANSWER, BOS, EOS, byte_pairs, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

STEPS = {
    "tower": 1000,
    "tiny-qwen": 1000,
    "tiny-qwen-drafter": 1600,
    "tiny-clip": 1500,
    "tiny-llava": 1200,
    "tiny-llava-drafter": 1600,
    "tiny-drafter-bpe": 600,
    "smollm2-drafter": 500,
}
NEEDS = {  # name: what has to be trained before it
    "tiny-qwen": "tower",
    "tiny-qwen-drafter": "tiny-qwen",
    "tiny-llava": "tiny-clip",
    "tiny-llava-drafter": "tiny-llava",
}
GLIMPSES = 0.6  # of a drafter's lessons show pictures with tokens missing: large models take that in their stride
SPEECH = {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
SLIPS = 0.1  # of the pieces that the drafter of SmolLM2 reads in training are others
QUIET = 0.15  # brings what the tower learnt to say (norm 34) near the norm of word embeddings (1.5)


@dataclass(frozen=True)
class Stage:
    """One thing to train: `loss(step)` draws the step's batch; `rate` is AdamW's peak rate, `muon` Muon's (0: none)."""

    name: str
    steps: int
    module: nn.Module
    loss: Callable[[int], Tensor]
    save: Callable[[], None]
    rate: float = 1e-3
    muon: float = 2e-3


def build(name: str, out: Path, seed: int) -> Stage:
    """The stage that trains the model of this name; it reads the model it needs from `out`, or raises ElviError."""
    if name in NEEDS and not (out / "checkpoints" / f"{NEEDS[name]}.pt").exists():
        raise ElviError(
            f"{name} builds on {NEEDS[name]}, which {out} does not hold: train --only {NEEDS[name]} {name}."
        )
    return {
        "tower": _tower,
        "tiny-qwen": _qwen,
        "tiny-qwen-drafter": _qwen_drafter,
        "tiny-clip": _clip,
        "tiny-llava": _llava,
        "tiny-llava-drafter": _llava_drafter,
        "tiny-drafter-bpe": _text_drafter,
        "smollm2-drafter": _speech_drafter,
    }[name](name, out, seed)


def _tower(name: str, out: Path, seed: int) -> Stage:
    """The vision tower of tiny-qwen with its merger, together with the word embeddings that name what it sees."""
    model = models.qwen(layers=1)
    visual, head = model.model.visual, sight.WordHead(model.get_input_embeddings())
    nn.init.normal_(head.embedding.weight, std=0.1)
    module = nn.ModuleDict({"visual": visual, "head": head})

    def loss(step: int) -> Tensor:
        frames, target, _ = sight.seconds_batch(f"{seed}/{name}/{step}", 32)
        merged = visual.merger(sight.tower(visual, sight.patches(frames)))
        return sight.sight_loss(head(merged.reshape(-1, models.WIDTH)), target.flatten(0, 1))

    return Stage(name, STEPS[name], module, loss, save=lambda: None)


def _clip(name: str, out: Path, seed: int) -> Stage:
    """tiny-clip: contrastive on texts and seconds, and a per-patch classifier on the features that tiny-llava reads."""
    model = models.clip()
    head = nn.Linear(model.config.vision_config.hidden_size, sum(sight.SIZES))
    module = nn.ModuleDict({"model": model, "head": head})
    tokenizer = words("clip")

    def loss(step: int) -> Tensor:
        key = f"{seed}/{name}/{step}"
        frames, target, origin = sight.seconds_batch(key, 64)
        seen = model.vision_model(sight.images(frames), output_hidden_states=True)
        named = sight.sight_loss(head(seen.hidden_states[-2][:, 1:].flatten(0, 1)), target.flatten(0, 1))
        rng = Random(f"texts/{key}")
        batch = [text for where in origin for text in relevance.texts(rng, *where)]
        return named + relevance.contrast(model, seen.pooler_output, batch, origin)

    return Stage(name, STEPS[name], module, loss, save=lambda: models.save(model, tokenizer, out / name, "clip"))


def _qwen(name: str, out: Path, seed: int) -> Stage:
    """tiny-qwen: the decoder and the merger, on the tower as it was taught to see."""
    model = models.qwen(layers=12)
    seen = torch.load(out / "checkpoints" / "tower.pt", weights_only=True)["module"]
    eyes = {key.removeprefix("visual."): value for key, value in seen.items() if key.startswith("visual.")}
    model.model.visual.load_state_dict(eyes)
    model.get_input_embeddings().weight.data.copy_(seen["head.embedding.weight"])
    for part in model.model.visual.merger.mlp[2].parameters():
        part.data *= QUIET
    return _qwen_stage(name, model, out, seed, merger=True, glimpses=0.0)


def _qwen_drafter(name: str, out: Path, seed: int) -> Stage:
    """tiny-qwen-drafter: two decoder layers behind tiny-qwen's own eyes, used to pictures with tokens missing."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, target = models.qwen(layers=2), Qwen2_5_VLForConditionalGeneration.from_pretrained(out / "tiny-qwen").float()
    model.model.visual.load_state_dict(target.model.visual.state_dict())
    model.get_input_embeddings().load_state_dict(target.get_input_embeddings().state_dict())
    return _qwen_stage(name, model, out, seed, merger=False, glimpses=GLIMPSES)


def _qwen_stage(name: str, model: nn.Module, out: Path, seed: int, merger: bool, glimpses: float) -> Stage:
    visual, tokenizer = model.model.visual, words("qwen")
    model.set_attn_implementation({"text_config": lessons.ATTENTION})
    visual.requires_grad_(False)
    visual.merger.requires_grad_(merger)

    def features(frames: np.ndarray) -> Tensor:
        with torch.no_grad():
            seen = sight.tower(visual, sight.patches(frames))
        return visual.merger(seen.flatten(0, 1)).reshape(len(frames), models.PER_SECOND, -1)

    def loss(step: int) -> Tensor:
        return _lesson(model, features, f"{seed}/{name}/{step}", step / STEPS[name], glimpses)

    return Stage(name, STEPS[name], model, loss, save=lambda: models.save(model, tokenizer, out / name, "qwen"))


def _llava(name: str, out: Path, seed: int) -> Stage:
    """tiny-llava: projector and decoder on tiny-clip's frozen tower; the projector learns to name things first."""
    from transformers import CLIPModel

    model = models.llava(layers=8)
    tower = CLIPModel.from_pretrained(out / "tiny-clip").float().vision_model
    model.model.vision_tower.load_state_dict(tower.state_dict())
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return _llava_stage(name, model, out, seed, naming=200, glimpses=0.0)


def _llava_drafter(name: str, out: Path, seed: int) -> Stage:
    """tiny-llava-drafter: two decoder layers behind tiny-llava's own eyes, used to pictures with tokens missing."""
    from transformers import LlavaForConditionalGeneration

    model, target = models.llava(layers=2), LlavaForConditionalGeneration.from_pretrained(out / "tiny-llava").float()
    for part in ("vision_tower", "multi_modal_projector"):
        getattr(model.model, part).load_state_dict(getattr(target.model, part).state_dict())
    model.get_input_embeddings().load_state_dict(target.get_input_embeddings().state_dict())
    model.model.multi_modal_projector.requires_grad_(False)
    return _llava_stage(name, model, out, seed, naming=0, glimpses=GLIMPSES)


def _llava_stage(name: str, model: nn.Module, out: Path, seed: int, naming: int, glimpses: float) -> Stage:
    """The first `naming` steps teach the projector alone to name what each token shows."""
    tokenizer, head = words("llava"), sight.WordHead(model.get_input_embeddings())
    model.set_attn_implementation({"text_config": lessons.ATTENTION})
    model.model.vision_tower.requires_grad_(False)

    def features(frames: np.ndarray) -> Tensor:
        with torch.no_grad():
            seen = model.model.vision_tower(sight.images(frames), output_hidden_states=True).hidden_states[-2]
        return model.model.multi_modal_projector(seen[:, 1:])

    def loss(step: int) -> Tensor:
        key = f"{seed}/{name}/{step}"
        if step < naming:
            frames, target, _ = sight.seconds_batch(key, 64)
            return sight.sight_loss(head(features(frames).flatten(0, 1)), target.flatten(0, 1))
        return _lesson(model, features, key, (step - naming) / (STEPS[name] - naming), glimpses)

    module = nn.ModuleDict({"model": model, "head": head})
    return Stage(name, STEPS[name], module, loss, save=lambda: models.save(model, tokenizer, out / name, "llava"))


def _text_drafter(name: str, out: Path, seed: int) -> Stage:
    """tiny-drafter-bpe: it never sees a clip, and learns how answers are phrased."""
    tokenizer, model = byte_pairs(_talk(f"{seed}/{name}/pieces", 2000)), models.drafter()
    marks = [tokenizer.convert_tokens_to_ids(token) for token in (BOS, ANSWER, EOS)]

    def loss(step: int) -> Tensor:
        ids, goals = [], []
        for line in _talk(f"{seed}/{name}/{step}", 16):
            question, answer = (tokenizer.encode(part, add_special_tokens=False) for part in line.split("\n"))
            ids.append([marks[0], *question, marks[1], *answer, marks[2]])
            goals.append([-100] * (len(question) + 2) + [*answer, marks[2]])
        return _text_loss(model, ids, goals)

    return Stage(name, STEPS[name], model, loss, save=lambda: models.save(model, tokenizer, out / name, "text"))


def _speech_drafter(name: str, out: Path, seed: int) -> Stage:
    """smollm2-drafter: it goes on with SmolLM2-135M's answers, as plain text in a vocabulary of its own."""
    talks = speech.talks(speech.lessons(seed)[0], out / "checkpoints" / f"talks-{seed}.jsonl")
    corpus = [f"{talk.instruction}\n{talk.answer}" for talk in talks]
    tokenizer = byte_pairs(corpus, SPEECH["vocab_size"], speech.TEMPLATE)
    model = models.drafter(**SPEECH | {"vocab_size": len(tokenizer)})
    spelt = [speech.spell(talk, tokenizer) for talk in talks]

    def loss(step: int) -> Tensor:
        rng = Random(f"{seed}/{name}/{step}")
        batch = rng.sample(spelt, min(16, len(spelt)))
        ids = [[_slip(rng, piece, len(tokenizer)) for piece in prompt + answer] for prompt, answer in batch]
        return _text_loss(model, ids, [[-100] * len(prompt) + answer for prompt, answer in batch])

    def save() -> None:
        models.save(model, tokenizer, out / name, "text")

    return Stage(name, STEPS[name], model, loss, save, rate=2e-3)


def _slip(rng: Random, piece: int, pieces: int) -> int:
    """The piece, or now and then any other, so that no answer is learnt by heart."""
    return rng.randrange(pieces) if rng.random() < SLIPS else piece


def _text_loss(model: nn.Module, ids: list[list[int]], goals: list[list[int]]) -> Tensor:
    """Next-token loss of a padded batch; a goal of -100 does not count."""
    padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
    goal = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in goals], batch_first=True, padding_value=-100)
    return model(input_ids=padded, labels=goal).loss


def _talk(key: str, count: int) -> list[str]:
    """Question and answer of random training clips, one line break between them; half are captions."""
    lines = []
    for i in range(count):
        rng = Random(f"talk/{key}/{i}")
        kind = rng.choice(("caption", rng.choice(KINDS)))
        shown, _ = draw(rng.randrange(HELD_OUT), f"{key}/{i}", kind)
        lines.append("\n".join(rng.choice(shown.turns(kind))))
    return lines


def _lesson(
    model: nn.Module, features: Callable[[np.ndarray], Tensor], key: str, progress: float, glimpses: float = 0.0
) -> Tensor:
    """The loss of one batch; a share `glimpses` of the batches shows pictures with most of their tokens missing."""
    lesson = lessons.draw_lesson(key, lessons.seconds_at(Random(f"seconds/{key}"), progress))
    seen = lessons.glimpse(key, lesson) if Random(f"glimpses/{key}").random() < glimpses else None
    with torch.autocast("cpu", torch.bfloat16):
        return lessons.lesson_loss(model, features, lesson, seen)
