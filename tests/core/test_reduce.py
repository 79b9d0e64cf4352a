"""What reducers are shown, alone and one after another at the same seam."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from support import noise_clip, random_family

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Encoded, Layer
from elvi.errors import FitError

QUESTION = "what color is the star ?"


@dataclass(frozen=True)
class EverySecond:
    """Drops every second visual token and notes the attention row it was shown."""

    every: int | None = None
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False
    notes: list = field(default_factory=list, hash=False)

    @property
    def at(self):
        return Layer(1, self.every)

    def reduce(self, tokens, seen):
        last = torch.tensor([len(tokens) - 1])
        self.notes.append((tokens.row, seen.query, seen.attention(last)[:, 0]))
        stays = ~tokens.visual
        stays[tokens.visual.nonzero()[::2, 0]] = True
        return tokens.keep(stays)


@dataclass(frozen=True)
class AsksTheTower:
    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False

    def reduce(self, tokens, seen):
        return tokens.keep(seen.tower.received(-1) > 0)


@torch.inference_mode()
def test_second_reducer_at_a_layer_sees_the_attention_of_what_the_first_left():
    family, first, second = random_family("qwen2_5_vl"), EverySecond(), EverySecond()
    run = Run(family, Plan(first, second))
    prefill(run, noise_clip(), QUESTION)
    ((rows, query, weights),), ((left, left_query, left_weights),) = first.notes, second.notes
    place = torch.searchsorted(rows, left)
    assert torch.equal(left_query, query[:, place])
    torch.testing.assert_close(left_weights, weights[:, place] / weights[:, place].sum(-1, keepdim=True))
    assert run.last is None


@torch.inference_mode()
def test_a_reducer_may_act_at_layers_that_follow_at_equal_distance():
    often = EverySecond(every=2)
    run = Run(random_family("qwen2_5_vl", layers=6), Plan(often))
    prefill(run, noise_clip(), QUESTION)
    visual = run.meter.layer_visual_tokens
    assert visual == [visual[0]] + [-(-visual[0] // 2)] * 2 + [-(-visual[0] // 4)] * 2 + [-(-visual[0] // 8)]
    assert [len(layer.row[0]) for layer in run.store.layers] == run.meter.layer_tokens
    assert [rows.tolist() for rows, _, _ in often.notes] == [
        run.store.layers[layer - 1].row[0].tolist() for layer in (1, 3, 5)
    ]


@torch.inference_mode()
def test_tower_attention_that_a_model_cannot_offer_is_refused_in_a_sentence():
    family = random_family("llava_onevision")
    tiled = noise_clip(1, still=True, size=(84, 60))
    with pytest.raises(FitError, match="tiled images"):
        prefill(Run(family, Plan(AsksTheTower())), tiled, QUESTION)


@dataclass(frozen=True)
class Looks:
    """Notes the clip that it was shown."""

    at: Encoded | Layer
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = True
    notes: list = field(default_factory=list, hash=False)

    def reduce(self, tokens, seen):
        self.notes.append(seen.clip)
        return tokens


@torch.inference_mode()
@pytest.mark.parametrize("at", [Encoded(), Layer(0)])
def test_reducers_before_the_model_see_the_frames_that_were_encoded(at):
    family, looks, clip = random_family("qwen2_5_vl"), Looks(at), noise_clip()
    prefill(Run(family, Plan(looks)), clip, QUESTION)
    assert (looks.notes[0].frames == family.steps(clip).frames).all()


@dataclass(frozen=True)
class Halves:
    """Merges neighbours in pairs, or drops every second visual token; positions as asked."""

    at: Encoded | Layer
    positions: str = "original"
    merges: bool = False
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False

    def reduce(self, tokens, seen):
        visual = tokens.visual.nonzero()[:, 0]
        stays = ~tokens.visual
        stays[visual[::2]] = True
        return tokens.merge(stays.cumsum(0) - 1, stays.nonzero()[:, 0]) if self.merges else tokens.keep(stays)


@torch.inference_mode()
@pytest.mark.parametrize("at", [Encoded(), Layer(0)])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_compact_positions_have_no_gap_and_the_answer_counts_on_from_them(kind, at):
    family = random_family(kind)
    run = Run(family, Plan(Halves(at, "compact")))
    prefill(run, noise_clip(), QUESTION)
    kept = run.store.layers[0].row[0]
    position = run.layout.position[:, kept]
    assert torch.equal(position, run.layout.keep(kept).compact().position)
    assert run.next_position == int(position[0, -1]) + 1
    if kind == "llava":
        assert position[0].tolist() == list(range(len(kept)))
        plain = Run(family, Plan(Halves(at)))
        prefill(plain, noise_clip(), QUESTION)
        assert plain.next_position == len(plain.layout) > run.next_position


@torch.inference_mode()
def test_masses_of_merged_tokens_are_known_to_the_run():
    run = Run(random_family("llava"), Plan(Halves(Layer(1), merges=True)))
    prefill(run, noise_clip(), QUESTION)
    assert float(run.layout.mass[run.store.layers[1].row[0]].sum()) == len(run.layout)


def test_compact_positions_are_refused_in_a_stream():
    with pytest.raises(FitError, match="stream"):
        Plan(Halves(Layer(0), "compact")).check(random_family("llava"), stream=True)


@dataclass(frozen=True)
class LooksAhead:
    """Notes which layer it stands before, how many visual tokens entered the first one, and the attention ahead."""

    at: ClassVar[Layer] = Layer(1, 1)
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = True
    ahead: dict = field(default_factory=dict, hash=False)
    behind: dict = field(default_factory=dict, hash=False)
    entered: list = field(default_factory=list, hash=False)

    def reduce(self, tokens, seen):
        rows = torch.arange(len(tokens))
        self.ahead[seen.layer] = seen.attention_ahead(tokens, rows)
        self.behind[seen.layer - 1] = seen.attention(rows)
        self.entered.append(seen.entered)
        return tokens


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_attention_ahead_is_what_the_next_layer_computes(kind):
    looks, half = LooksAhead(), Halves(Layer(0))
    run = Run(random_family(kind, layers=4), Plan(half, looks))
    prefill(run, noise_clip(), QUESTION)
    assert list(looks.ahead) == [1, 2, 3]
    assert looks.entered == [run.meter.layer_visual_tokens[0]] * 3
    for layer in (1, 2):
        torch.testing.assert_close(looks.ahead[layer], looks.behind[layer], rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Recalls:
    """Notes the tower's statistics of its tokens, and counts in its memory how often it was asked."""

    at: Encoded | Layer
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = True
    notes: list = field(default_factory=list, hash=False)

    def reduce(self, tokens, seen):
        seen.memory["calls"] = seen.memory.get("calls", 0) + 1
        received = seen.tower.received(-1)[tokens.row[tokens.visual]] if seen.tower else None
        self.notes.append((seen.memory["calls"], received))
        return tokens


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llava_onevision"])
def test_the_tower_is_seen_before_the_first_layer_as_it_is_behind_the_tower(kind):
    first, later = Recalls(Encoded()), Recalls(Layer(0))
    prefill(Run(random_family(kind), Plan(Halves(Encoded()), first, later)), noise_clip(), QUESTION)
    assert torch.equal(first.notes[0][1], later.notes[0][1])


@torch.inference_mode()
def test_a_reducer_remembers_from_layer_to_layer_and_forgets_between_runs():
    often = Recalls(Layer(0, every=1))
    for _ in range(2):
        prefill(Run(random_family("llava"), Plan(often)), noise_clip(), QUESTION)
    assert [calls for calls, _ in often.notes] == [1, 2, 3] * 2
    assert [received is None for _, received in often.notes] == [False, True, True] * 2


class AsksOn(Recalls):
    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = True

    def attend(self, view):
        view.shared["calls"] = view.shared["calls"] + 1
        view.memory["own"] = view.memory.get("own", 0) + 1
        self.notes.append((view.shared["calls"], view.memory["own"]))


@torch.inference_mode()
def test_what_a_reducer_remembers_is_shared_with_its_views_of_all_layers():
    technique = AsksOn(Layer(0))
    run = Run(random_family("llava"), Plan(technique))
    prefill(run, noise_clip(), QUESTION)
    verify(run, 10, Draft())
    assert technique.notes[1:] == [(2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)]
