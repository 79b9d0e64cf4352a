"""What is kept of a frame, next to what the techniques and the files say; evenly spaced twins."""

import json
from pathlib import Path

import pytest
from trained import trained

from elvi import cli, demo
from elvi.bench import floor, kept, provenance
from elvi.bench.measure import Protocol, answered, quality
from elvi.bench.results import ResultsError
from elvi.core.plan import Plan
from elvi.encode.aks import AKS
from elvi.media import uniform
from elvi.prefill.divprune import DivPrune
from elvi.prefill.fastv import FastV

RESULTS = Path(__file__).parents[2] / "results/cpu-2x-amd-epyc/tiny-qwen"
CLIP = demo.shipped(kept.SCENE)


@pytest.fixture(scope="module")
def family():
    return trained("tiny-qwen")


@pytest.fixture
def out(family, tmp_path):
    """A folder with the results of three techniques on this machine, as if two clips had been asked."""
    folder = tmp_path / provenance.hardware(family.device)["id"] / "tiny-qwen"
    folder.mkdir(parents=True)
    for name in ("aks", "fastv", "snapkv"):
        data = json.loads((RESULTS / f"{name}.json").read_text())
        data["protocol"]["clips"] = 2
        (folder / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


@pytest.fixture
def written(family, out):
    told = []
    data = json.loads(kept.run(family, out, command="elvi bench --kept", tell=told.append).read_text())
    assert told == ["aks", "fastv"]  # snapkv leaves all tokens to the prompt
    return data


def test_the_file_holds_settings_of_the_results_and_what_is_kept_there(written):
    assert written["clip"] | {"things": None} == {
        "question": "what color is the star ?", "steps": 16, "step": 8, "side": 96, "things": None
    }  # fmt: skip
    assert "star" in {thing["shape"] for thing in written["clip"]["things"]}
    for name, found in written["techniques"].items():
        cells = json.loads((RESULTS / f"{name}.json").read_text())["cells"]
        best = min(cells, key=lambda cell: abs(cell["kept_share"] - 0.25))
        assert found["setting"] == best["setting"]
        assert len(found["frame"]) == found["steps"][8]
        assert found["share"] == sum(found["steps"]) / (16 * 36)


def test_evenly_spaced_answers_are_those_of_the_twin_without_a_seed(family, written):
    setting = written["techniques"]["fastv"]["setting"]
    plan = Plan(floor.twin(FastV(**setting), None))
    expected = quality(answered(family, lambda _: plan, Protocol(clips=2), lambda: None))
    assert written["techniques"]["fastv"]["even"] == {"quality": expected}


def test_the_unmodified_model_keeps_every_place_of_every_step(family):
    grid, cells = kept.left(family, CLIP, Plan(), 8)
    assert grid == [6, 6]
    assert cells == [[t, y, x] for t in range(16) for y in range(6) for x in range(6)]


def test_places_of_chosen_frames_are_those_of_the_clip(family):
    steps = AKS(num_frames=2).select_frames(family.one_per_step(family.steps(CLIP)), CLIP.question)
    _, cells = kept.left(family, CLIP, Plan(AKS(num_frames=2)), 8)
    assert sorted({t for t, _, _ in cells}) == steps.tolist()
    assert len(cells) == 2 * 36


def test_cells_are_what_a_reducer_left(family):
    _, cells = kept.left(family, CLIP, Plan(DivPrune(keep_ratio=0.1)), 8)
    assert len(cells) == round(0.1 * 16 * 36)
    assert len({tuple(cell) for cell in cells}) == len(cells)


def test_a_twin_without_a_seed_takes_evenly_spaced_frames_and_tokens(family):
    frames = family.one_per_step(family.steps(CLIP))
    assert floor.twin(AKS(num_frames=4), None).select_frames(frames, CLIP.question).tolist() == [0, 4, 8, 12]
    _, cells = kept.left(family, CLIP, Plan(floor.twin(DivPrune(keep_ratio=0.25), None)), 8)
    order = [[t, y, x] for t in range(16) for y in range(6) for x in range(6)]
    assert cells == [order[i] for i in uniform(576, 144)]
    assert kept.left(family, CLIP, Plan(floor.twin(DivPrune(keep_ratio=0.0), None)), 8)[1] == []


def test_without_results_it_says_what_to_do(family, tmp_path):
    with pytest.raises(ResultsError, match="no results of a technique that leaves fewer visual tokens: measure one"):
        kept.run(family, tmp_path, command="", tell=print)


def test_command_line_measures_what_is_kept(monkeypatch, out, capsys):
    monkeypatch.setattr(kept, "run", lambda family, out, *, command, tell: (family.name, out, command))
    assert cli.main(["bench", "--kept", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{('tiny-qwen', out, f'elvi bench --kept --out {out}')}\n"
