"""`elvi estimate`: the roofline bound of a request, as one object or as a table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elvi import terminal
from elvi.dimensions import Request, entry, machine_from, model_from
from elvi.roofline import estimate

if TYPE_CHECKING:
    from rich.console import Group

SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
OPTIONS = {
    "--frames": (int, "frames", "frames of a video (default 8)"),
    "--images": (int, "images", "pictures, instead of frames"),
    "--visual-tokens": (int, "visual", "visual tokens, instead of both; the encoder is then left out"),
    "--text-tokens": (int, "text", "text tokens (default 32)"),
    "--new-tokens": (int, "new", "new tokens (default 64)"),
    "--batch": (int, "batch", "equal requests at once (default 1)"),
    "--kv-bits": (int, "kv_bits", "bits of a cached value: 16 (default), 8, 4 or 2"),
    "--keep": (float, "keep", "share of the visual tokens that enters the language model"),
    "--layer": (int, "layer", "layer from which on --layer-keep holds (default 0)"),
    "--layer-keep": (float, "layer_keep", "share of those that is left from --layer on"),
    "--cache-keep": (float, "cache_keep", "share of the cached ones that is left for decoding"),
}


def add_parser(commands: Any) -> None:
    """The command `estimate` of the command line."""
    command = commands.add_parser("estimate", help="the least time of each stage of a request, by the roofline")
    command.add_argument("--model", metavar="ID", default="qwen2-5-vl-7b", help="an id of taxonomy/models.yaml")
    command.add_argument("--hardware", metavar="ID", default="a100-80gb-sxm", help="an id of taxonomy/hardware.yaml")
    command.add_argument("--size", metavar="WxH", type=_size, default=(448, 448), help="of a frame (default 448x448)")
    for flag, (kind, field, words) in OPTIONS.items():
        command.add_argument(flag, dest=field, metavar="N", type=kind, help=words)
    command.add_argument("--json", action="store_true", help="print one object")
    command.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Print the bound of the request that the options describe."""
    width, height = options.size
    given = {field: getattr(options, field) for _, field, _ in OPTIONS.values()}
    asked = {field: value for field, value in given.items() if value is not None}
    found = bound(options.model, options.hardware, Request(height=height, width=width, **asked))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        terminal.echo(table(found))


def bound(model: str, hardware: str, request: Request) -> dict[str, Any]:
    """What `--json` prints, for ids of the taxonomy.

    Keys: model, hardware, request (fields of `elvi.dimensions.Request`), visual (made, entering, late), stages (name,
    flops, bytes, intensity, seconds, bound), ridge, ttft_s, tpot_s (null without a second token), total_s,
    kv_bytes_per_token, kv_bytes, held_bytes, fits. Raises FitError or BudgetError.
    """
    found = estimate(model_from(entry("models", model)), machine_from(entry("hardware", hardware)), request)
    return {
        "model": model,
        "hardware": hardware,
        "request": asdict(request),
        "visual": dict(zip(("made", "entering", "late"), found.visual)),
        "stages": [asdict(stage) | {"intensity": stage.intensity} for stage in found.stages],
        "ridge": found.ridge,
        "ttft_s": found.ttft,
        "tpot_s": found.tpot,
        "total_s": found.total,
        **{key: getattr(found, key) for key in ("kv_bytes_per_token", "kv_bytes", "held_bytes", "fits")},
    }


def table(found: dict[str, Any]) -> Group:
    """The same for people."""
    from rich.console import Group
    from rich.table import Table

    stages, rest = Table(box=None, pad_edge=False), Table(box=None, pad_edge=False, show_header=False)
    stages.add_column("stage")
    for heading in ("FLOPs", "bytes", "FLOP/byte", "at least", "waits for"):
        stages.add_column(heading, justify="right")
    for stage in found["stages"]:
        cells = (_scaled(stage["flops"]), _scaled(stage["bytes"], "B"), f"{stage['intensity']:,.1f}")
        stages.add_row(stage["name"], *cells, seconds(stage["seconds"]), stage["bound"] if stage["flops"] else "-")
    made, entering, late = found["visual"].values()
    cut = f" from layer {found['request']['layer']} on" if late != entering else ""
    fits = {True: "", False: f", more than {found['hardware']} holds", None: ""}[found["fits"]]
    rest.add_row("visual tokens", f"{made:,} made, {entering:,} read" + (f", {late:,}{cut}" if cut else ""))
    rest.add_row("first token", f"{seconds(found['ttft_s'])} for a batch of {found['request']['batch']}")
    rest.add_row("per further token", "-" if found["tpot_s"] is None else seconds(found["tpot_s"]))
    rest.add_row("whole answer", seconds(found["total_s"]))
    rest.add_row("KV per token", f"{found['kv_bytes_per_token']:,.0f} B")
    rest.add_row("KV cache at the end", _scaled(found["kv_bytes"], "B"))
    rest.add_row("weights and cache", _scaled(found["held_bytes"], "B") + fits)
    rest.add_row("ridge", f"{found['ridge']:.1f} FLOP/byte")
    note = "Bounds from dimensions and data-sheet peaks: real kernels take longer."
    if len(found["stages"]) == 2 and made:
        note += " The encoder is left out: its work needs frames and their size."
    return Group(f"{found['model']} on {found['hardware']}", "", stages, "", rest, "", note)


def _scaled(value: float, unit: str = "") -> str:
    scale, prefix = next((each for each in SCALES if value >= each[0]), SCALES[-1])
    return f"{value / scale:.3g} {prefix}{unit}".rstrip()


def seconds(value: float) -> str:
    """Three digits, in seconds or milliseconds."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _size(text: str) -> tuple[int, int]:
    width, by, height = text.partition("x")
    if not (by and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT in pixels, such as 1280x720")
    return int(width), int(height)
