"""Retrain every shipped tiny model: `python -m elvi.tiny.train [--only NAME …] [--out DIR] [--seed 0] [--resume]`.

Two chains run side by side, one core each, because the second needs nothing from the first. Every stage counts steps,
not time, and draws its batches from its name and step number, so a resumed run continues as if it had not been
interrupted and a repeated one ends with the same models up to floating-point order. Every model is written to its own
folder in DIR, as `elvi.tiny.evaluate` and `weights/` expect it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from elvi.errors import ElviError

if TYPE_CHECKING:
    from elvi.tiny.stages import Stage

CHAINS = (
    ("tower", "tiny-qwen", "tiny-qwen-drafter"),
    ("tiny-clip", "tiny-llava", "tiny-llava-drafter", "tiny-drafter-bpe"),
)
ASKED_FOR = ("smollm2-drafter",)  # learns from a model in a package of its own, so only `--only` trains it
CHECKPOINT_SECONDS = 120
WARM_UP = 100


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to 2 %."""
    return min(1.0, (step + 1) / WARM_UP) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def optimizers(stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices inside the blocks, AdamW for everything else (embeddings, norms, biases, heads)."""
    trained = [(name, p) for name, p in stage.module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and ".weight" in name and "embed" not in name]
    others = [p for name, p in trained if not any(p is matrix for matrix in matrices)]
    found = [torch.optim.AdamW(others, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)]
    if stage.muon:
        muon = torch.optim.Muon(matrices, lr=stage.muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        return [*found, muon]
    found[0].add_param_group({"params": matrices})
    return found


def fit(stage: Stage, checkpoint: Path, resume: bool) -> None:
    """Run a stage from its checkpoint (or from the start) to its last step, saving as it goes."""
    steppers = optimizers(stage)
    peaks = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    first = _restore(stage, steppers, checkpoint) if resume and checkpoint.exists() else 0
    saved, mean = time.monotonic(), 0.0
    with _progress() as progress:
        bar = progress.add_task(stage.name, total=stage.steps, completed=first, loss=0.0)
        for step in range(first, stage.steps):
            loss = stage.loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in stage.module.parameters() if p.requires_grad], 1.0)
            for stepper, peak in zip(steppers, peaks, strict=True):
                for group, value in zip(stepper.param_groups, peak, strict=True):
                    group["lr"] = value * rate(step, stage.steps)
                stepper.step()
                stepper.zero_grad()
            mean = loss.item() if mean == 0.0 else 0.97 * mean + 0.03 * loss.item()
            progress.update(bar, advance=1, loss=mean)
            if not progress.console.is_terminal and step % 25 == 0:
                print(f"{stage.name} step {step} loss {mean:.4f}", flush=True)
            if step + 1 == stage.steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _store(stage, steppers, checkpoint, step + 1)
                saved = time.monotonic()


def _progress() -> Progress:
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss)
    return Progress(*shown, TimeElapsedColumn(), TimeRemainingColumn(), disable=not sys.stdout.isatty())


def _store(stage: Stage, steppers: list[torch.optim.Optimizer], checkpoint: Path, step: int) -> None:
    """Write checkpoint and model; an interruption leaves the previous checkpoint whole."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "module": stage.module.state_dict(), "steppers": [s.state_dict() for s in steppers]}
    torch.save(state, checkpoint.with_suffix(".part"))
    checkpoint.with_suffix(".part").replace(checkpoint)
    stage.save()


def _restore(stage: Stage, steppers: list[torch.optim.Optimizer], checkpoint: Path) -> int:
    state = torch.load(checkpoint, weights_only=True)
    stage.module.load_state_dict(state["module"])
    for stepper, saved in zip(steppers, state["steppers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"]


def train(names: list[str], out: Path, seed: int, resume: bool) -> None:
    """Train the named models one after the other in this process, on one core."""
    from transformers.utils import logging

    from elvi.tiny.stages import build

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in names:
        torch.manual_seed(seed)
        fit(build(name, out, seed), out / "checkpoints" / f"{name}.pt", resume)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m elvi.tiny.train", description="Retrain the shipped tiny models.")
    every = [*(name for chain in CHAINS for name in chain), *ASKED_FOR]
    parser.add_argument("--only", nargs="+", choices=every, metavar="NAME", help=", ".join(every))
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --out")
    asked = parser.parse_args()
    if asked.only:
        try:
            train(asked.only, asked.out, asked.seed, asked.resume)
        except ElviError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    shared = ["--out", str(asked.out), "--seed", str(asked.seed), *(["--resume"] if asked.resume else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-m", "elvi.tiny.train", "--only", *chain, *shared], env=environment)
        for chain in CHAINS
    ]
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
