"""Text, audio and vision sequences with a sentiment in [-3, 3]: a seeded generator (R), a reader, two ways to drop."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elvi.errors import ElviError

MODALITIES = ("text", "audio", "vision")
WIDTHS = {"text": 12, "audio": 8, "vision": 10}
NOISE = {"text": 0.3, "audio": 0.8, "vision": 1.0}  # text is the most capable, as it is on MOSI
FLIPPED = 0.1  # share of samples in which vision is the clearest
FRAMES, SHARED, PRIVATE, LOUDNESS, MEMORY = 20, 8, 4, 8.0, 0.6
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Samples:
    """Per modality the features [B, T_m, d_m] and which frames are present [B, T_m]; the sentiment [B].

    A modality with no present frame is absent. What a missing frame holds must never matter.
    """

    features: dict[str, Tensor]
    present: dict[str, Tensor]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def pick(self, index: Tensor) -> Samples:
        rows = [{m: held[index] for m, held in part.items()} for part in (self.features, self.present)]
        return Samples(*rows, self.target[index])


def corpus(split: str, size: int, seed: int) -> Samples:
    """The seeded samples of a split. All splits of a seed share the mixing of codes into features.

    A shared code k follows the sentiment, a private code p_m belongs to each modality, and every frame is W_m [k; p_m]
    plus noise that remembers its past.
    """
    world, draw = np.random.default_rng([seed, 99]), np.random.default_rng([seed, SPLITS.index(split)])
    direction = world.normal(size=SHARED) / np.sqrt(SHARED)
    mixing = {m: world.normal(size=(SHARED + PRIVATE, width)) / 3 for m, width in WIDTHS.items()}
    target = draw.uniform(-3, 3, size)
    shared = target[:, None] * direction + 0.2 * draw.normal(size=(size, SHARED))
    flipped = draw.random(size) < FLIPPED
    features = {}
    for m, other in zip(MODALITIES, reversed(MODALITIES), strict=True):
        codes = np.concatenate([shared, draw.normal(size=(size, PRIVATE))], 1)
        level = np.where(flipped, NOISE[other], NOISE[m])[:, None, None]
        noise = draw.normal(size=(size, FRAMES, WIDTHS[m]))
        for t in range(1, FRAMES):
            noise[:, t] = MEMORY * noise[:, t - 1] + np.sqrt(1 - MEMORY**2) * noise[:, t]
        features[m] = torch.tensor((codes @ mixing[m])[:, None] + LOUDNESS * level * noise / 3, dtype=torch.float32)
    present = {m: torch.ones(size, FRAMES, dtype=torch.bool) for m in MODALITIES}
    return Samples(features, present, torch.tensor(target, dtype=torch.float32))


def drop_frames(samples: Samples, rate: float | Tensor, draw: torch.Generator) -> Samples:
    """Missing inside a modality: each frame of each modality is dropped by itself at `rate` (a number, or [B])."""
    rates = torch.as_tensor(rate).expand(len(samples))[:, None]
    kept = {m: p & (torch.rand(p.shape, generator=draw) >= rates) for m, p in samples.present.items()}
    return replace(samples, present=_at_least_one(kept, samples.present))


def drop_modalities(samples: Samples, rate: float, draw: torch.Generator) -> Samples:
    """Missing between modalities: each is dropped with chance `rate`, but one always stays."""
    held = samples.present
    gone = torch.rand(len(samples), len(held), generator=draw) < rate
    stays = torch.randint(len(held), (len(samples),), generator=draw)
    every = gone.all(1)
    gone[every, stays[every]] = False
    kept = {m: p & ~gone[:, i : i + 1] for i, (m, p) in enumerate(held.items())}
    return replace(samples, present=_at_least_one(kept, held))


def without(samples: Samples, absent: tuple[str, ...]) -> Samples:
    """The modalities named are absent from every sample. Raises ElviError when none is left."""
    if set(absent) >= set(samples.present):
        raise ElviError(f"All of {', '.join(samples.present)} were asked to be absent: leave at least one.")
    return replace(samples, present={m: p & (m not in absent) for m, p in samples.present.items()})


def _at_least_one(kept: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    """A sample that lost everything keeps its first frame that was there, of the first modality that had any."""
    lost = ~torch.stack([p.any(1) for p in kept.values()]).any(0)
    for m, p in before.items():
        has = lost & p.any(1)
        kept[m][has, p[has].int().argmax(1)] = True
        lost = lost & ~has
    return kept


def normal(samples: Samples) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation [d] of each modality over present frames only."""
    found = {m: x[samples.present[m]] for m, x in samples.features.items()}
    return {m: (x.mean(0), x.std(0).clamp(min=1e-6)) for m, x in found.items()}


class _Arrays(pickle.Unpickler):
    """Reads pickles of numpy arrays and nothing else: a pickle of anything else could run code."""

    allowed = ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in self.allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")


def read(path: Path) -> dict[str, Samples]:
    """Splits of a MOSI or MOSEI file: a pickle {train, valid, test} of {text, audio, vision [N, T, d],
    regression_labels [N]} as MMSA writes it, or an .npz of the same arrays named `train_text` and so on.

    Frames beyond `<modality>_lengths` and frames that `<modality>_mask` leaves out, where those are given, are missing,
    and so are frames that hold no numbers (nan). Zeros are values. Raises ElviError when the file has another form.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                held = {s: {k[len(s) + 1 :]: file[k] for k in file.files if k.startswith(f"{s}_")} for s in SPLITS}
        else:
            with path.open("rb") as file:
                held = _Arrays(file).load()
        return {split: _samples(held[split]) for split in SPLITS}
    except (
        OSError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise ElviError(
            f"{path} was asked for, but is no file of aligned modalities ({error!r}): give a pickle or .npz with "
            "train, valid and test, each of text, audio, vision and regression_labels."
        ) from error


def _samples(held: Mapping[str, Any]) -> Samples:
    target = torch.tensor(np.asarray(held["regression_labels"], dtype=np.float32)).flatten()
    features, present = {}, {}
    for m in MODALITIES:
        x = torch.tensor(np.asarray(held[m], dtype=np.float32))
        if x.ndim != 3 or len(x) != len(target) or not len(target):
            raise ValueError(f"{m} is {tuple(x.shape)} for {len(target)} labels")
        there = ~x.isnan().any(-1)
        if f"{m}_mask" in held:
            there &= torch.tensor(np.asarray(held[f"{m}_mask"], dtype=bool))
        if f"{m}_lengths" in held:
            length = torch.tensor(np.asarray(held[f"{m}_lengths"], dtype=np.int64)).flatten()
            there &= torch.arange(x.shape[1]) < length[:, None]
        features[m], present[m] = x, there
    some = torch.stack([p.any(1) for p in present.values()]).any(0)  # nothing can be said of the others
    return Samples(features, present, target).pick(some.nonzero().flatten())
