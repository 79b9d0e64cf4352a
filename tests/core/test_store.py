"""The cache against plain lists of rows, and the views that the selection stage is shown."""

from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from kvsupport import view_of
from support import clip_for, random_family

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.rows import GROWTH
from elvi.core.run import Run
from elvi.core.scores import paid
from elvi.core.store import LayerStore
from elvi.core.tokens import top

HEADS, WIDTH = 2, 4


@dataclass
class Rows:
    """The oracle: for every head a list of (row number, key, value); the last `tail` of them are not yet committed."""

    heads: list[list[tuple]] = field(default_factory=lambda: [[] for _ in range(HEADS)])
    tail: int = 0

    def write(self, keys, values, row):
        for held, key, value in zip(self.heads, keys.clone(), values.clone()):
            held += zip(row.tolist(), key, value)
        self.tail += len(row)

    def commit(self, accepted):
        for held in self.heads:
            start = len(held) - self.tail
            held[start:] = [held[start + place] for place in accepted]
        self.tail = 0

    def gather(self, slots):
        self.heads = [[held[slot] for slot in chosen] for held, chosen in zip(self.heads, slots.tolist())]


@dataclass(frozen=True)
class Halved:
    """A stand-in for packed rows: half precision, exact for the small integers used here."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self):
        return self.keys.nbytes + self.values.nbytes

    def unpack(self):
        return self.keys.float(), self.values.float()


def fresh(count, device, start=0):
    """keys, values [H, n, d] of small integers, all different, and their row numbers [n]."""
    row = torch.arange(start, start + count, device=device)
    head = torch.arange(HEADS, device=device)[:, None, None] / HEADS
    keys = (row[None, :, None] + head).expand(HEADS, count, WIDTH).clone()
    return keys, -keys, row


def allocated(store):
    return store.rows.keys.untyped_storage().nbytes() + store.rows.values.untyped_storage().nbytes()


def assert_holds(store, oracle):
    keys, values = store.read()
    assert store.length == len(oracle.heads[0])
    for head, held in enumerate(oracle.heads):
        assert store.row[head].tolist() == [number for number, _, _ in held]
        for slot, (_, key, value) in enumerate(held):
            assert torch.equal(keys[head, slot], key)
            assert torch.equal(values[head, slot], value)


def random_slots(store, rng, count, device):
    slots = [sorted(rng.sample(range(store.length), count)) for _ in range(HEADS)]
    return torch.tensor(slots, dtype=torch.long, device=device).view(HEADS, count)


@pytest.mark.parametrize("seed", range(20))
def test_random_operations_leave_what_lists_would_hold(seed, device):
    rng, store, oracle, row = Random(seed), LayerStore(), Rows(), 0
    for _ in range(30):
        rows = fresh(rng.randint(1, 40), device, row)
        row += len(rows[2])
        store.write(*rows)
        oracle.write(*rows)
        assert_holds(store, oracle)
        accepted = sorted(rng.sample(range(len(rows[2])), rng.randint(1, len(rows[2]))))
        store.commit(accepted)
        oracle.commit(accepted)
        if rng.random() < 0.3:
            slots = random_slots(store, rng, rng.randint(0, store.length), device)
            store.gather(slots)
            oracle.gather(slots)
        assert_holds(store, oracle)


def test_rejected_rows_leave_no_trace(device):
    store = LayerStore()
    store.write(*fresh(5, device))
    store.commit()
    before = [tensor.clone() for tensor in (*store.read(), store.row)]
    store.write(*fresh(7, device, start=5))
    store.commit([])
    assert all(torch.equal(new, old) for new, old in zip((*store.read(), store.row), before))


def test_a_branch_of_a_tree_is_moved_to_the_front_of_the_tail(device):
    store = LayerStore()
    store.write(*fresh(3, device))
    store.commit()
    store.write(*fresh(6, device, start=3))
    store.commit([0, 2, 5])
    assert store.row[0].tolist() == [0, 1, 2, 3, 5, 8]
    assert store.read()[0][0, :, 0].tolist() == [0, 1, 2, 3, 5, 8]
    assert (store.length, store.tail) == (6, 0)


def test_a_branch_is_accepted_even_when_nothing_else_is_held(device):
    store = LayerStore()
    store.write(*fresh(3, device))
    store.commit()
    store.gather(torch.empty(HEADS, 0, dtype=torch.long, device=device))
    store.write(*fresh(3, device, start=3))
    store.commit([0, 2])
    assert store.row.tolist() == [[3, 5]] * HEADS


def test_bytes_are_the_allocated_storage_and_are_freed_by_gather(device):
    store, per_row = LayerStore(), 2 * HEADS * WIDTH * 4
    store.write(*fresh(100, device))
    assert store.nbytes == 100 * per_row
    store.write(*fresh(1, device, start=100))
    assert store.nbytes == allocated(store) == (101 + GROWTH) * per_row
    store.commit()
    store.gather(torch.arange(10, device=device).expand(HEADS, 10))
    assert store.nbytes == allocated(store) == 10 * per_row


def test_a_buffer_grows_only_when_it_is_full(device):
    store = LayerStore()
    store.write(*fresh(1, device))
    buffers = set()
    for row in range(1, 2 * GROWTH):
        store.write(*fresh(1, device, start=row))
        buffers.add(store.rows.keys.data_ptr())
    assert len(buffers) == 2
    assert store.read()[0][0, :, 0].tolist() == list(range(2 * GROWTH))


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_packed_rows_stand_first_and_later_rows_after_them(count, device):
    store, oracle = LayerStore(), Rows()
    rows = fresh(8, device)
    for holder in (store, oracle):
        holder.write(*rows)
    store.commit()
    slots = random_slots(store, Random(count), count, device)
    rest = torch.stack([torch.tensor([s for s in range(8) if s not in chosen]) for chosen in slots.tolist()]).long()
    wide = slots[..., None].expand(-1, -1, WIDTH)
    store.pack(Halved(rows[0].gather(1, wide).half(), rows[1].gather(1, wide).half()), slots)
    oracle.commit(range(8))
    oracle.gather(torch.cat([slots.cpu(), rest.view(HEADS, -1)], dim=1))
    assert_holds(store, oracle)
    assert store.nbytes == 2 * HEADS * WIDTH * (2 * count + 4 * (8 - count))
    later = fresh(4, device, start=8)
    for holder in (store, oracle):
        holder.write(*later)
        holder.commit([0, 2])
    assert_holds(store, oracle)


def test_packed_rows_are_not_selected_again(device):
    store = LayerStore()
    keys, values, row = fresh(4, device)
    store.write(keys, values, row)
    store.commit()
    store.pack(Halved(keys[:, :2].half(), values[:, :2].half()), torch.arange(2, device=device).expand(HEADS, 2))
    with pytest.raises(RuntimeError, match="packed before they were selected"):
        store.gather(torch.zeros(HEADS, 1, dtype=torch.long, device=device))


@dataclass(frozen=True)
class Watch:
    """Keeps everything and remembers what it was shown."""

    window: int = 3
    rolling: bool = True
    seen: list = field(default_factory=list)
    needs = breaks = frozenset()
    lossless = True

    def keep(self, views):
        self.seen.append([(view.query.clone(), view.query_row.tolist()) for view in views])
        return [None] * len(views)


def prefilled(watch, kind="qwen2_5_vl"):
    run = Run(random_family(kind), Plan(watch))
    prefill(run, clip_for(kind), "what color is the star ?")
    return run


@torch.inference_mode()
def test_rolling_views_carry_the_rows_that_the_round_accepted():
    drafted, plain = Watch(), Watch()
    run = prefilled(drafted)
    verify(run, 5, Draft([6, 7, 8, 9], [-1, -1, 1, 1]))  # root 5; 6 and 7 after it; 8 and 9 after 7
    run.commit([0, 2, 4])
    single = prefilled(plain)
    for token in (5, 7, 9):
        verify(single, token, Draft())
        single.commit([0])
    total = len(run.layout)
    for layer, (query, query_row) in enumerate(drafted.seen[-1]):
        steps = [seen[layer] for seen in plain.seen[-3:]]
        assert [row for _, row in steps] == [[total], [total + 1], [total + 2]]
        assert query_row == [total, total + 1, total + 2]
        torch.testing.assert_close(query, torch.cat([one for one, _ in steps], dim=1), atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class Past:
    """Notes which slots every drafted row may read, and which row stands before it."""

    seen: list = field(default_factory=list)
    needs = breaks = frozenset()
    lossless, prefill, decode = True, False, True

    def attend(self, view):
        self.seen.append((view.parents, [row.nonzero()[:, 0].tolist() for row in view.readable]))


@torch.inference_mode()
def test_a_view_tells_the_past_of_every_drafted_row():
    watch = Past()
    run = prefilled(watch)
    before = list(range(len(run.layout)))
    verify(run, 5, Draft([6, 7, 8, 9], [-1, -1, 1, 1]))  # root 5; 6 and 7 after it; 8 and 9 after 7
    parents, reads = watch.seen[0]
    assert parents == [-1, 0, 0, 2, 2]
    root = len(before)
    paths = ([], [1], [2], [2, 3], [2, 4])
    assert reads == [[*before, root, *(root + node for node in path)] for path in paths]
    run.commit([0, 2, 4])
    verify(run, 5, Draft.chain([6, 7]))
    parents, reads = watch.seen[-1]
    assert parents == [-1, 0, 1]
    assert [len(row) for row in reads] == [len(before) + 3 + count for count in (1, 2, 3)]


@torch.inference_mode()
def test_what_a_row_pays_is_its_attention_over_the_slots_it_reads(device):
    generator = torch.Generator().manual_seed(0)
    keys, query = (torch.randn(*shape, generator=generator).to(device) for shape in ((2, 9, 4), (6, 3, 4)))
    view = view_of(keys, query)
    reads = torch.rand(2, 9, generator=generator).to(device) < 0.6
    reads[:, 7] = True
    for head in range(2):
        logits = query[3 * head : 3 * head + 3, 1] @ keys[head, reads[head]].T / 2
        expected = torch.zeros(9, device=device)
        expected[reads[head]] = logits.softmax(-1).mean(0)
        torch.testing.assert_close(paid(view, 1, reads)[head], expected)
    torch.testing.assert_close(
        paid(view, 2, view.readable[2].expand(2, -1)), view.attention()[:, 2].view(2, 3, 9).mean(1)
    )


@torch.inference_mode()
def test_windows_are_forgotten_when_nobody_will_ask_again():
    run = prefilled(Watch(rolling=False))
    assert [rows for _, rows in run.plan.techniques[0].seen[0]] == [run.layout.row[-3:].tolist()] * 3
    run.phase = "answer"
    verify(run, 5, Draft())
    assert run.recent == {}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_a_view_recomputes_the_attention_of_the_eager_kernel(kind):
    family, clip = random_family(kind), clip_for(kind)
    watch = Watch(window=5, rolling=False)
    run = prefilled(watch, kind)
    family.model.set_attn_implementation({"text_config": "eager"})
    try:
        eager = family.model(**family.inputs(family.steps(clip), "what color is the star ?"), output_attentions=True)
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"})
    for layer, (query, rows) in enumerate(watch.seen[0]):
        view = run.view(watch, layer, query, torch.tensor(rows))
        torch.testing.assert_close(view.attention(), eager.attentions[layer][0, :, -5:], atol=1e-5, rtol=1e-4)


def test_top_breaks_ties_by_the_lower_index(device):
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], device=device)
    assert top(score, 2).tolist() == [[1, 2]]


def test_cropped_rows_are_gone_and_writing_goes_on_behind_them():
    store, rows = LayerStore(), torch.arange(6)
    keys = torch.arange(6.0)[None, :, None].expand(HEADS, 6, WIDTH).contiguous()
    store.write(keys, -keys, rows)
    store.commit()
    store.crop(4)
    assert (store.length, store.tail) == (4, 0)
    store.write(keys[:, :1] + 9, keys[:, :1], torch.tensor([4]))
    assert store.read()[0][0, :, 0].tolist() == [0, 1, 2, 3, 9]
    assert store.row[0].tolist() == [0, 1, 2, 3, 4]
    store.commit([])
    assert store.length == 4
