"""The small trained models that ELVI ships, so nothing needs to be downloaded: their names and folders."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
TEXT_DRAFTERS = {  # shipped language models with a tokenizer of their own, by the target whose words they learnt
    "tiny-qwen": "tiny-drafter-bpe",
    "tiny-llava": "tiny-drafter-bpe",
    "smollm2-135m": "smollm2-drafter",
}


def names() -> tuple[str, ...]:
    """Names of the shipped models, in alphabetical order."""
    return tuple(sorted(folder.parent.name for folder in WEIGHTS.glob("*/config.json")))


def path(name: str) -> Path:
    """Folder of a shipped model (weights, configuration, tokenizer, model card). Raises ElviError for another name."""
    from elvi.errors import ElviError

    if name not in names():
        raise ElviError(f"There is no shipped model {name!r}: take one of {', '.join(names())}.")
    return WEIGHTS / name
