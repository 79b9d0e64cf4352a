"""kvpress's side of a comparison, run by the Python of an environment of its own: it never imports elvi.

One argument, a JSON object: folder (the model, `ids.json` and what is written), threads, compression_ratio,
window_size, kernel_size. It reads the prompt once, saves the keys that stay as `kept.safetensors` (one tensor [H, b, d]
per layer) and prints {versions, token}; then, for every line it is sent, reads the prompt again and prints {seconds}.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main(arguments: dict[str, Any]) -> None:
    from kvpress import SnapKVPress
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, DynamicCache

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print
    torch.set_num_threads(arguments["threads"])
    folder = Path(arguments["folder"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    ids = torch.tensor([json.loads((folder / "ids.json").read_text())])
    press = SnapKVPress(**{field: arguments[field] for field in ("compression_ratio", "window_size", "kernel_size")})

    def read() -> tuple[float, int, Any]:
        """Seconds until the first token is known and the cache compressed, that token, and the cache."""
        start = time.perf_counter()
        cache = DynamicCache()
        with torch.inference_mode(), press(model):
            token = int(model(ids, past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax())
        return time.perf_counter() - start, token, cache

    _, token, cache = read()
    save_file({str(i): layer.keys[0].clone() for i, layer in enumerate(cache.layers)}, folder / "kept.safetensors")
    versions = {name: importlib.metadata.version(name) for name in ("kvpress", "transformers", "torch")}
    print(json.dumps({"versions": versions, "token": token}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": read()[0]}), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
