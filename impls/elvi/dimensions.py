"""What an estimate is made from: dimensions of models and machines, read from the taxonomy, and a request."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from elvi.errors import BudgetError, FitError, check_range

PLACES = (Path(__file__).parent / "taxonomy", Path(__file__).parents[2] / "taxonomy")  # installed, in a clone
MOST = 10**9
BITS = (16, 8, 4, 2)


@dataclass(frozen=True)
class Vision:
    """A tower and its adapter; widths in elements, `patch`, `side` and `window` in pixels (taxonomy/models.yaml)."""

    layers: int
    hidden: int
    intermediate: int
    patch: int
    spatial_merge: int
    adapter: str
    side: int | None = None
    temporal_patch: int = 1
    gated: bool = False
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    deepstack: int | None = None
    frame_pool: int = 1


@dataclass(frozen=True)
class Model:
    """A decoder with grouped-query attention, a gated MLP and, unless it is a text model, a vision tower."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    vision: Vision | None = None


@dataclass(frozen=True)
class Machine:
    """Dense 16-bit peak [TFLOP/s], bandwidth [GB/s], memory [GB] or None."""

    peak_tflops: float
    bandwidth_gb_s: float
    memory_gb: float | None = None


@dataclass(frozen=True)
class Request:
    """`batch` equal requests at once, each with a clip of `frames`, or with `images` instead, of height x width pixels.

    `visual` replaces both by a number of visual tokens, whose encoding is then left out. The share `keep` of the visual
    tokens enters the language model, `layer_keep` of that is left from `layer` on, and `cache_keep` of what is cached
    when decoding starts. Raises BudgetError.
    """

    frames: int = 8
    images: int = 0
    height: int = 448
    width: int = 448
    visual: int | None = None
    text: int = 32
    new: int = 64
    batch: int = 1
    kv_bits: int = 16
    keep: float = 1.0
    layer: int = 0
    layer_keep: float = 1.0
    cache_keep: float = 1.0

    def __post_init__(self) -> None:
        for field in ("frames", "images", "text", "layer", *(["visual"] if self.visual is not None else [])):
            check_range(self, field, 0, MOST)
        for field in ("height", "width", "new", "batch"):
            check_range(self, field, 1, MOST)
        for field in ("keep", "layer_keep", "cache_keep"):
            check_range(self, field, 0, 1, open_low=True)
        if self.kv_bits not in BITS:
            raise BudgetError(f"A cache of {self.kv_bits} bits was asked for, which is not counted: use 16, 8, 4 or 2.")


def model_from(facts: dict[str, Any]) -> Model:
    """A model from its entry in taxonomy/models.yaml."""
    known, tower = _known(Model, facts), facts.get("vision")
    known["vision"] = Vision(**_known(Vision, tower)) if tower else None
    return Model(**known)


def machine_from(facts: dict[str, Any]) -> Machine:
    """A machine from its entry in taxonomy/hardware.yaml. Raises FitError where no 16-bit peak is known."""
    if not facts.get("peak_tflops"):
        raise FitError(f"{facts['title']} has no published 16-bit peak to bound compute with: name other hardware.")
    return Machine(**_known(Machine, facts))


def entry(kind: str, name: str) -> dict[str, Any]:
    """One entry of the vocabulary `models` or `hardware`. Raises FitError with the nearest names."""
    known = vocabulary(kind)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise FitError(f"There is no `{name}` in taxonomy/{kind}.yaml: use {', '.join(near)}.")
    return known[name]


def vocabulary(kind: str) -> dict[str, dict[str, Any]]:
    """All entries of taxonomy/<kind>.yaml by id."""
    import yaml

    path = next(place / f"{kind}.yaml" for place in PLACES if (place / f"{kind}.yaml").is_file())
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _known(cls: type[Any], facts: dict[str, Any]) -> dict[str, Any]:
    return {field.name: facts[field.name] for field in fields(cls) if field.name in facts}
