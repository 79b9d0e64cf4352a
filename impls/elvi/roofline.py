"""FLOPs, bytes and the least time of each stage of a request, from the dimensions of a model: plain arithmetic.

Source: the roofline model (Williams et al., 2009) and the cost model of the survey (arXiv:2604.05546, equations 2 to 6,
10, 11). A multiplication and an addition are 2 FLOPs; weights and activations have 16 bits; norms, biases, rotations
and activation functions are left out. Bytes: weights are read once a pass; every matrix product reads its input and
writes its output once; attention keeps its scores on the chip; keys and values are written once and read once a pass.
The least time of a stage is the larger of FLOPs over peak and bytes over bandwidth: a bound, not a prediction.

Where we differ from the survey: linear layers count besides attention; a head is as wide as the model says, not hidden
size over heads; decoding reads the weights once for the whole batch, so its intensity grows with the batch; N tokens
have N - 1 gaps; every intensity is computed. `docs/look/roofline.js` mirrors this file line by line.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor

from elvi.dimensions import Machine, Model, Request, Vision
from elvi.errors import BudgetError

WORD = 2  # bytes of a weight or an activation


@dataclass(frozen=True)
class Stage:
    """Work of one stage for the whole batch, and its least time [s]."""

    name: str
    flops: float
    bytes: float
    seconds: float
    bound: str

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Estimate:
    """Stages in order, and what follows; `tpot` is None where no token follows the first.

    visual: visual tokens of one request that are made, enter the language model, and are left from `layer` on.
    kv_bytes: of the batch's cache after the last step; held_bytes: those and all weights; fits: whether the machine
    holds these, None where its memory is unknown.
    """

    stages: tuple[Stage, ...]
    ridge: float
    visual: tuple[int, int, int]
    ttft: float
    tpot: float | None
    total: float
    kv_bytes_per_token: float
    kv_bytes: float
    held_bytes: float
    fits: bool | None


@dataclass(frozen=True)
class Grid:
    """Patches of a request: `slices` pictures of rows x columns patches, and the tokens that each becomes."""

    slices: int
    rows: int
    columns: int
    merged: int
    tokens: int

    @property
    def patches(self) -> int:
        return self.slices * self.rows * self.columns


def estimate(model: Model, machine: Machine, request: Request) -> Estimate:
    """The bound of every stage. Raises BudgetError where the request asks for what the model does not have."""
    if request.layer > model.layers:
        raise BudgetError(f"Layer {request.layer} was asked for, but the model has {model.layers}: use 0 to that.")
    work, made = [], request.visual or 0
    if model.vision and request.visual is None and request.frames + request.images:
        grid = grid_of(model.vision, request)
        made = grid.slices * grid.tokens
        work += [("encode", *encode(model.vision, grid, request)), ("adapter", *adapt(model, grid, request))]
    if not made + request.text:
        raise BudgetError("A request without a single token was asked for, and nothing reads it: give it text.")
    kept = share(made, request.keep)
    late = share(kept, request.layer_keep)
    work.append(("prefill", *prefill(model, request, kept, late)))
    work.append(("decode", *decode(model, request, kept, late)))
    stages = tuple(stage(machine, *each) for each in work)
    after, steps = stages[-1].seconds, request.new - 1
    ttft = sum(each.seconds for each in stages[:-1])
    # all rows of the prompt that are cached, and one for every new token but the last, which no step reads
    rows = sum(layers * (cached + steps) for layers, _, cached in parts(model, request, kept, late))
    kv = request.batch * rows * row_bytes(model, request)
    held = kv + WORD * (weights(model) + (tower(model.vision) + adapter(model) if model.vision else 0))
    return Estimate(
        stages,
        ridge=machine.peak_tflops * 1e3 / machine.bandwidth_gb_s,
        visual=(made, kept, late),
        ttft=ttft,
        tpot=after / steps if steps else None,
        total=ttft + after,
        kv_bytes_per_token=model.layers * row_bytes(model, request),
        kv_bytes=kv,
        held_bytes=held,
        fits=None if machine.memory_gb is None else held <= machine.memory_gb * 1e9,
    )


def stage(machine: Machine, name: str, flops: float, moved: float) -> Stage:
    """t >= max(F / peak, bytes / bandwidth): neither can be faster than the machine, and both may overlap."""
    compute, memory = flops / (machine.peak_tflops * 1e12), moved / (machine.bandwidth_gb_s * 1e9)
    return Stage(name, flops, moved, max(compute, memory), "compute" if compute >= memory else "memory")


def share(count: int, ratio: float) -> int:
    """Tokens left of `count`: the nearest integer, halves up, and at least one of any."""
    return max(1, floor(count * ratio + 0.5)) if count else 0


def grid_of(vision: Vision, request: Request) -> Grid:
    """Sides are rounded to whole merged patches, or are the tower's own; `temporal_patch` frames share a slice."""
    slices = request.images or ceil(request.frames / vision.temporal_patch)
    if vision.side:
        rows = columns = vision.side // vision.patch
    else:
        unit = vision.patch * vision.spatial_merge
        rows, columns = (max(1, floor(s / unit + 0.5)) * vision.spatial_merge for s in (request.height, request.width))
    high, wide = rows // vision.spatial_merge, columns // vision.spatial_merge
    pool = 1 if request.images else vision.frame_pool
    return Grid(slices, rows, columns, high * wide, ceil(high / pool) * ceil(wide / pool))


def squares(length: int, window: int) -> int:
    """Sum of the squares of the pieces when `length` is cut into windows: whole ones and what is left at the edge."""
    return length // window * window**2 + (length % window) ** 2


def encode(vision: Vision, grid: Grid, request: Request) -> tuple[float, float]:
    """(FLOPs, bytes): 2 per weight and patch, 4 d per pair of patches that attend (scores and mix are 2 d each)."""
    d, m, patches = vision.hidden, vision.intermediate, request.batch * grid.patches
    full = len(vision.full_layers) if vision.window else vision.layers
    # patches look at all of their picture, or at their window of it, whose pairs are a product over the two sides
    side = (vision.window or 0) // vision.patch or 1
    windowed = (vision.layers - full) * squares(grid.rows, side) * squares(grid.columns, side)
    pairs = request.batch * grid.slices * (full * (grid.rows * grid.columns) ** 2 + windowed)
    pixels = 3 * vision.patch**2 * vision.temporal_patch
    # a layer moves its input 4 times (two blocks, in and out), q, k, v and the mix 8 times, the inner row twice
    moved = pixels + d + vision.layers * (12 * d + 2 * m)
    return 2 * patches * tower(vision) + 4 * d * pairs, WORD * (tower(vision) + patches * moved)


def tower(vision: Vision) -> int:
    """Weights: patches to rows, then q, k, v, o of d x d and an MLP of 2 matrices, 3 if gated, in every layer."""
    d = vision.hidden
    layer = 4 * d * d + (3 if vision.gated else 2) * d * vision.intermediate
    return 3 * vision.patch**2 * vision.temporal_patch * d + vision.layers * layer


def adapter_pairs(model: Model) -> list[tuple[int, int]]:
    """(in, out) of each matrix of the adapter, from merged patches to the language model, again per deepstack level."""
    assert model.vision
    merged = model.vision.spatial_merge**2 * model.vision.hidden
    inner = {"merger": [merged], "mlp": [model.hidden], "linear": []}[model.vision.adapter]
    return list(pairwise([merged, *inner, model.hidden])) * (1 + (model.vision.deepstack or 0))


def adapter(model: Model) -> int:
    """Weights of all matrices of the adapter."""
    return sum(wide * out for wide, out in adapter_pairs(model))


def adapt(model: Model, grid: Grid, request: Request) -> tuple[float, float]:
    """(FLOPs, bytes): 2 per weight and merged row; each matrix reads a row and writes one."""
    rows = request.batch * grid.slices * grid.merged
    moved = sum(wide + out for wide, out in adapter_pairs(model))
    return 2 * rows * adapter(model), WORD * (adapter(model) + rows * moved)


def layer_weights(model: Model) -> int:
    """Weights of a decoder layer: q and o of hidden x heads d, k and v of hidden x kv_heads d, three of the MLP."""
    return model.hidden * (2 * model.head_dim * (model.heads + model.kv_heads) + 3 * model.intermediate)


def weights(model: Model) -> int:
    """Weights that a token passes: all layers and the output matrix (an untied input matrix is not counted)."""
    return model.layers * layer_weights(model) + model.hidden * model.vocab


def layer_moved(model: Model) -> int:
    """Elements a row moves in a layer, without keys and values: input 4 times, q and mix 4 times, inner row twice."""
    return 4 * model.hidden + 4 * model.heads * model.head_dim + 2 * model.intermediate


def row_bytes(model: Model, request: Request) -> float:
    """Bytes of a cached token in one layer: a key and a value of kv_heads x head_dim (scales are not counted)."""
    return 2 * model.kv_heads * model.head_dim * request.kv_bits / 8


def parts(model: Model, request: Request, kept: int, late: int) -> list[tuple[int, int, int]]:
    """(layers, prompt rows, prompt rows left in the cache for decoding) before and from `layer` on."""
    split = [(request.layer, kept), (model.layers - request.layer, late)]
    return [(count, rows + request.text, share(rows, request.cache_keep) + request.text) for count, rows in split]


def prefill(model: Model, request: Request, kept: int, late: int) -> tuple[float, float]:
    """(FLOPs, bytes): 2 per weight and row, 4 d per pair of a row and one that it sees; one row meets the head."""
    flops, moved = 2 * model.hidden * model.vocab, model.hidden + model.vocab
    cache = 0.0
    for layers, rows, _ in parts(model, request, kept, late):
        pairs = rows * (rows + 1) / 2
        flops += layers * (2 * rows * layer_weights(model) + 4 * model.heads * model.head_dim * pairs)
        moved += layers * rows * layer_moved(model)
        cache += 2 * layers * rows * row_bytes(model, request)
    return request.batch * flops, WORD * (weights(model) + request.batch * moved) + request.batch * cache


def decode(model: Model, request: Request, kept: int, late: int) -> tuple[float, float]:
    """(FLOPs, bytes) of all steps after the first token: step i reads the weights, and the prompt's rows and i more."""
    steps = request.new - 1
    flops = 2 * steps * weights(model)
    moved = steps * (model.layers * layer_moved(model) + model.hidden + model.vocab)
    cache = 0.0
    for layers, _, cached in parts(model, request, kept, late):
        read = layers * (steps * cached + steps * (steps + 1) / 2)  # summed over the steps
        flops += 4 * model.heads * model.head_dim * read
        cache += (read + layers * steps) * row_bytes(model, request)
    return request.batch * flops, WORD * (steps * weights(model) + request.batch * moved) + request.batch * cache
