"""Counting which heads look at what is named: words, regions, and scores against plain loops."""

from __future__ import annotations

import json

import pytest
import torch
from kvsupport import prefilled
from support import LastSlots, random_family

from elvi import cli
from elvi.bench import heads
from elvi.core.accept import Draft
from elvi.core.generate import verify
from elvi.core.scores import chunks
from elvi.errors import ElviError
from elvi.tiny.data import RADIUS, SIDE, Scene, Thing, sample_scene


def test_colours_and_shapes_are_found_where_they_stand_in_the_caption():
    scene = sample_scene(3, "caption", 5)
    caption, found = scene.caption(), list(heads.named(scene))
    things = [(k, thing) for k, shown in enumerate(scene.seconds) for thing in shown]
    assert [(second, thing) for _, second, thing in found[::2]] == things
    assert [(second, thing) for _, second, thing in found[1::2]] == things
    words = [caption[start:].split()[0] for start, _, _ in found]
    assert words == [word for _, thing in things for word in (thing.color, thing.shape)]
    phrases = [caption.index(str(thing), caption.index(f"frame {k + 1} ")) for k, thing in things]
    assert [start for start, _, _ in found[::2]] == [place + len("a ") for place in phrases]


def painted(thing, size):
    """Cells of a size x size grid that hold a pixel of the thing's box in one of its two frames."""
    board = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    xs, ys = ([at[axis] for at in thing.at] for axis in (0, 1))
    board[min(ys) - RADIUS : max(ys) + RADIUS + 1, min(xs) - RADIUS : max(xs) + RADIUS + 1] = True
    patch = SIDE // size
    return board.view(size, patch, size, patch).any(3).any(1)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_a_region_is_the_tokens_that_the_box_of_a_thing_touches_in_its_second(kind):
    layout = prefilled(kind=kind).layout
    crossing = Thing("star", "red", ((30, 50), (60, 52)))
    for thing in (crossing, *(thing for shown in sample_scene(7, "caption", 6).seconds for thing in shown)):
        cells = painted(thing, 6)
        found = heads.region(layout, thing, 2, 3).tolist()
        expected = [row for row, (t, y, x) in zip(layout.row.tolist(), layout.cell.tolist()) if t == 2 and cells[y, x]]
        assert found == expected
        assert len(found) >= 4


@torch.inference_mode()
def test_a_long_clip_read_in_fewer_steps_still_maps_seconds_to_steps():
    layout = prefilled().layout  # three steps
    thing = Thing("star", "red", ((16, 16), (16, 16)))
    steps = [layout.cell[heads.region(layout, thing, second, 3), 0].unique().tolist() for second in range(3)]
    assert steps == [[0], [1], [2]]


@torch.inference_mode()
def test_the_highest_row_is_that_of_the_dense_matrix_whatever_was_dropped(monkeypatch):
    monkeypatch.setattr("elvi.core.scores.CHUNK", 3)
    watch = heads.Highest()
    run = prefilled(watch, LastSlots(40))
    queries = {}
    monkeypatch.setattr(heads, "chunks", lambda view: queries.setdefault(view.layer, view) and chunks(view))
    verify(run, 5, Draft.chain([9, 8, 7, 6, 5, 4]))
    for layer, view in queries.items():
        best = view.attention().argmax(-1)
        assert torch.equal(watch.row[layer], view.row[0][best])
        assert watch.row[layer].min() >= len(run.layout) - 40


def toy(monkeypatch, right):
    """Head 0 of layer 1 looks at the thing whenever one is named, head 1 at text; words are right or wrong."""

    def answered(run, first, draft):
        scene, ids = sample_scene(3, "caption"), [first, *draft.ids]
        ends = [end for _, end in run.family.tokenizer(scene.caption(), return_offsets_mapping=True)["offset_mapping"]]
        watch = run.plan.attends[0]
        watch.row.update({layer: torch.zeros(6, len(ids), dtype=torch.long) for layer in range(3)})
        for start, second, thing in heads.named(scene):
            before = sum(end <= start for end in ends) - 1
            watch.row[1][0, before] = heads.region(run.layout, thing, second, len(scene.seconds))[-1]
        logits = torch.zeros(len(ids), 200)
        logits[range(len(ids) - 1), [token if right else token + 1 for token in ids[1:]]] = 1
        return logits

    monkeypatch.setattr(heads, "verify", answered)


def test_a_head_that_hits_the_region_scores_one_over_its_size_and_others_nothing(monkeypatch):
    toy(monkeypatch, right=True)
    scores = heads.looks(random_family("qwen2_5_vl"), 3)
    words = len(list(heads.named(sample_scene(3, "caption"))))
    assert scores[1, 0] == pytest.approx(words / 4)
    assert scores.sum() == scores[1, 0]


def test_words_that_the_model_gets_wrong_do_not_count(monkeypatch):
    toy(monkeypatch, right=False)
    assert not heads.looks(random_family("qwen2_5_vl"), 3).any()


def test_a_model_that_names_nothing_right_or_sees_nothing_is_refused(monkeypatch):
    toy(monkeypatch, right=False)
    monkeypatch.setattr(heads, "Random", lambda seed: type("", (), {"sample": lambda _, pool, n: [3] * n})())
    with pytest.raises(ElviError, match="looked at what it named in 2 captions"):
        heads.count(random_family("qwen2_5_vl"), clips=2, seed=0)
    with pytest.raises(ElviError, match="reads text only"):
        heads.count(random_family("llama"), clips=2, seed=0)
    with pytest.raises(ElviError, match="ask for fewer"):
        heads.count(random_family("qwen2_5_vl"), clips=10_001, seed=0)


def test_a_scene_without_things_names_nothing():
    assert list(heads.named(Scene(((),)))) == []


def test_the_command_writes_a_table_beside_others_and_a_seed_repeats_it(tmp_path, capsys):
    table = tmp_path / "deep" / "scores.json"
    heads.save(torch.ones(2, 3) / 6, "other", table)
    written = []
    for seed in ("5", "5", "6"):
        arguments = ["search", "sparsemm", "--model", "tiny-qwen", "--clips", "2", "--seed", seed, "--out", str(table)]
        assert cli.main(arguments) == 0
        written.append(json.loads(table.read_text()))
    assert str(table) in capsys.readouterr().out
    assert written[0] == written[1] != written[2]
    assert written[0]["other"] == [[0.166667] * 3] * 2
    scores = torch.tensor(written[0]["tiny-qwen"])
    assert scores.shape == (12, 6)
    assert float(scores.sum()) == pytest.approx(1, abs=1e-4)


def test_a_table_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(ElviError, match="name another file"):
        heads.save(torch.ones(2, 3), "any", tmp_path)
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(ElviError, match="name another file"):
        heads.save(torch.ones(2, 3), "any", tmp_path / "broken.json")


def test_the_summary_says_what_the_best_heads_hold():
    scores = torch.zeros(10, 10)
    scores[3, :5] = 0.15
    scores[7, 1] = 0.25
    assert heads.summary(scores) == "the best 5 of 100 heads hold 85% of the score"
