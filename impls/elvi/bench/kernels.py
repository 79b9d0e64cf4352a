"""Compiled loops next to their twins in torch, on what techniques gave them in a real run.

A module that compiles a loop keeps the same choice in torch beside it, as `<loop>_reference` with the same arguments.
"""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba.core.dispatcher import Dispatcher

from elvi.bench.ratios.common import clocked

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Kernel:
    """A compiled loop, its twin, and the largest arguments that a run gave it."""

    module: str
    loop: str
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        """For example `cluster-scan-denser`."""
        return f"{self.module.rpartition('.')[2]}-{self.loop}".replace("_", "-")

    @property
    def shapes(self) -> str:
        return ", ".join(" x ".join(f"{n:,}" for n in a.shape) for a in self.arguments if isinstance(a, np.ndarray))

    def speedups(self, repeats: int) -> list[float]:
        """Seconds of the twin / seconds of the compiled loop, in turns; both must find the same."""
        module, found = sys.modules[self.module], []
        given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in self.arguments]
        for _ in range(repeats):
            plain, expected = clocked(lambda: getattr(module, f"{self.loop}_reference")(*given))
            ours, chosen = clocked(lambda: getattr(module, self.loop)(*self.arguments))
            assert np.array_equal(chosen, expected.numpy()), f"{self.name} and its twin differ"
            found.append(plain / ours)
        return found


@contextmanager
def recorded() -> Iterator[dict[str, Kernel]]:
    """Kernels by name, filled as compiled loops are called; only those of modules that are loaded by now."""
    seen: dict[str, Kernel] = {}
    loops = [*_loops()]
    for module, loop, compiled in loops:
        setattr(module, loop, _recorder(seen, module.__name__, loop, compiled))
    try:
        yield seen
    finally:
        for module, loop, compiled in loops:
            setattr(module, loop, compiled)


def _loops() -> Iterator[tuple[Any, str, Dispatcher]]:
    for name, module in sorted(sys.modules.items()):
        if name.startswith("elvi."):
            for loop, compiled in sorted(vars(module).items()):
                if isinstance(compiled, Dispatcher) and hasattr(module, f"{loop}_reference"):
                    yield module, loop, compiled


def _recorder(seen: dict[str, Kernel], module: str, loop: str, compiled: Dispatcher) -> Any:
    @functools.wraps(compiled)
    def call(*arguments: Any) -> Any:
        kernel = Kernel(module, loop, arguments)
        if kernel.name not in seen or arguments[0].size > seen[kernel.name].arguments[0].size:
            seen[kernel.name] = kernel
        return compiled(*arguments)

    return call
