"""The drawn figures say what the data says."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from elvi_survey.codefacts import read_techniques
from elvi_survey.site.figures import STATIONS, Request, acts_at, lifecycle, token_path
from elvi_survey.site.plots import BOTTOM, TOP, Panel, Point, panel, scale_for

REPOSITORY = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_the_request_of_the_home_page_follows_from_the_published_configuration():
    request = Request()
    assert request.patches == 4 * 32 * 32
    assert request.visual == 1024
    assert request.cache_bytes == 1056 * 57344


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
def test_each_picture_of_the_lifecycle_is_well_formed_and_has_no_colour_of_its_own(stage):
    picture = lifecycle(stage, Request())
    assert drawn(picture).get("viewBox") == "0 0 372 206"
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb|style=", picture)


def test_the_pictures_hold_one_line_a_layer_and_one_disc_a_token():
    picture = drawn(lifecycle("decode", Request()))
    assert len(picture.findall(f".//{SVG}circle")) == 64
    assert picture.find(f"{SVG}path").get("d").count("M") == 28


@pytest.mark.parametrize(("method", "stage", "station"), [
    ("reduce", "encode", "tokens"), ("reduce", "prefill", "layers"), ("select_frames", "encode", "frames"),
    ("keep", "decode", "cache"), ("pack", "decode", "cache"), ("start", "decode", "output"),
    ("attend", "prefill", "layers"), ("resize", "encode", "frames"),
])  # fmt: skip
def test_the_method_names_tell_where_a_technique_acts(method, stage, station):
    assert [place for _, place, _ in acts_at([method, "helper"], stage)] == [station]


def test_every_technique_of_the_repository_acts_somewhere():
    techniques = [
        code for code in read_techniques(REPOSITORY).values() if code.stage in {"encode", "prefill", "decode"}
    ]
    assert techniques
    assert [code.id for code in techniques if not acts_at(code.methods, code.stage)] == []


def test_the_token_path_marks_the_touched_stations_only():
    picture = drawn(token_path({"cache"}, "decode"))
    texts = {text.text: text.get("class") for text in picture.iter(f"{SVG}text")}
    assert list(texts) == list(STATIONS)
    assert [name for name, css in texts.items() if "t-s" in css] == ["cache"]


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("values", [[0.683, 0.95], [0.0, 0.1], [0.4, 1.73], [1.0], [0.99, 1.0], [3.2], [41.0]])
def test_a_scale_holds_its_values_and_ends_on_ticks(values, floor):
    scale = scale_for(values, floor=floor)
    assert all(TOP - 1e-6 <= scale.y(value) <= BOTTOM + 1e-6 for value in [*values, 1.0])
    assert scale.ticks()[-1] == pytest.approx(scale.high)
    assert len(scale.ticks()) <= 8


def test_a_panel_has_a_mark_for_each_point_and_escapes_its_labels():
    points = [Point(0.2, 0.5, "m/t#cells/0", 0.4, 0.6), Point(0.5, 0.9, "m/t#cells/1")]
    shown = Panel(points, [], Point(1.0, 1.0, ""), "plain & simple", scale_for([0.5, 0.9], floor=True))
    picture = drawn(panel("decode", "<b>", "a & b", shown))
    traced = [path.get("data-result-id") for path in picture.iter(f"{SVG}path")]
    assert [address for address in traced if address] == ["m/t#cells/0", "m/t#cells/1"]
    assert {"<b>", "plain & simple"} <= {text.text for text in picture.iter(f"{SVG}text")}


def test_the_drawn_model_is_the_one_of_the_taxonomy():
    models = yaml.safe_load((REPOSITORY / "taxonomy/models.yaml").read_text(encoding="utf-8"))
    model = next(entry for entry in models.values() if entry["title"] == "Qwen2.5-VL-7B")
    request = Request()
    assert (model["layers"], model["kv_heads"], model["head_dim"]) == (request.layers, request.kv_heads, request.head)
    assert (model["vision"]["patch"], model["vision"]["spatial_merge"]) == (request.patch, request.merge)
