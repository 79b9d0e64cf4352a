"""Prefill and selection of a text prompt next to NVIDIA/kvpress: same weights, tokens, method and ratio, on the CPU.

kvpress wants an older transformers, so it lives in an environment of its own (`make kvpress`), in which
`elvi.bench.kvpress_rival` waits to be asked for one prefill after another.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import elvi
from elvi.bench import kvpress_rival
from elvi.bench.measure import spread
from elvi.bench.ratios import common
from elvi.bench.speed import Ratio
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.snapkv import SnapKV
from elvi.errors import ElviError
from elvi.families.load import load
from elvi.tiny import tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elvi.families.family import Family

PYTHON = Path(__file__).parents[4] / ".venv-kvpress/bin/python"
LENGTH, TECHNIQUE = 4096, SnapKV(keep_ratio=0.25)  # tokens; a share that is the same number of rows on both sides
LLAMA = {
    "vocab_size": len(tokenizer.VOCABULARY),
    "max_position_embeddings": LENGTH,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def measured(family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    if not PYTHON.is_file():
        tell("left out: kvpress is compared in an environment of its own, which is not there: `make kvpress` makes it.")
        return
    try:
        found = prefill_and_selection()
    except ElviError as error:
        tell(f"left out: {error}")
    else:
        yield found


def prefill_and_selection() -> Ratio:
    """Seconds from a prompt to its first token and the cache cut by SnapKV, elvi / kvpress, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        ours, question = prepare(Path(folder))
        keys, token = read(ours, question)
        with Rival(Path(folder)) as rival:
            same = rows_in_common(keys, load_file(f"{folder}/kept.safetensors"))
            assert token == rival.hello["token"], "both read the same prompt with the same weights"
            assert same > 0.99, f"only {same:.1%} of the kept rows are the same, so this is not the same method"
            ratios = [common.clocked(lambda: read(ours, question))[0] / rival.seconds() for _ in range(common.REPEATS)]
            theirs = rival.hello["versions"]
    mine = {"elvi": elvi.__version__} | {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    sides = (", ".join(f"{name} {version}" for name, version in side.items()) for side in (mine, theirs))
    what = (
        f"seconds of prefill and selection on the CPU, {' / '.join(sides)}; {TECHNIQUE!r}, {same:.1%} of the kept rows "
        f"are the same; {LENGTH:,} tokens, Llama of {ours.num_layers} layers of width {ours.config.hidden_size}, "
        f"{ours.config.num_attention_heads} query and {ours.config.num_key_value_heads} key-value heads, "
        f"{ours.attention_kernel} kernel"
    )
    return Ratio("kvpress", what, spread(ratios), None, 0.8)


def prepare(folder: Path) -> tuple[Family, str]:
    """Save a random-weight Llama and the ids of a prompt for both sides; returns the model, loaded, and the prompt."""
    words = tokenizer.words("text")
    words.model_max_length = LENGTH
    words.save_pretrained(folder)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder)
    family = load(folder, device="cpu")
    length = LENGTH - len(family.template("", None))
    question = " ".join(np.random.default_rng(0).choice(tokenizer.WORDS, length))
    (folder / "ids.json").write_text(json.dumps(family.template(question, None)))
    return family, question


def read(family: Family, question: str) -> tuple[list[Tensor], int]:
    """Our side: the keys [H, b, d] that stay in every layer, and the first token."""
    run = Run(family, Plan(TECHNIQUE))
    with torch.inference_mode():
        _, logits = prefill(run, None, question)
    return [layer.read()[0] for layer in run.store.layers], int(logits.argmax())


def rows_in_common(ours: list[Tensor], theirs: dict[str, Tensor]) -> float:
    """Share of our keys that the other side has kept too (in any order), over layers and heads."""
    found = []
    for layer, keys in enumerate(ours):
        others = theirs[str(layer)]
        assert others.shape == keys.shape, "both sides keep the same number of rows"
        distance = torch.cdist(keys, others, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
        found.append((distance < 1e-3 * keys.norm(dim=-1)).float().mean())
    return float(torch.stack(found).mean())


class Rival:
    """kvpress in a process of its own, idle while nothing is asked. `hello`: its versions and its first token."""

    def __init__(self, folder: Path) -> None:
        arguments: dict[str, Any] = {
            "folder": str(folder),
            "threads": torch.get_num_threads(),
            "compression_ratio": 1 - TECHNIQUE.keep_ratio,
            "window_size": TECHNIQUE.window,
            "kernel_size": TECHNIQUE.kernel,
        }
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-I", kvpress_rival.__file__, json.dumps(arguments)],  # -I: nothing of ours is imported there
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        self.hello = self._heard()

    def __enter__(self) -> Rival:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its input, which ends it

    def seconds(self) -> float:
        """Seconds of one more prefill. Raises ElviError when the process has ended."""
        with suppress(BrokenPipeError):  # then there is no answer either
            print(file=self.process.stdin, flush=True)
        return self._heard()["seconds"]

    def _heard(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            last = (self.log.read_text().strip().splitlines() or ["no reason given"])[-1]
            raise ElviError(f"kvpress stopped ({last}): delete .venv-kvpress and run `make kvpress` anew.")
        return json.loads(line)
