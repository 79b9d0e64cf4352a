"""ELVI: efficient large vision-language inference, a living survey that runs.

    import elvi

    model = elvi.load("tiny-qwen")
    clip = elvi.sample(7)
    plan = elvi.Plan(elvi.technique("visionzip")(keep_ratio=0.3), elvi.technique("fastv")(keep_ratio=0.5))
    out = elvi.generate(model, clip, plan=plan, max_new_tokens=64)
    out.text, out.report

Importing this package is cheap: torch is imported when the first of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elvi.core.generate import Output, generate
    from elvi.core.plan import Plan
    from elvi.core.stream import Stream
    from elvi.discover import list_techniques, technique
    from elvi.errors import BudgetError, ElviError, FitError, PlanError
    from elvi.families.load import load
    from elvi.media import Clip, read, read_images, read_video
    from elvi.tiny.data import sample

__version__ = "0.1.0"

_HOME = {
    "BudgetError": "elvi.errors",
    "Clip": "elvi.media",
    "ElviError": "elvi.errors",
    "FitError": "elvi.errors",
    "Output": "elvi.core.generate",
    "Plan": "elvi.core.plan",
    "PlanError": "elvi.errors",
    "Stream": "elvi.core.stream",
    "generate": "elvi.core.generate",
    "list_techniques": "elvi.discover",
    "load": "elvi.families.load",
    "read": "elvi.media",
    "read_images": "elvi.media",
    "read_video": "elvi.media",
    "sample": "elvi.tiny.data",
    "technique": "elvi.discover",
}
__all__ = [
    "BudgetError",
    "Clip",
    "ElviError",
    "FitError",
    "Output",
    "Plan",
    "PlanError",
    "Stream",
    "generate",
    "list_techniques",
    "load",
    "read",
    "read_images",
    "read_video",
    "sample",
    "technique",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'elvi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
