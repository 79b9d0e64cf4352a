from __future__ import annotations

import pytest
import torch
from streamsupport import layers, watched
from support import random_family

from elvi.errors import BudgetError
from elvi.prefill.streamingvlm import StreamingVLM

QUESTION = "what color is the star ?"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_cache_holds_sinks_and_windows_alike_in_every_layer(kind):
    def bounded(stream):
        run = stream.pieces.run
        shown = run.layout.cell[:, 0]
        for layer in layers(stream):
            steps = shown[layer.row[0]]
            assert set(steps[steps >= 0].tolist()) == set(range(max(0, int(shown.max()) - 1), int(shown.max()) + 1))
            assert torch.equal(layer.row, layers(stream)[0].row)

    stream = watched(StreamingVLM(steps=2, sinks=3, recent=5), 8, kind, bounded)
    text = ~stream.pieces.run.layout.visual[layers(stream)[0].row[0]]
    assert int(text.sum()) <= 8
    first = int(stream.pieces.run.layout.visual.nonzero()[0])
    assert layers(stream)[0].row[0, : min(3, first)].tolist() == list(range(min(3, first)))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_windows_longer_than_the_stream_change_nothing(kind):
    wide = {"steps": 1000, "sinks": 1000, "recent": 1000}
    ours, plain = watched(StreamingVLM(**wide), 5, kind), watched(None, 5, kind)
    for one, other in zip(layers(ours), layers(plain)):
        assert torch.equal(one.read()[0], other.read()[0])


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_sinks_are_turned_so_that_the_window_follows_them_without_a_gap(kind):
    family, technique = random_family(kind), StreamingVLM(steps=2, sinks=4, recent=5)
    stream, plain = watched(technique, 8, kind), watched(None, 8, kind)
    layout = plain.pieces.run.layout
    row, keys = layers(stream)[0].row[0], layers(stream)[0].read()[0]
    whole = layers(plain)[0].read()[0][:, row]  # keys of the first layer do not depend on what was evicted
    first = row < int(layout.visual.nonzero()[0])
    position = layout.position[:, row]
    shift = position[:, ~first].amin(1) - position[:, first].amax(1) - 1
    assert int(shift[0]) > 0
    moved = torch.where(first, position + shift[:, None], position)
    assert moved[:, ~first].amin(1).tolist() == (moved[:, first].amax(1) + 1).tolist()
    torch.testing.assert_close(family.rotate(keys, moved, back=True), family.rotate(whole, position, back=True))


def test_growing_positions_leave_the_keys_as_they_are():
    stream, plain = watched(StreamingVLM(steps=2, contiguous=False), 6), watched(None, 6)
    row = layers(stream)[0].row[0]
    assert torch.equal(layers(stream)[0].read()[0], layers(plain)[0].read()[0][:, row])


def test_a_question_about_the_window_is_answered_from_it():
    stream = watched(StreamingVLM(steps=2, sinks=4, recent=16), 6)
    assert stream.ask(QUESTION, max_new_tokens=3).tokens


@pytest.mark.parametrize("options", [{"steps": 0}, {"sinks": -1}, {"recent": 0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        StreamingVLM(**options)
