"""ReKV: blocks leave the window whole, the question chooses by mean keys without rotation, nothing else is read."""

import pytest
import torch
from streamsupport import layers, watched
from support import noise_clip, random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.decode.rekv import ReKV
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_first_tier_is_bounded_and_the_second_holds_whole_steps(kind):
    sizes = []
    stream = watched(ReKV(local=2), 7, kind, lambda stream: sizes.append(stream.kv_bytes))
    layout = stream.pieces.run.layout
    for layer in layers(stream):
        far = layer.far.row[0]
        assert layout.step[far].unique().tolist() == list(range(5))
        assert sorted([*far.tolist(), *layer.row[0].tolist()]) == layout.row.tolist()
    assert sizes[-1] == sizes[2]
    family = stream.pieces.run.family
    numbers = 2 * family.num_layers * family.config.num_key_value_heads * family.head_dim
    held = sum(sum(layer.far.lengths) for layer in layers(stream)) // family.num_layers // layer.row.shape[0]
    assert stream.kv_far_bytes >= held * numbers * 4


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_loading_every_block_behind_a_window_reads_what_a_mask_would_let(kind):
    """With no blocks behind the window at all the two agree with the full cache: nothing is out of reach."""
    family, clip = random_family(kind), noise_clip(4)
    plain = generate(family, clip, QUESTION, max_new_tokens=6, ignore_eos=True)
    wide = generate(family, clip, QUESTION, plan=Plan(ReKV(local=9)), max_new_tokens=6, ignore_eos=True)
    assert wide.tokens == plain.tokens


def test_representatives_are_mean_keys_without_rotation():
    technique = ReKV(local=2)
    stream = watched(technique, 5)
    run, family = stream.pieces.run, stream.pieces.run.family
    for index, layer in enumerate(layers(stream)):
        blocks = run.memory[id(technique), index]["blocks"]
        keys, row = layer.far.read()[0], layer.far.row
        plain = family.rotate(keys, run.layout.position[:, row], back=True)
        for step, block in enumerate(blocks):
            inside = run.layout.step[row[0]] == step
            torch.testing.assert_close(block, plain[:, inside].mean(1).flatten(), atol=1e-5, rtol=1e-4)


def asked(technique, seconds=6, **options):
    stream = watched(technique, seconds)
    pieces = stream.pieces.fork()
    with torch.inference_mode():
        logits = pieces.ask(QUESTION)
    return stream, pieces.run, logits


def test_the_blocks_most_like_the_question_are_loaded():
    technique = ReKV(num_blocks=2, local=2)
    stream, run, _ = asked(technique)
    for index, layer in enumerate(layers(stream)):
        memory = run.memory[id(technique), index]
        loaded = memory["loaded"]
        steps = run.layout.step[layer.far.row[0]]
        assert len(steps[loaded].unique()) == 2
        assert torch.isin(steps, steps[loaded]).sum() == len(loaded)
        assert (loaded.diff() > 0).all()


@torch.inference_mode()
def test_what_is_not_loaded_does_not_matter():
    technique = ReKV(num_blocks=1, local=2)
    stream, run, expected = asked(technique)
    kept = [run.memory[id(technique), index]["loaded"] for index in range(len(layers(stream)))]
    for layer, loaded in zip(layers(stream), kept):
        other = torch.ones(layer.far.longest, dtype=torch.bool)
        other[loaded] = False
        layer.far.values[:, : layer.far.longest][:, other] = 7.0
    torch.testing.assert_close(stream.pieces.fork().ask(QUESTION), expected)


def test_the_loaded_blocks_are_read_by_question_and_answer_alike():
    technique = ReKV(num_blocks=1, local=2)
    stream = watched(technique, 6)
    report = stream.ask(QUESTION, max_new_tokens=4, ignore_eos=True).report
    run = stream.pieces.run
    per_step = int((run.layout.step == 0).sum())
    row = 2 * run.family.head_dim * 4
    heads = run.family.config.num_key_value_heads * run.family.num_layers
    near = report.prompt_tokens - layers(stream)[0].far.longest
    assert report.kv_read_bytes == pytest.approx(heads * row * (near + per_step + 2), rel=1e-6)  # 1, 2 and 3 new rows


def test_two_questions_do_not_know_of_each_other():
    once, twice = (watched(ReKV(num_blocks=1, local=2), 6) for _ in range(2))
    twice.ask("how many circles are there ?", max_new_tokens=3)
    answers = [stream.ask(QUESTION, max_new_tokens=5, ignore_eos=True).tokens for stream in (once, twice)]
    assert answers[0] == answers[1]


def test_more_blocks_than_there_are_loads_all_of_them():
    technique = ReKV(num_blocks=50, local=2)
    stream, run, _ = asked(technique)
    assert len(run.memory[id(technique), 0]["loaded"]) == layers(stream)[0].far.longest


def test_negative_blocks_are_refused():
    with pytest.raises(BudgetError, match="num_blocks=-1"):
        ReKV(num_blocks=-1)
