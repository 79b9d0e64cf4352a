"""Llama and models of its shape, text only (SmolLM2, Qwen2, Mistral, ...)."""

from __future__ import annotations

from typing import Any

from elvi.core.facts import Fact
from elvi.families.family import Family


class Llama(Family):
    """LlamaForCausalLM and the other causal language models whose text model has the same parts."""

    model_types = ("llama", "qwen2", "mistral")
    facts = Family.facts - {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS}

    @property
    def text(self) -> Any:
        return self.model.model
