"""Training of a fusion model under random missingness, what is saved of it, and reading with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from elvi.errors import ElviError
from elvi.related.t2dr.data import Samples, drop_frames, drop_modalities, normal
from elvi.related.t2dr.model import T2DR, Filled, LateFusion, Tiers

BATCH, RATE = 128, 3e-3
KINDS: dict[str, Callable[[dict[str, int], dict[str, int], int], nn.Module]] = {
    "T2DR": lambda *sizes: T2DR(*sizes, Tiers()),
    "hard mask": lambda *sizes: T2DR(*sizes, Tiers(soft=False)),
    "no prediction": lambda *sizes: T2DR(*sizes, Tiers(predict=False)),
    "equal weights": lambda *sizes: T2DR(*sizes, Tiers(weigh=False)),
    "late fusion": LateFusion,
    "zeros, attention": lambda *sizes: Filled(*sizes, mean=False),
    "mean imputation, attention": lambda *sizes: Filled(*sizes, mean=True),
}


class Fusion:
    """A model with the statistics that its features are scaled by."""

    def __init__(self, kind: str, hidden: int, frames: dict[str, int], scale: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.kind, self.hidden, self.frames, self.scale = kind, hidden, frames, scale
        self.model = KINDS[kind]({m: len(mean) for m, (mean, _) in scale.items()}, frames, hidden)

    def scaled(self, samples: Samples) -> Samples:
        for m, x in samples.features.items():
            held = (self.frames[m], len(self.scale[m][0]))
            if x.shape[1] > held[0] or x.shape[2] != held[1]:
                given = " x ".join(map(str, x.shape[1:]))
                raise ElviError(
                    f"{m} has {given} features, but this model reads up to {held[0]} x {held[1]}: train one."
                )
        return replace(
            samples, features={m: (x - self.scale[m][0]) / self.scale[m][1] for m, x in samples.features.items()}
        )

    @torch.no_grad()
    def read(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Sentiments [B] and weights of the modalities [B, M] of samples as they are."""
        self.model.eval()
        said, log_w = self.model(self.scaled(samples))
        return said, log_w.exp()

    def error(self, samples: Samples) -> float:
        """Mean absolute error."""
        return float((self.read(samples)[0] - samples.target).abs().mean())


def fit(
    kind: str,
    train: Samples,
    *,
    hidden: int,
    epochs: int,
    seed: int,
    missing: bool = True,
    checkpoint: Path | None = None,
    resume: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Fusion:
    """Adam, the rate falling linearly to a tenth. With `missing`, every batch loses frames at rates uniform in [0, 0.9]
    and half of the batches modalities at 0.5; what an epoch draws depends on the seed and its number alone.
    """
    torch.manual_seed(seed)
    fusion = Fusion(kind, hidden, {m: x.shape[1] for m, x in train.features.items()}, normal(train))
    train = fusion.scaled(train)
    optimizer = torch.optim.Adam(fusion.model.parameters(), RATE)
    first = 0
    shape = json.dumps([kind, hidden, fusion.frames, len(train), epochs, seed])
    if resume and checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["shape"] != shape:
            raise ElviError(
                f"{checkpoint} was begun with other settings or data: drop --resume, or choose another --out."
            )
        fusion.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    for epoch in range(first, epochs):
        draw = torch.Generator().manual_seed(1000 * seed + epoch)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - 0.9 * epoch / epochs)
        for picked in torch.randperm(len(train), generator=draw).split(BATCH):
            whole = part = train.pick(picked)
            if missing:
                whole = part = drop_frames(whole, 0.9 * torch.rand(len(picked), generator=draw), draw)
                part = drop_modalities(part, 0.5, draw) if torch.rand((), generator=draw) < 0.5 else part
            loss = fusion.model.losses(whole, part)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(fusion.model.parameters(), 1.0)
            optimizer.step()
        if checkpoint:
            state = {"shape": shape, "epoch": epoch + 1, "model": fusion.model.state_dict()}
            _store(checkpoint, state | {"optimizer": optimizer.state_dict()})
        tick(epoch + 1, epochs)
    return fusion


def _store(path: Path, state: dict) -> None:
    """Write a checkpoint; an interruption leaves the one before it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def save(fusion: Fusion, path: Path) -> None:
    """Half-precision weights; sizes and scaling are in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {m: [mean.tolist(), deviation.tolist()] for m, (mean, deviation) in fusion.scale.items()}
    held = {"kind": fusion.kind, "hidden": fusion.hidden, "frames": fusion.frames, "scale": scale}
    weights = {name: value.half().contiguous() for name, value in fusion.model.state_dict().items()}
    save_file(weights, path, metadata={"held": json.dumps(held)})


def load(path: Path) -> Fusion:
    """Raises ElviError when the file is missing or was not written by `save`."""
    try:
        with safe_open(path, "pt") as file:
            held = json.loads(file.metadata()["held"])
            scale = {m: (torch.tensor(a), torch.tensor(b)) for m, (a, b) in held["scale"].items()}
            fusion = Fusion(held["kind"], held["hidden"], held["frames"], scale)
            fusion.model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ElviError(f"{path} was asked for, but holds no weights of T2DR ({error}): train some.") from error
    return fusion
