import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from support import noise_clip, random_family

from elvi import cli, discover, spec
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.media import write_video


@pytest.fixture
def model(monkeypatch):
    """Commands find a random model under every name."""
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(cli, "_load", lambda name: family)
    return family


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    code = cli.main(arguments)
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    """The one sentence with which a command refuses."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("elvi: ")
    assert err.count("\n") == 1
    return err


def test_list_names_every_technique_with_stage_and_summary(capsys):
    _, out, _ = run(capsys, "list", "--json")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == discover.list_all()
    assert {"id": "fastv", "stage": "prefill", "summary": discover.summary_of("fastv")} in rows
    assert all(row["summary"].endswith(".") for row in rows)


def test_list_can_be_narrowed_to_a_stage(capsys):
    _, out, _ = run(capsys, "list", "--stage", "prefill", "--json")
    assert {row["stage"] for row in json.loads(out)} == {"prefill"}


def test_listing_imports_no_torch():
    code = (
        "import sys; from elvi.cli import main; main(['list']); assert 'torch' not in sys.modules; main(['run', '-h'])"
    )
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0
    assert done.stderr == ""


def test_show_gives_fields_facts_and_a_command(capsys):
    code, out, _ = run(capsys, "show", "fastv")
    assert code == 0
    assert "keep_ratio  float  0.5" in out
    assert Fact.QUESTION_KNOWN.value in out
    assert "elvi run fastv" in out


@pytest.mark.parametrize("name", discover.list_techniques())
def test_every_field_of_every_technique_can_be_set_in_writing(name):
    written = discover.technique(name)()
    fields = vars(written)
    text = ",".join(f"{field}={value}" for field, value in fields.items())
    assert spec.parse(f"{name}:{text}" if text else name) == written


def test_json_is_one_object_with_the_documented_keys(model, capsys):
    arguments = ("fastv:layer=1,keep_ratio=0.5", "--sample", "10002", "--max-new-tokens", "3", "--baseline", "--json")
    code, out, err = run(capsys, "run", *arguments)
    result = json.loads(out)
    assert (code, err) == (0, "")
    keys = {"plan", "question", "expected", "answer", "tokens", "report"}
    assert set(result) == keys | {"baseline"}
    assert set(result["baseline"]) == keys
    assert result["plan"] == ["FastV(layer=1, keep_ratio=0.5)"]
    assert len(result["tokens"]) == result["report"]["generated_tokens"]
    assert result["report"]["kv_bytes"] < result["baseline"]["report"]["kv_bytes"]
    assert result["baseline"]["plan"] == []


def test_table_shows_the_ratio_of_every_figure(model, capsys):
    _, out, _ = run(capsys, "run", "fastv:layer=1", "--sample", "10002", "--max-new-tokens", "2", "--baseline")
    (line,) = [line for line in out.splitlines() if line.startswith("visual tokens per layer")]
    before, after, ratio = map(float, line.split()[-3:])
    assert (after, ratio) == (pytest.approx(before * 2 / 3, abs=0.1), 0.67)


def test_video_file_with_own_question_has_no_expected_answer(model, capsys, tmp_path):
    write_video(tmp_path / "clip.mp4", noise_clip(2), frames_per_second=2)
    arguments = ("--video", str(tmp_path / "clip.mp4"), "--prompt", "what color is the star ?")
    _, out, _ = run(capsys, "run", *arguments, "--max-new-tokens", "2", "--json")
    result = json.loads(out)
    assert result["expected"] is None
    assert result["question"] == "what color is the star ?"
    assert result["report"]["visual_tokens"]["encoded"] == 72


def test_prompt_alone_is_text_only(model, capsys):
    _, out, _ = run(capsys, "run", "--prompt", "what color ?", "--max-new-tokens", "2", "--json")
    assert "encoded" not in json.loads(out)["report"]["visual_tokens"]


@dataclass(frozen=True)
class NeedsClassToken:
    needs: ClassVar[frozenset] = frozenset({Fact.CLS_TOKEN})
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False
    at: ClassVar[Layer] = Layer(0)

    def reduce(self, tokens, seen):
        return tokens


def test_class_token_that_the_tower_lacks_is_refused(model, capsys, monkeypatch):
    monkeypatch.setattr(discover, "technique", lambda name: NeedsClassToken)
    assert "needs that the vision tower has a class token" in refused(capsys, "run", "anything")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "fastvv"], "There is no technique 'fastvv': did you mean fastv"),
        (["show", "nothing-like-it"], "`elvi list` names them all"),
        (["run", "fastv:layr=2"], "fastv has no field 'layr': it has layer, keep_ratio."),
        (["run", "fastv:layer=x"], "fastv takes int for layer, and 'x' is not one"),
        (["run", "fastv:layer"], "'layer' in 'fastv:layer' sets nothing: write field=value"),
        (["run", "fastv:keep_ratio=3"], "keep_ratio=3.0, which is out of range"),
        (["run", "fastv:layer=40"], "asked to act at layer 40, but random-qwen has 3 layers"),
        (["run", "fastv", "--max-new-tokens", "0"], "leaves no token to generate"),
        (["run", "fastv", "--temperature", "-1"], "is negative"),
        (["run", "--video", "nowhere.mp4", "--prompt", "x"], "nowhere.mp4 does not exist"),
        (["run", "--video", __file__, "--prompt", "x"], "cannot be decoded as a video"),
        (["run", "--image", __file__, "--prompt", "x"], "cannot be read as an image"),
        (["run", "--image", __file__], "No question was asked about the pictures"),
        (["bench"], "Nothing was named to measure"),
        (["bench", "fastvv"], "did you mean fastv"),
        (["bench", "--speed", "generation,sped"], "asked for 'sped', which it does not measure: use generation, "),
        (["bench", "fastv", "--budget", "0.1,lots"], "'lots' is not one"),
        (["bench", "fastv", "--budget", "7"], "out of range"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model, capsys, arguments, sentence):
    assert sentence in refused(capsys, *arguments)


def test_video_without_frames_is_refused(model, capsys, tmp_path):
    import av

    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.height = stream.width = 96
        container.start_encoding()
    assert "holds no video frame" in refused(capsys, "run", "--video", str(tmp_path / "empty.avi"), "--prompt", "x")


def test_model_family_that_is_not_supported_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "a family that is not supported" in refused(capsys, "run", "fastv", "--model", str(tmp_path))


def test_bench_refuses_an_unwritable_folder(model, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "bench", "fastv:layer=1", "--out", str(tmp_path / "file"))
    assert code == 2
    assert "cannot be written" in err
    assert "Traceback" not in err


def test_interruption_exits_with_130(model, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("elvi.bench.sweep.run", interrupted)
    code, _, err = run(capsys, "bench", "fastv:layer=1")
    assert code == 130
    assert "--resume goes on" in err
