"""Training from the seed: a teacher on the task, then the students by distillation, in parts that can be resumed.

Losses are those of the official code: squared errors of attention scores before the softmax and of hidden states, and
the cross-entropy to the teacher's probabilities. Stage 1 trains the tri-gram encoder with the upper layers of the
deepest student; stage 2 freezes it, so that one table serves every student.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from elvi.errors import ElviError
from elvi.related.skipbert.data import Sentence, encode, split, vocabulary
from elvi.related.skipbert.model import Local, Teacher, Upper, shallow

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """Sizes and training. `kept` are layers of the teacher whose states the upper layers of each student imitate."""

    seed: int = 0
    vocabulary: int = 3000
    length: int = 48
    width: int = 64
    heads: int = 4
    shallow: int = 4  # S, the layers that the table replaces
    students: tuple[int, ...] = (4, 2)  # G, the layers over the whole sentence
    dropout: float = 0.1
    batch: int = 32
    teacher_epochs: int = 4
    general_epochs: int = 2  # stage 1
    task_epochs: int = 3  # stage 2
    warm_epochs: int = 1  # of stage 2, without the teacher's answers
    beta: float = 0.1
    ngram_masking: float = 0.1
    rate: float = 1e-3

    @property
    def layers(self) -> int:
        """L of the teacher: as many as the deepest student."""
        return self.shallow + self.students[0]

    def kept(self, student: int) -> list[int]:
        step = self.students[0] // student
        return [self.shallow + step * k for k in range(student + 1)]


@dataclass
class Trained:
    """All networks of one recipe."""

    recipe: Recipe
    pieces: Tokenizer
    teacher: Teacher
    local: Local
    uppers: nn.ModuleDict

    def encode(self, texts: list[str]) -> Tensor:
        return encode(self.pieces, texts)

    @property
    def modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": self.teacher, "local": self.local, "uppers": self.uppers})

    @cached_property
    def stamp(self) -> str:
        """What a table depends on: the weights of the tri-gram encoder, and the vocabulary."""
        made = hashlib.sha256(self.pieces.to_str().encode())
        for name, tensor in sorted(self.local.state_dict().items()):
            made.update(name.encode() + tensor.numpy().tobytes())
        return made.hexdigest()


def build(recipe: Recipe, pieces: Tokenizer) -> Trained:
    """Networks before training."""
    torch.manual_seed(recipe.seed)
    size, sizes = pieces.get_vocab_size(), (recipe.width, recipe.heads, recipe.dropout)
    teacher = Teacher(size, recipe.layers, recipe.length, *sizes)
    uppers = nn.ModuleDict({str(n): Upper(n, recipe.length, *sizes) for n in recipe.students})
    return Trained(recipe, pieces, teacher, Local(size, recipe.shallow, *sizes), uppers)


def save(trained: Trained, folder: Path) -> None:
    """Weights in half precision, vocabulary and recipe."""
    state = {name: tensor.half().contiguous() for name, tensor in trained.modules.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"recipe": json.dumps(asdict(trained.recipe))})
    trained.pieces.save(str(folder / "pieces.json"), pretty=False)
    (folder / "recipe.json").write_text(json.dumps(asdict(trained.recipe), indent=1) + "\n")


def load(folder: Path | None = None) -> Trained:
    """Trained networks, ready for inference. Raises ElviError when the folder holds none."""
    folder = folder or SHIPPED
    try:
        recipe = Recipe(**_tuples(json.loads((folder / "recipe.json").read_text())))
        trained = build(recipe, Tokenizer.from_file(str(folder / "pieces.json")))
        state = load_file(folder / "model.safetensors")
        trained.modules.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except Exception as error:  # that of tokenizers is a bare one
        raise ElviError(f"{folder} holds no weights of skipbert: train them with `elvi train skipbert`.") from error
    trained.modules.eval().requires_grad_(False)
    return trained


def train(
    recipe: Recipe, sentences: list[Sentence], out: Path, *, resume: bool, tick: Callable[[int, int], None]
) -> None:
    """Run all parts that the checkpoint in `out` does not have yet, and save the weights. Raises ElviError."""
    texts, labels = map(list, zip(*split(sentences)["train"]))
    trained = build(recipe, vocabulary(texts, recipe.vocabulary, recipe.length))
    ids, labels = trained.encode(texts), torch.tensor(labels)
    checkpoint = out / "checkpoint.pt"
    state = _resumed(checkpoint, recipe, trained) if resume else None
    parts = list(_parts(recipe))
    done = state["done"] if state else 0
    tick(done, len(parts))
    optimizer = entering = None
    for number, (stage, student, epoch, epochs) in enumerate(parts):
        if number < done:
            continue
        parameters = _begin(trained, stage, student, fresh=epoch == 0)
        if epoch == 0 or optimizer is None:
            optimizer = torch.optim.AdamW(parameters, recipe.rate, weight_decay=0.01)
            if epoch and state:
                optimizer.load_state_dict(state["optimizer"])
        if stage == "task" and entering is None:  # its lower layers are frozen: their results are computed once
            with torch.no_grad():
                entering = torch.cat([shallow(trained.local, part) for part in ids.split(256)])
        loss = {"teacher": _teach, "general": _general, "task": _task}[stage]
        torch.manual_seed(recipe.seed * 1000 + number)
        batches = _batches((ids > 0).sum(1), recipe.batch)
        for step, rows in enumerate(batches):
            share = (epoch + step / len(batches)) / epochs
            optimizer.param_groups[0]["lr"] = recipe.rate * min(1.0, 20 * share) * (1 - share)
            batch = ids[rows]
            batch = batch[:, : int((batch > 0).sum(1).max())]
            u = None if entering is None else entering[rows, : batch.shape[1]]
            optimizer.zero_grad()
            loss(trained, student, epoch, batch, labels[rows], u).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        made = {"done": number + 1, "recipe": json.dumps(asdict(recipe)), "optimizer": optimizer.state_dict()}
        torch.save(made | {"modules": trained.modules.state_dict()}, checkpoint)
        tick(number + 1, len(parts))
    save(trained, out)


def _batches(lengths: Tensor, size: int) -> list[Tensor]:
    """Rows of random batches of sentences of like length, in random order."""
    groups = torch.randperm(len(lengths)).split(20 * size)
    found = [batch for group in groups for batch in group[lengths[group].argsort(stable=True)].split(size)]
    return [found[number] for number in torch.randperm(len(found)).tolist()]


def _parts(recipe: Recipe) -> Iterator[tuple[str, int, int, int]]:
    """(stage, student, epoch, epochs of the stage)."""
    stages = [("teacher", 0, recipe.teacher_epochs), ("general", recipe.students[0], recipe.general_epochs)]
    stages += [("task", student, recipe.task_epochs) for student in reversed(recipe.students)]
    for stage, student, epochs in stages:
        yield from ((stage, student, epoch, epochs) for epoch in range(epochs))


def _begin(trained: Trained, stage: str, student: int, *, fresh: bool) -> list[nn.Parameter]:
    """Set what is trained in a stage, from what it starts, and return it. Only that has gradients and dropout."""
    trained.modules.eval().requires_grad_(False)
    deepest = str(trained.recipe.students[0])
    learning: list[nn.Module] = [trained.teacher] if stage == "teacher" else [trained.uppers[str(student)]]
    if stage == "general":
        learning.append(trained.local)
        if fresh:
            _copy_teacher(trained)
    elif stage == "task" and fresh and str(student) != deepest:
        _copy_upper(trained.uppers[deepest], trained.uppers[str(student)])
    for module in learning:
        module.train().requires_grad_(True)
    return [parameter for module in learning for parameter in module.parameters()]


def _copy_teacher(trained: Trained) -> None:
    """A student begins as its teacher: words and lower layers for the tri-grams, the others above."""
    S, upper = trained.recipe.shallow, trained.uppers[str(trained.recipe.students[0])]
    trained.local.embedding.words.load_state_dict(trained.teacher.embedding.words.state_dict())
    trained.local.embedding.norm.load_state_dict(trained.teacher.embedding.norm.state_dict())
    trained.local.layers.load_state_dict(trained.teacher.layers[:S].state_dict())
    upper.layers.load_state_dict(trained.teacher.layers[S:].state_dict())


def _copy_upper(source: Any, target: Any) -> None:
    """A shallower student begins with every n-th upper layer of the deepest one."""
    step = len(source.layers) // len(target.layers)
    target.positions.load_state_dict(source.positions.state_dict())
    target.norm.load_state_dict(source.norm.state_dict())
    target.layers.load_state_dict(source.layers[step - 1 :: step].state_dict())


def _teach(trained: Trained, student: int, epoch: int, ids: Tensor, labels: Tensor, u: Any) -> Tensor:
    return F.cross_entropy(trained.teacher(ids)[0], labels)


def _general(trained: Trained, student: int, epoch: int, ids: Tensor, labels: Tensor, u: Any) -> Tensor:
    u = shallow(trained.local, ids, trained.recipe.ngram_masking)
    with torch.no_grad():
        taught = trained.teacher(ids)
    return imitation(taught, trained.uppers[str(student)](u, ids > 0), trained.recipe.kept(student), ids > 0)


def _task(trained: Trained, student: int, epoch: int, ids: Tensor, labels: Tensor, u: Any) -> Tensor:
    recipe = trained.recipe
    with torch.no_grad():
        taught = trained.teacher(ids)
    made = trained.uppers[str(student)](u, ids > 0)
    alike = imitation(taught, made, recipe.kept(student), ids > 0)
    return alike if epoch < recipe.warm_epochs else recipe.beta * alike + answers(taught[0], made[0])


def imitation(taught: tuple, made: tuple, kept: list[int], mask: Tensor) -> Tensor:
    """L_att + L_hid: squared errors of scores and hidden states between a student and the layers `kept`."""
    _, hidden, scores = taught
    _, mine, my_scores = made
    loss = sum(F.mse_loss(_seen(s), _seen(scores[k - 1])) for s, k in zip(my_scores, kept[1:]))
    return loss + sum(F.mse_loss(h[mask], hidden[k][mask]) for h, k in zip(mine, kept))


def _seen(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores <= -100, 0.0)


def answers(taught: Tensor, logits: list[Tensor]) -> Tensor:
    """L_kd at temperature 1 over all classifiers; the one after layer k weighs k (R)."""
    truth, total = taught.softmax(-1), sum(range(1, len(logits) + 1))
    return sum(k / total * F.cross_entropy(made, truth) for k, made in enumerate(logits, 1))


def _resumed(path: Path, recipe: Recipe, trained: Trained) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
        same = state["recipe"] == json.dumps(asdict(recipe))
        if same:
            trained.modules.load_state_dict(state["modules"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ElviError(f"{path} cannot be read as a checkpoint: train without --resume.") from error
    if not same:
        raise ElviError(f"{path} was made by another recipe or seed: train without --resume, or name another --out.")
    return state


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
