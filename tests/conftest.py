"""Fixtures that every test may ask for."""

from __future__ import annotations

import pytest
import torch


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] + ([accelerator.type] if accelerator is not None else [])


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU always, and an accelerator when there is one."""
    return torch.device(request.param)
