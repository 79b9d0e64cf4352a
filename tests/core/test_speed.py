import json
from pathlib import Path

import pytest
from support import random_family

from elvi import cli
from elvi.bench import speed
from elvi.bench.measure import spread
from elvi.bench.results import ResultsError


def ratio(value, low=None, high=None, name="name"):
    return speed.Ratio(name, "what", spread([value]), low, high)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Save ratios as if they had been measured; returns the file."""
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(speed, "load", lambda name: family)

    def run(*ratios, tell=lambda sentence: None, **options):
        monkeypatch.setattr(speed, "measured", lambda only, family, tell: iter(ratios))
        return speed.run(tmp_path, tell=tell, **{"command": "elvi bench --speed", **options})

    return run


@pytest.mark.parametrize(
    ("value", "low", "high", "met"),
    [
        (1.0, None, 1.0, True),
        (1.01, None, 1.0, False),
        (1.5, 1.5, None, True),
        (0.84, 0.85, 1.15, False),
        (9.0, None, None, True),
    ],
)
def test_a_bar_is_met_up_to_its_limits(value, low, high, met):
    assert ratio(value, low, high).met is met


def test_missed_bars_say_so():
    assert str(ratio(1.2, None, 1.0)).startswith("MISSED    1.200")


def test_ratios_without_a_bar_are_neither_met_nor_missed():
    assert str(ratio(1.2)) == f"{1.2:15.3f} (1.200 to 1.200, n=1), no bar: what"


def test_run_saves_provenance_with_the_ratios(measure):
    said = []
    path = measure(ratio(0.9, None, 1.0), tell=said.append)
    data = json.loads(path.read_text())
    assert path.name == "speed.json"
    assert said == [str(ratio(0.9, None, 1.0))]
    assert data["ratios"][0]["met"] is True
    assert {"hardware", "versions", "commit", "date", "command", "model"} <= set(data)


def test_every_theme_is_a_module_and_all_are_measured_unless_some_are_named():
    assert speed.themes("") == speed.THEMES
    assert speed.themes("kv, pruning") == ["kv", "pruning"]
    found = {path.stem for path in Path(speed.__file__).with_name("ratios").glob("*.py")}
    assert found - {"__init__", "common"} == set(speed.THEMES)


def test_only_named_themes_are_measured(monkeypatch):
    class Theme:
        def __init__(self, module):
            self.name = module.rpartition(".")[2]

        def measured(self, family, tell):
            yield self.name

    monkeypatch.setattr(speed, "import_module", Theme)
    assert list(speed.measured(["kv", "pruning"], None, None)) == ["kv", "pruning"]


def test_a_theme_replaces_its_ratios_and_leaves_the_others_with_their_origin(measure):
    measure(ratio(1.0, name="old"), ratio(2.0, name="again"), command="first")
    path = measure(ratio(3.0, name="again"), ratio(4.0, name="new"), command="second", only=["kv"])
    found = [
        (each["name"], each["value"]["median"], each["command"]) for each in json.loads(path.read_text())["ratios"]
    ]
    assert found == [("old", 1.0, "first"), ("again", 3.0, "second"), ("new", 4.0, "second")]


def test_ratios_of_older_files_take_the_origin_of_the_file(measure):
    path = measure(ratio(1.0, name="old"), command="first")
    data = json.loads(path.read_text())
    for key in speed.ORIGIN:
        del data["ratios"][0][key]
    path.write_text(json.dumps(data))
    measure(ratio(3.0, name="new"), command="second", only=["kv"])
    assert json.loads(path.read_text())["ratios"][0]["command"] == "first"


def test_all_themes_together_start_afresh(measure):
    measure(ratio(1.0, name="old"))
    path = measure(ratio(1.0, name="new"))
    assert [each["name"] for each in json.loads(path.read_text())["ratios"]] == ["new"]


@pytest.mark.parametrize("key", speed.SAME)
def test_ratios_of_other_conditions_are_not_mixed(measure, key):
    path = measure(ratio(1.0, name="old"))
    path.write_text(json.dumps({**json.loads(path.read_text()), key: {"other": 1}}))
    with pytest.raises(ResultsError, match=f"cannot be added to, its {key} was"):
        measure(ratio(1.0, name="new"), only=["kv"])


def test_command_line_takes_all_themes_or_some(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(speed, "run", lambda out, *, command, tell, only: asked.append((command, list(only))))
    assert cli.main(["bench", "--speed"]) == cli.main(["bench", "--speed", "kv,pruning"]) == 0
    assert asked == [("elvi bench --speed", [*speed.THEMES]), ("elvi bench --speed kv,pruning", ["kv", "pruning"])]
