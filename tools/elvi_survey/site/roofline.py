"""The roofline calculator, and the intensities of the home page: by the formulas of `elvi estimate`."""

import json
from dataclasses import asdict, dataclass
from math import floor, log10
from typing import Any

from markupsafe import Markup, escape

from elvi.dimensions import Machine, Model, Request, machine_from, model_from
from elvi.roofline import Estimate, Stage, estimate
from elvi_survey.schema import Catalog
from elvi_survey.site.figures import GLYPHS

MODEL, MACHINE, REQUEST = "qwen2-5-vl-7b", "a100-80gb-sxm", Request()
URL = "roofline/"
STAGE_OF = {"encode": "encode", "adapter": "encode", "prefill": "prefill", "decode": "decode"}
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LABELS = {"encode": (0, -16), "adapter": (0, 38), "prefill": (0, 22), "decode": (34, 16)}  # of a mark, from its middle


@dataclass(frozen=True)
class Slider:
    """A control with numbers: the field of a request it sets, in `unit`."""

    name: str
    label: str
    low: int
    high: int
    step: int
    value: int
    unit: str = ""


SLIDERS = (
    Slider("frames", "Frames", 1, 128, 1, REQUEST.frames),
    Slider("side", "Frame side", 224, 1344, 28, REQUEST.height, " px"),
    Slider("text", "Text tokens", 1, 1024, 1, REQUEST.text),
    Slider("new", "New tokens", 1, 1024, 1, REQUEST.new),
    Slider("batch", "Requests at once", 1, 128, 1, REQUEST.batch),
    Slider("keep", "Visual tokens that enter", 1, 100, 1, 100, " %"),
    Slider("layer", "Pruning from layer", 0, 80, 1, REQUEST.layer),
    Slider("layer_keep", "Of those, left from there on", 1, 100, 1, 100, " %"),
    Slider("cache_keep", "Of the cached, left for decoding", 1, 100, 1, 100, " %"),
)


@dataclass(frozen=True)
class Choices:
    """Models with a tower and machines with a peak, by id, as the formulas take them; titles by id."""

    models: dict[str, Model]
    machines: dict[str, Machine]
    titles: dict[str, str]

    def data(self) -> Markup:
        """The same for the script, safe inside its element."""
        both = {"models": self.models, "machines": self.machines}
        plain = {kind: {key: asdict(value) for key, value in found.items()} for kind, found in both.items()}
        return Markup(json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c"))


def choices(catalog: Catalog) -> Choices | None:
    """What can be computed; None where the catalog lacks the model or machine that the figures show."""
    if MODEL not in catalog.models or MACHINE not in catalog.hardware:
        return None
    models = {key: model_from(value.model_dump()) for key, value in catalog.models.items() if value.vision}
    machines = {key: machine_from(value.model_dump()) for key, value in catalog.hardware.items() if value.peak_tflops}
    titles = {key: value.title for found in (catalog.models, catalog.hardware) for key, value in found.items()}
    return Choices(models, machines, titles)


def context(found: Choices) -> dict[str, Any]:
    """What the template of the calculator is told."""
    machine = found.machines[MACHINE]
    result = estimate(found.models[MODEL], machine, REQUEST)
    return {
        "found": found,
        "result": result,
        "words": words(result, machine, REQUEST),
        "plot": plot(result, machine),
        "sliders": SLIDERS,
        "stage_of": STAGE_OF,
        "chosen": (MODEL, MACHINE),
    }


def home(catalog: Catalog) -> dict[str, Any]:
    """What the home page is told: intensity by stage, and the picture of the axis; empty where nothing is computed."""
    found = choices(catalog)
    if found is None:
        return {"intensity": {}, "axis": None}
    result = estimate(found.models[MODEL], found.machines[MACHINE], REQUEST)
    return {
        "intensity": {stage.name: digits(stage.intensity) for stage in result.stages},
        "axis": axis(result),
        "ridge": digits(result.ridge),
        "machine": found.titles[MACHINE],
    }


def axis(found: Estimate) -> Markup:
    """The stages of the lifecycle on one logarithmic axis, around the ridge; x in %, so that text keeps its size."""
    ridge = _percent(found.ridge)
    drawn = [
        f'<rect class="f-rule" x="0" y="55" width="{ridge:.2f}%" height="2"/>',
        f'<rect class="f-edge" x="{ridge:.2f}%" y="55" width="{100 - ridge:.2f}%" height="2"/>',
        f'<line class="l-ink" x1="{ridge:.2f}%" x2="{ridge:.2f}%" y1="20" y2="112" stroke-dasharray="2 3"/>',
        f'<text class="end" x="{ridge - 1:.2f}%" y="110">memory-bound</text>',
        f'<text x="{ridge + 1:.2f}%" y="110">compute-bound</text>',
    ]
    shown = [stage for stage in found.stages if stage.name in GLYPHS]
    for stage in shown:
        x, y = _percent(stage.intensity), 86 if stage.name == "prefill" else 34  # encoding and prefilling may coincide
        drawn.append(
            f'<g data-stage="{stage.name}"><svg x="{x:.2f}%" y="56" overflow="visible"><path class="f-mark" '
            f'transform="translate(-7 -7) scale(1.17)" d="{GLYPHS[stage.name]}"/></svg><text class="mid" x="{x:.2f}%" '
            f'y="{y}"><tspan class="t-s">{stage.name}</tspan> {digits(stage.intensity)}</text></g>'
        )
    said = ", ".join(f"{stage.name} {digits(stage.intensity)}" for stage in shown)
    label = f"FLOP per byte on a logarithmic axis: {said}; ridge {digits(found.ridge)}"
    return Markup(f'<svg width="100%" height="116" role="img" aria-label="{label}">{"".join(drawn)}</svg>')


def _percent(intensity: float) -> float:
    """Place on an axis from 0.1 to 10,000 FLOP per byte, which leaves room for the words at both ends."""
    return 20 * (log10(min(max(intensity, 0.1), 1e4)) + 1)


def digits(value: float) -> str:
    """Three digits, or all of a whole part that has more."""
    return f"{floor(value + 0.5):,}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def time(seconds: float) -> str:
    return f"{digits(seconds)} s" if seconds >= 1 else f"{digits(seconds * 1e3)} ms"


def scaled(value: float, unit: str) -> str:
    scale, prefix = next((each for each in PREFIXES if value >= each[0]), (1, ""))
    return f"{digits(value / scale)} {prefix}{unit}"


def words(found: Estimate, machine: Machine, request: Request) -> dict[str, str]:
    """Every text of the calculator by the name of its place; `words` of docs/look/roofline.js says the same."""
    made, entering, late = found.visual
    pruned = "" if late == entering else f", {late:,} from layer {request.layer}"
    room = "" if machine.memory_gb is None else f" of {machine.memory_gb:,g} GB"
    said = {
        "ttft": time(found.ttft),
        "tpot": "–" if found.tpot is None else time(found.tpot),
        "total": time(found.total),
        "kv": scaled(found.kv_bytes, "B"),
        "token": f"{found.kv_bytes_per_token:,g} B per token",
        "ridge": f"ridge {digits(found.ridge)}",
        "batch": "one request" if request.batch == 1 else f"{request.batch:,} requests at once",
        "visual": f"{entering:,} of {made:,} visual tokens{pruned}",
        "held": f"Weights and cache take {scaled(found.held_bytes, 'B')}{room}"
        + (": this machine cannot hold them." if found.fits is False else "."),
    }
    for stage in found.stages:
        said |= {
            f"flops-{stage.name}": scaled(stage.flops, "FLOP"),
            f"bytes-{stage.name}": scaled(stage.bytes, "B"),
            f"intensity-{stage.name}": digits(stage.intensity),
            f"time-{stage.name}": time(stage.seconds),
            f"bound-{stage.name}": stage.bound if stage.flops else "–",
            f"part-{stage.name}": time(stage.seconds),
        }
    return said


def x_of(intensity: float) -> float:
    return 44 + (log10(min(max(intensity, 0.1), 1e5)) + 1) / 6 * 310


def y_of(tflops: float) -> float:
    return 226 - (log10(max(tflops, 0.1)) + 1) / 5 * 204


def plot(found: Estimate, machine: Machine) -> Markup:
    """The roof of a machine on two logarithmic axes, with a mark for each stage."""
    drawn = []
    for tflops in (0.1, 1, 10, 100, 1000):
        y = y_of(tflops)
        drawn.append(
            f'<path class="l-rule" d="M44,{y:g}H354"/><text class="end" x="38" y="{y + 4:g}">{tflops:,g}</text>'
        )
    for intensity in (1, 10, 100, 1000, 10_000):
        x = x_of(intensity)
        drawn.append(
            f'<path class="l-rule" d="M{x:g},22V226"/><text class="mid" x="{x:g}" y="243">{intensity:,}</text>'
        )
    slope, top = y_of(0.1 * machine.bandwidth_gb_s / 1e3), y_of(machine.peak_tflops)
    drawn.append(f'<path id="roof" class="l-ink" stroke-width="1.8" d="M44,{slope}L{x_of(found.ridge)},{top}H354"/>')
    drawn.append(
        f'<g id="ridge" transform="translate({x_of(found.ridge)},{top})"><path class="l-edge" stroke-dasharray="2 3" '
        f'd="M0,0V140"/><text class="end" x="-6" y="-6" data-out="ridge">ridge {digits(found.ridge)}</text></g>'
    )
    drawn += [_mark(stage, machine) for stage in found.stages]
    axes = '<text class="end" x="354" y="262">FLOP per byte</text><text x="0" y="12">TFLOP/s</text>'
    label = "Attainable TFLOP per second against FLOP per byte, one mark for each stage; the table has the numbers"
    return Markup(f'<svg viewBox="0 0 384 266" role="img" aria-label="{label}">{"".join(drawn)}{axes}</svg>')


def _mark(stage: Stage, machine: Machine) -> str:
    """The shape of a stage where it meets the roof; the adapter belongs to encoding and is hollow."""
    reached = min(machine.peak_tflops, stage.intensity * machine.bandwidth_gb_s / 1e3)
    x, y = LABELS[stage.name]
    kind = "l-mark" if stage.name == "adapter" else "f-mark"
    return (
        f'<g id="at-{stage.name}" data-stage="{STAGE_OF[stage.name]}" '
        f'transform="translate({x_of(stage.intensity)},{y_of(reached)})"{"" if stage.flops else " hidden"}>'
        f'<path class="{kind}" d="{GLYPHS[STAGE_OF[stage.name]]}" transform="translate(-7,-7) scale(1.17)"/>'
        f'<text class="t-s mid" x="{x}" y="{y}">{escape(stage.name)}</text></g>'
    )
