"""The two tiers: attention in a modality that leans on present frames, and between modalities by capability.

Shapes: B samples, T frames, M modalities, H width. Every step is a reconstruction (R) from the idea in the abstract.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from elvi.errors import ElviError
from elvi.related.t2dr.data import Samples

HEADS = 2


@dataclass(frozen=True)
class Tiers:
    """Which parts are on: a learned soft mask (else a hard one), predicted modalities, weights by capability."""

    soft: bool = True
    predict: bool = True
    weigh: bool = True


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of HEADS heads over [B, T, H] with one bias per key [B, T] added to the logits."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5 + bias[:, None, None]  # [B, heads, T, T]
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def hard(present: Tensor) -> Tensor:
    """Bias that hides missing keys; none where all are missing, so that nothing becomes nan."""
    return torch.where(present | ~present.any(-1, keepdim=True), 0.0, -torch.inf)


class Inside(nn.Module):
    """Intra-Attn: a modality's frames [B, T, d], some missing, become one vector [B, H]."""

    def __init__(self, width: int, frames: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden)
        self.missing = nn.Parameter(0.02 * torch.randn(hidden))  # u_m stands in for a missing frame
        self.place = nn.Parameter(0.02 * torch.randn(frames, hidden))
        self.theta = nn.Parameter(torch.zeros(()))
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x: Tensor, present: Tensor, soft: bool = True) -> Tensor:
        there = present[..., None]
        h = torch.where(there, self.project(torch.where(there, x, 0.0)), self.missing) + self.place[: x.shape[1]]
        bias = self.bias(present) if soft else hard(present)
        h = h + self.out(attend(*self.qkv(self.norms[0](h)).chunk(3, -1), bias))
        return (h + self.mlp(self.norms[1](h))).mean(1)

    def bias(self, present: Tensor) -> Tensor:
        """-lambda_m (1 - F), lambda_m = softplus(theta_m) r_m: the less is left, the weaker the suppression."""
        return -functional.softplus(self.theta) * present.float().mean(1, keepdim=True) * (~present).float()


class T2DR(nn.Module):
    """Sentiment from what is present. `forward` gives it with the weights w [B, M]; `losses` trains it."""

    def __init__(self, widths: dict[str, int], frames: dict[str, int], hidden: int, tiers: Tiers) -> None:
        super().__init__()
        self.tiers, self.names, half = tiers, tuple(widths), hidden // 2
        self.inside = nn.ModuleDict({m: Inside(d, frames[m], hidden) for m, d in widths.items()})
        self.shared = nn.ModuleDict({m: nn.Linear(hidden, half) for m in widths})
        self.private = nn.ModuleDict({m: nn.Linear(hidden, half) for m in widths})
        self.prior = nn.ParameterDict({m: nn.Parameter(torch.zeros(half)) for m in widths})
        self.guess = nn.ModuleDict({m: _mlp(half, hidden, half) for m in widths})
        self.decode = nn.ModuleDict({m: _mlp(2 * half, hidden, hidden) for m in widths})
        self.heads = nn.ModuleDict({m: nn.Linear(hidden, 1) for m in widths})
        self.capability = _mlp(hidden + 2, hidden, 1)
        self.qkv, self.norm = nn.Linear(hidden, 3 * hidden), nn.LayerNorm(hidden)
        self.regress = _mlp(hidden, hidden, 1)

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor]:
        s = self.read(samples)
        present = _presence(samples)
        filled, _ = self.fill(s, present)
        return self.fuse(filled, present, _shares(samples))

    def read(self, samples: Samples) -> Tensor:
        """Tier one: s [B, M, H]."""
        parts = [self.inside[m](samples.features[m], samples.present[m], self.tiers.soft) for m in self.names]
        return torch.stack(parts, 1)

    def fill(self, s: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """SFP: vectors with those of absent modalities predicted, and the predicted shared parts [B, M, H/2]."""
        z = torch.stack([self.shared[m](s[:, i]) for i, m in enumerate(self.names)], 1)
        held = present[..., None].to(s.dtype)
        mean = (z * held).sum(1) / held.sum(1)
        guessed = torch.stack([self.guess[m](mean) for m in self.names], 1)
        rebuilt = [
            self.decode[m](torch.cat([guessed[:, i], self.prior[m].expand_as(mean)], -1))
            for i, m in enumerate(self.names)
        ]
        return torch.where(present[..., None], s, torch.stack(rebuilt, 1)), guessed

    def fuse(self, s: Tensor, present: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Tier two: CAS gives w = softmax(c), and Inter-Attn reads keys with log w added."""
        counted = present if not self.tiers.predict else torch.ones_like(present)
        score = self.capability(torch.cat([s, share[..., None], present[..., None].to(s.dtype)], -1))[..., 0]
        score = score if self.tiers.weigh else torch.zeros_like(score)
        log_w = score.masked_fill(~counted, -torch.inf).log_softmax(-1)  # [B, M]
        mixed = s + attend(*self.qkv(self.norm(s)).chunk(3, -1), log_w)
        w = log_w.exp()
        return self.regress((w[..., None] * mixed).sum(1))[:, 0], log_w

    def losses(self, whole: Samples, samples: Samples) -> Tensor:
        """`samples` is `whole` with modalities dropped: those are what SFP learns to predict."""
        a, b, c, d = 1.0, 0.1, 0.01, 0.1
        s, present = self.read(whole), _presence(samples)
        known = _presence(whole)
        filled, guessed = self.fill(s, present)
        said, log_w = self.fuse(filled, present, _shares(samples))
        z = torch.stack([self.shared[m](s[:, i]) for i, m in enumerate(self.names)], 1)
        p = torch.stack([self.private[m](s[:, i]) for i, m in enumerate(self.names)], 1)
        gone = (known & ~present).to(s.dtype)
        sfp = ((guessed - z.detach()).square().mean(-1) * gone).sum() / gone.sum().clamp(min=1)
        pairs = known[:, :, None] & known[:, None]
        aligned = ((z[:, :, None] - z[:, None]).square().mean(-1) * pairs).sum() / pairs.sum()
        apart = (torch.einsum("bmi,bmj->mij", z, p) / len(s)).square().mean()
        alone = torch.stack([self.heads[m](filled[:, i])[:, 0] for i, m in enumerate(self.names)], 1)
        error = (alone - samples.target[:, None]).abs()
        counted = log_w.isfinite()
        wanted = (-error.detach() / 0.5).masked_fill(~counted, -torch.inf).softmax(-1)
        capable = (wanted * (wanted.clamp(min=1e-8).log() - log_w.masked_fill(~counted, 0.0))).sum(-1).mean()
        main = (said - samples.target).abs().mean()
        return main + a * sfp + b * aligned + c * apart + d * (capable + error.mean())


class LateFusion(nn.Module):
    """The mean of what each present modality says by itself."""

    def __init__(self, widths: dict[str, int], frames: dict[str, int], hidden: int) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({m: Inside(d, frames[m], hidden) for m, d in widths.items()})
        self.heads = nn.ModuleDict({m: _mlp(hidden, hidden, 1) for m in widths})

    def alone(self, samples: Samples) -> Tensor:
        parts = [self.heads[m](side(samples.features[m], samples.present[m], False)) for m, side in self.inside.items()]
        return torch.cat(parts, 1)  # [B, M]

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor]:
        present = _presence(samples).float()
        w = present / present.sum(1, keepdim=True)
        return (self.alone(samples) * w).sum(1), w.log()

    def losses(self, whole: Samples, samples: Samples) -> Tensor:
        present = _presence(samples)
        return ((self.alone(samples) - samples.target[:, None]).abs() * present).sum() / present.sum()


class Filled(nn.Module):
    """Plain attention on filled-in input, then attention between modalities: `mean` of what is there, or zeros."""

    def __init__(self, widths: dict[str, int], frames: dict[str, int], hidden: int, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.inside = nn.ModuleDict({m: Inside(d, frames[m], hidden) for m, d in widths.items()})
        self.qkv, self.norm = nn.Linear(hidden, 3 * hidden), nn.LayerNorm(hidden)
        self.regress = _mlp(hidden * len(widths), hidden, 1)

    def forward(self, samples: Samples) -> tuple[Tensor, Tensor]:
        _presence(samples)
        parts = []
        for m, side in self.inside.items():
            there = samples.present[m][..., None]
            x = torch.where(there, samples.features[m], 0.0)
            if (
                self.mean
            ):  # an absent modality has no mean of its own: features are centred, so zero is that of training
                x = torch.where(there, x, x.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1))
            parts.append(side(x, torch.ones_like(samples.present[m])))
        s = torch.stack(parts, 1)
        bias = s.new_zeros(s.shape[:2])
        return self.regress((s + attend(*self.qkv(self.norm(s)).chunk(3, -1), bias)).flatten(1))[:, 0], bias

    def losses(self, whole: Samples, samples: Samples) -> Tensor:
        return (self(samples)[0] - samples.target).abs().mean()


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def _presence(samples: Samples) -> Tensor:
    """Which modalities are there, [B, M]. Raises ElviError for a sample with none."""
    present = torch.stack([p.any(1) for p in samples.present.values()], 1)
    if not present.any(1).all():
        raise ElviError("A sentiment was asked for of a sample without any modality: give at least one frame of one.")
    return present


def _shares(samples: Samples) -> Tensor:
    """r: share of present frames, [B, M]."""
    return torch.stack([p.float().mean(1) for p in samples.present.values()], 1)
