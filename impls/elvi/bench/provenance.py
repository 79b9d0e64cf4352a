"""Where a measurement comes from: machine, versions, commit, model."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import elvi

if TYPE_CHECKING:
    from elvi.families.family import Family

PACKAGES = ("torch", "transformers", "numba")


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, under an id that names results folders; `threads` is how many the measurement uses."""
    cpu, cores = _cpu(), os.cpu_count() or 1
    accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    return {
        "id": _slug(accelerator) if accelerator else f"cpu-{cores}x-{_slug(cpu)}",
        "cpu": cpu,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "accelerator": accelerator,
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"elvi": elvi.__version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The git commit of this code, with `-dirty` when files differ from it; None for an installed package."""
    described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _git(*described) if _git("ls-files", __file__) else None


def _git(*arguments: str) -> str | None:
    """What git prints in this folder; None when it prints nothing, fails, or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def model(family: Family) -> dict[str, Any]:
    """The model as it is loaded: size, precision, device, and the attention kernel underneath ours."""
    return {
        "name": family.name,
        "parameters": sum(parameter.numel() for parameter in family.model.parameters()),
        "layers": family.num_layers,
        "dtype": str(family.dtype).removeprefix("torch."),
        "device": family.device.type,
        "attention": family.attention_kernel,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _slug(name: str) -> str:
    plain = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
