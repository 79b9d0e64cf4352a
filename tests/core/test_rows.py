"""Ragged heads and the second tier: stored as lists would be, and read as a mask over a full cache would let them."""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

import pytest
import torch
from kvsupport import TOKENS, Masked, held, prefilled, stepwise

from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.rows import PAD, Dense, PackedRows, Ragged
from elvi.core.store import Kept, LayerStore
from elvi.core.views import Fetched

HEADS, WIDTH = 3, 4


def fresh(count, device, start=0):
    row = torch.arange(start, start + count, device=device)
    keys = (row[None, :, None] + torch.arange(HEADS, device=device)[:, None, None] / 8).expand(HEADS, count, WIDTH)
    return keys.contiguous(), -keys, row


def contents(store):
    return [row[row != PAD].tolist() for row in store.row]


@pytest.mark.parametrize("seed", range(20))
def test_random_operations_on_ragged_heads_leave_what_lists_would_hold(seed, device):
    rng, store, oracle, row = Random(seed), LayerStore(), [[] for _ in range(HEADS)], 0
    for _ in range(25):
        rows = fresh(rng.randint(1, 30), device, row)
        row += len(rows[2])
        store.write(*rows)
        accepted = sorted(rng.sample(range(len(rows[2])), rng.randint(0, len(rows[2]))))
        store.commit(accepted)
        oracle = [head + [rows[2][place].item() for place in accepted] for head in oracle]
        if rng.random() < 0.4:
            places = [sorted(rng.sample(range(len(head)), rng.randint(0, len(head)))) for head in oracle]
            skipped = [store.length - len(head) for head in oracle]
            store.gather([torch.tensor(at, device=device).long() + skip for at, skip in zip(places, skipped)])
            oracle = [[head[place] for place in at] for head, at in zip(oracle, places)]
        assert contents(store) == oracle
        keys, values = store.read()
        for head, numbers in enumerate(oracle):
            assert keys[head, store.length - len(numbers) :, 0].tolist() == [number + head / 8 for number in numbers]
            assert torch.equal(values, -keys)
            assert torch.equal(store.rows.head(head)[0], keys[head, store.length - len(numbers) :])


def test_ragged_bytes_are_the_rows_that_are_kept(device):
    store, per_row = LayerStore(), 2 * WIDTH * 4
    store.write(*fresh(20, device))
    store.commit()
    store.gather([torch.arange(count, device=device) for count in (1, 5, 12)])
    assert isinstance(store.rows, Ragged)
    assert store.nbytes == store.held_bytes == 18 * per_row
    store.write(*fresh(1, device, 20))
    assert store.held_bytes == 21 * per_row
    assert store.nbytes == store.rows.keys.untyped_storage().nbytes() * 2


def test_heads_of_equal_length_are_dense_again(device):
    store = LayerStore()
    store.write(*fresh(6, device))
    store.commit()
    store.gather([torch.tensor(slots, device=device) for slots in ([0, 1], [2, 5], [3, 4])])
    assert isinstance(store.rows, Dense)
    assert contents(store) == [[0, 1], [2, 5], [3, 4]]


def test_the_second_tier_grows_by_what_moves_there_and_a_fork_keeps_what_it_saw(device):
    store = LayerStore()
    store.write(*fresh(6, device))
    store.commit()
    everything = torch.arange(6, device=device).expand(HEADS, 6)
    store.gather(Kept(everything[:, 4:], far=everything[:, :4]))
    fork = store.fork()
    store.write(*fresh(2, device, 6))
    store.commit()
    store.gather(Kept(everything[:, 2:4], far=everything[:, :2]))
    assert contents(store) == [[6, 7]] * HEADS
    assert store.far.row[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert fork.far.row[0].tolist() == [0, 1, 2, 3]
    assert contents(fork) == [[4, 5]] * HEADS


@dataclass(frozen=True)
class Drop:
    """Keeps the slots of each layer and head, given as tuples; `far`: the others go to the second tier."""

    slots: tuple
    far: bool = False
    needs = breaks = frozenset()
    lossless = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = 0

    def keep(self, views):
        return [self._keep(view) for view in views]

    def _keep(self, view):
        near = [torch.tensor(slots) for slots in self.slots[view.layer]]
        count = view.keys.shape[1]
        rest = [
            torch.tensor([slot for slot in range(count) if slot not in set(slots)]) for slots in self.slots[view.layer]
        ]
        return Kept(near, far=rest) if self.far else near


@dataclass(frozen=True)
class DropAndFetch(Drop):
    """Every row fetches all of the second tier, in the order given by a seed, or every other row of it."""

    seed: int = 0
    every: int = 1

    def fetch(self, view):
        slots = []
        for length in view.store.far.lengths:
            order = torch.arange(0, length, self.every)
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(self.seed))]
            slots.append(order.expand(len(view.query_row), -1))
        return Fetched(slots)


def ragged_slots(run, seed=3):
    """A random number of random slots for every layer and head."""
    rng, total = Random(seed), len(run.layout)
    layers, heads = len(run.store.layers), run.store.layers[0].row.shape[0]
    return tuple(
        tuple(tuple(sorted(rng.sample(range(total), rng.randint(1, total)))) for _ in range(heads))
        for _ in range(layers)
    )


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_packed_ragged_attention_equals_masked_dense_attention(kind):
    slots = ragged_slots(prefilled(kind=kind))
    ragged = prefilled(Drop(slots), kind=kind)
    masked = prefilled(Masked(tuple(tuple(map(torch.tensor, layer)) for layer in slots)), kind=kind)
    assert any(isinstance(layer.rows, Ragged) for layer in ragged.store.layers)
    torch.testing.assert_close(stepwise(ragged), stepwise(masked), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_tree_of_drafts_over_ragged_heads_reads_what_single_steps_read():
    slots = ragged_slots(prefilled())
    plain, drafted = prefilled(Drop(slots)), prefilled(Drop(slots))
    tree = Draft([40, 23, 57, 8], [-1, -1, 1, 2])  # 40 and 23 after the root; 57 after 23; 8 after 57
    logits = verify(drafted, 11, tree)
    drafted.commit([0, 2, 3, 4])
    expected = stepwise(plain, [11, 23, 57, 8])
    torch.testing.assert_close(logits[[0, 2, 3, 4]], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(stepwise(drafted, [5, 9]), stepwise(plain, [5, 9]), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a.row, b.row) for a, b in zip(drafted.store.layers, plain.store.layers))


@pytest.mark.parametrize("seed", [0, 1])
@torch.inference_mode()
def test_fetching_all_of_the_second_tier_equals_the_full_cache_in_any_order(seed):
    slots = ragged_slots(prefilled())
    fetching = prefilled(DropAndFetch(slots, far=True, seed=seed))
    torch.testing.assert_close(stepwise(fetching), stepwise(prefilled()), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_drafts_fetch_row_by_row_what_single_steps_fetch():
    technique = DropAndFetch(ragged_slots(prefilled()), far=True, every=2)
    logits = verify(prefilled(technique), TOKENS[0], Draft.chain(TOKENS[1:5]))
    torch.testing.assert_close(logits, stepwise(prefilled(technique), TOKENS[:5]), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_what_a_step_reads_is_counted_in_both_tiers():
    technique = DropAndFetch(ragged_slots(prefilled()), far=True, every=2)
    run = prefilled(technique)
    near, row = sum(layer.held_bytes for layer in run.store.layers), 2 * run.family.head_dim * 4
    fetched = sum(-(-length // 2) for layer in run.store.layers for length in layer.far.lengths)
    new = len(run.store.layers) * len(run.store.layers[0].far.lengths)
    stepwise(run, TOKENS[:1])
    assert run.meter.kv_read_bytes == near + (fetched + new) * row
    assert run.store.far_bytes == sum(layer.far.keys.nbytes * 2 for layer in run.store.layers)


@torch.inference_mode()
def test_the_second_tier_is_not_read_where_nothing_fetches():
    slots = ragged_slots(prefilled())
    unread = stepwise(prefilled(Drop(slots, far=True)))
    torch.testing.assert_close(unread, stepwise(prefilled(Drop(slots))), atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class Exact:
    """A codec that changes nothing: it holds the first `count` slots of every head as they are."""

    count: int
    needs = breaks = frozenset()
    lossless = True

    def pack(self, views):
        for view in views:
            slots = torch.arange(self.count).expand(len(view.row), -1)
            view.store.pack(Pair(view.keys[:, : self.count].clone(), view.values[:, : self.count].clone()), slots)


@dataclass(frozen=True)
class Pair:
    keys: torch.Tensor
    values: torch.Tensor
    nbytes: ClassVar[int] = 0

    def unpack(self):
        return self.keys, self.values


@torch.inference_mode()
def test_packed_rows_are_read_beside_a_second_tier():
    rows = tuple(tuple(tuple(range(layer, 60, 2)) for _ in range(2)) for layer in range(3))
    packed, plain = prefilled(Drop(rows, far=True), Exact(20)), prefilled(Drop(rows))
    torch.testing.assert_close(stepwise(packed), stepwise(plain), atol=1e-5, rtol=1e-4)
    logits = verify(packed, TOKENS[0], Draft.chain(TOKENS[1:4]))
    torch.testing.assert_close(logits, stepwise(plain, TOKENS[:4]), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_merged_rows_take_the_place_of_those_that_the_slots_held():
    run = prefilled()
    layer, count = run.store.layers[0], len(run.layout)
    keys, values = (part.clone() for part in layer.read())
    slots = torch.arange(count - 2).expand(len(keys), -1)
    layer.gather(Kept(slots, keys=keys[:, :-2] + 1, values=values[:, 2:]))
    assert torch.equal(layer.read()[0], keys[:, :-2] + 1)
    assert torch.equal(layer.read()[1], values[:, 2:])
    assert torch.equal(layer.row, run.layout.row[:-2].expand(len(keys), -1))
    assert held(run)[0][0].tolist() == run.layout.row[:-2].tolist()


def test_padded_slots_are_never_read(device):
    run = prefilled(Drop(ragged_slots(prefilled())))
    view = run.view(None, 0, torch.randn(4, 2, run.family.head_dim), run.layout.row[-2:])
    view = replace(view, query=torch.randn(run.family.config.num_attention_heads, 2, run.family.head_dim))
    groups = len(view.query) // len(view.row)
    pads = (view.row == PAD).repeat_interleave(groups, dim=0)[:, None]
    assert pads.any()
    assert (view.attention().masked_select(pads.expand(-1, 2, -1)) == 0).all()
    assert not (view.visual & (view.row == PAD)).any()


@dataclass(frozen=True)
class Halved:
    """Rows at half their size, restored exactly; counts how often."""

    keys: torch.Tensor
    values: torch.Tensor
    unpacked: list

    @property
    def nbytes(self) -> int:
        return (self.keys.nbytes + self.values.nbytes) // 2

    def unpack(self):
        self.unpacked.append(self.keys.shape[1])
        return self.keys, self.values


def in_blocks(sizes, unpacked=None):
    keys, values, row = fresh(sum(sizes), "cpu")
    parts = zip(*(part.split(sizes, dim=dim) for part, dim in ((keys, 1), (values, 1), (row, 0))))
    log = [] if unpacked is None else unpacked
    return keys, values, PackedRows([(Halved(k, v, log), r.expand(HEADS, -1)) for k, v, r in parts])


def test_only_the_blocks_that_rows_are_taken_from_are_unpacked():
    unpacked = []
    keys, values, rows = in_blocks([3, 1, 4, 2], unpacked)
    slots = [torch.tensor([[9, 1], [0, 9]]), torch.tensor([[2], [3]]), torch.tensor([8])]
    for head, (some_keys, some_values) in enumerate(rows.take(slots)):
        assert torch.equal(some_keys, keys[head][slots[head]])
        assert torch.equal(some_values, values[head][slots[head]])
    assert unpacked == [3, 1, 2]


def test_packed_rows_join_those_of_a_second_tier_and_a_fork_keeps_what_it_saw(device):
    store = LayerStore()
    store.write(*fresh(6, device))
    store.commit()
    everything = torch.arange(6, device=device).expand(HEADS, 6)
    *_, rows = in_blocks([2, 2])
    store.gather(Kept(everything[:, 4:], far=rows))
    fork = store.fork()
    store.gather(Kept(everything[:, :1], far=in_blocks([1])[2]))
    assert contents(store) == [[4]] * HEADS
    assert (store.far.row[0].tolist(), fork.far.row[0].tolist()) == ([0, 1, 2, 3, 0], [0, 1, 2, 3])
    assert store.far.lengths == [5] * HEADS
    width = fresh(1, device)[0].shape[-1]
    assert store.far_bytes == 5 * HEADS * width * 4
    assert store.far.row_bytes == width * 4


@dataclass(frozen=True)
class PackAndFetch(DropAndFetch):
    """Moves the rows it does not keep to the second tier in blocks of three, packed without loss."""

    def _keep(self, view):
        kept = super()._keep(view)
        keys, values = (part.gather(1, self._wide(kept.far, part)).split(3, dim=1) for part in view._read)
        rows = view.row.gather(1, torch.stack(kept.far)).split(3, dim=1)
        return Kept(kept.slots, far=PackedRows([(Halved(k, v, []), r) for k, v, r in zip(keys, values, rows)]))

    def _wide(self, slots, part):
        return torch.stack(slots)[..., None].expand(-1, -1, part.shape[-1])


@torch.inference_mode()
def test_rows_that_are_packed_and_fetched_are_read_as_they_were():
    full = prefilled()
    even = len(full.layout) // 2 * 2
    slots = (tuple(tuple(range(head, even, 2)) for head in (0, 1)),) * len(full.store.layers)
    exact, packed = (prefilled(technique(slots, far=True)) for technique in (DropAndFetch, PackAndFetch))
    torch.testing.assert_close(stepwise(packed, TOKENS[:4]), stepwise(exact, TOKENS[:4]))
    assert packed.meter.kv_read_bytes < exact.meter.kv_read_bytes
