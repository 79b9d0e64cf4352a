"""Pages on smaller caches: numbers of the files between a floor and a ceiling, never mixed; and maps of heads."""

import json
import re
from pathlib import Path

import html5lib
import pytest
import yaml

from elvi_survey.site import compression
from elvi_survey.site.build import collect
from elvi_survey.site.compression import groups
from elvi_survey.site.errors import SiteError
from elvi_survey.site.pages import all_pages
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import FORMS, Result, load_results

HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
COMPARED = "decode/kv-cache-compression/compared/"
FORM_OF = {"median": "ratio", "q1": "ratio", "q3": "ratio", "kv_read_ratio": "ratio", "kv_far_bytes": "megabytes",
           "setting": "setting", "commit": "commit"}  # fmt: skip


@pytest.fixture(scope="session")
def narrow(root) -> Result:
    return load_results(root / "results")["narrow"][0]


@pytest.fixture
def compared(site):
    return html5lib.parse((site / COMPARED / "index.html").read_text(encoding="utf-8"))


def words(element) -> str:
    return " ".join("".join(element.itertext()).split())


def table(page, label: str) -> list[list[str]]:
    """Rows of the table in the region of this name, its heads first."""
    (region,) = [part for part in page.iter(f"{HTML}div") if label in (part.get("aria-label") or "")]
    rows = [[cell for cell in row if cell.tag in (f"{HTML}th", f"{HTML}td")] for row in region.iter(f"{HTML}tr")]
    return [[words(cell) for cell in row] for row in rows]


def panels(page) -> dict[str, object]:
    """The pictures by technique, in their order."""
    (picture,) = [part for part in page.iter(f"{HTML}ul") if part.get("class") == "multiples"]
    return {words(next(item.iter(f"{HTML}a"))): next(item.iter(f"{SVG}svg")) for item in picture}


def addressed(element, tag: str) -> dict[str, tuple[float, float]]:
    """Place of each mark by the address of its number."""
    found = {}
    for parent in element.iter():
        for part in parent:
            if part.tag == f"{SVG}{tag}" and part.get("data-result-id"):
                moved = re.findall(r"[\d.]+", parent.get("transform") or "") or [part.get("cx"), part.get("cy")]
                found[part.get("data-result-id")] = (float(moved[0]), float(moved[1]))
    return found


def rendered(root: Path, url: str) -> str:
    sources = collect(root)
    page = next(page for page in all_pages(sources) if page.url == url)
    return markdown(environment(sources, "https://example.org/r"), page)


def rewrite(root: Path, name: str, change) -> None:
    path = root / f"results/cpu-test/tiny-qwen/{name}.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_every_address_resolves_to_the_number_that_is_printed(compared, root):
    parts = [part for part in compared.iter() if part.get("data-result-id")]
    assert len(parts) > 80
    for part in parts:
        file, path = part.get("data-result-id").split("#")
        value = Result(file, json.loads((root / f"results/{file}.json").read_text())).value(path)
        if part.tag == f"{HTML}span":
            last = path.split("/")[-1]
            form = "ms" if "select_s" in path else FORM_OF.get(last, "plain")
            forms = ("ratio", "share") if last in ("kv_ratio", "kv_read_ratio") else (form,)
            assert words(part) in {FORMS[each](value) for each in forms}, path


def test_no_number_of_the_comparison_lacks_an_address(compared):
    (figure,) = [part for part in compared.iter(f"{HTML}figure") if "measured" in part.get("class", "")]
    for part in list(figure.iter()):
        if part.get("data-result-id") or "tick" in part.get("class", ""):
            part.text = ""
    assert re.findall(r"\d+", words(figure).replace("about 10 % of the bytes", "")) == []


def test_panels_stand_by_what_is_kept_at_the_smallest_budget(compared):
    assert list(panels(compared)) == ["Deep", "Narrow"]


def test_each_panel_has_its_cells_its_floor_and_its_ceiling(compared):
    shown = panels(compared)
    where = "quality/captions/correct"
    narrow = "cpu-test/tiny-qwen/narrow#"
    assert set(addressed(shown["Narrow"], "path")) == {f"{narrow}cells/{i}/{where}" for i in range(4)}
    assert set(addressed(shown["Narrow"], "circle")) == {f"{narrow}random/{i}/{where}" for i in range(3)}
    assert addressed(shown["Deep"], "circle") == {}
    for name, panel in shown.items():
        levels = [part for part in panel.iter(f"{SVG}text") if words(part) == "full cache"]
        assert [part.get("data-result-id") for part in levels] == [
            f"cpu-test/tiny-qwen/{name.lower()}#baseline/{where}"
        ]
        assert len([part for part in panel.iter(f"{SVG}path") if part.get("stroke-dasharray")]) == 1


def test_all_panels_share_one_scale(compared, root):
    """Marks of different panels with the same share of bytes, or as many right, would stand at the same place."""
    found = []
    for panel in panels(compared).values():
        for address, (x, y) in {**addressed(panel, "path"), **addressed(panel, "circle")}.items():
            file, path = address.split("#")
            result = Result(file, json.loads((root / f"results/{file}.json").read_text()))
            centre = 4 if "/cells/" in f"/{path}" else 0
            cell = result.value("/".join(path.split("/")[:2]))
            read = cell.get("kv_read_ratio", cell["kv_ratio"])
            found.append((read, x + centre, result.value(path), y + centre))
    by_bytes, by_right = sorted(found), sorted(found, key=lambda each: each[2])
    assert [each[1] for each in by_bytes] == pytest.approx(sorted(each[1] for each in found), abs=0.2)
    assert [each[3] for each in by_right] == pytest.approx(sorted((each[3] for each in found), reverse=True), abs=0.2)
    low, high = by_right[0], by_right[-1]
    assert (low[3] - high[3]) / (98 - 20) == pytest.approx((high[2] - low[2]) / 120, abs=0.01)


def test_a_variant_has_a_mark_but_no_place_on_the_line(narrow, compared):
    (group,) = groups({"narrow": [narrow]}, ["narrow"])
    assert [row.ratio for row in group.curves[0].rows] == [0.08, 0.09, 0.25, 0.5]
    assert [row.ratio for row in group.curves[0].swept] == [0.08, 0.25, 0.5]
    (line,) = [p for p in panels(compared)["Narrow"].iter(f"{SVG}path") if p.get("class") == "l-mark"]
    assert len(line.get("d").split()) == 3


def test_the_table_has_floor_and_ceiling_and_a_dash_for_what_older_files_lack(compared):
    heads, full, *rows = table(compared, "Cache compression on tiny-qwen")
    assert heads == [
        "Technique", "KV bytes", "Second tier", "Read per step", "Questions right", "Random",
        "Caption sentences right", "Random", "Selecting", "TPOT ratio", "Lossless",
    ]  # fmt: skip
    assert full[:8] == ["full cache", "1.00", "–", "–", "57 of 60", "–", "114 of 120", "–"]
    assert [row[0] for row in rows[:3]] == ["Deepchunks = 1", "Deepchunks = 4", "Narrowkeep_ratio = 0.08"]
    assert rows[0][1:8] == ["0.12", "0.09 MB", "0.31", "57", "–", "114", "–"]
    assert rows[2][1:8] == ["0.08", "–", "–", "55", "54", "20", "21"]
    assert rows[3][0] == "Narrowkeep_ratio = 0.08, calm = True"
    assert rows[3][5] == "–"


def test_the_page_says_who_does_not_beat_random_selection_and_who_answers_like_the_full_cache(compared):
    remarks = [words(part) for part in compared.iter(f"{HTML}p") if part.get("class") == "remark"]
    assert [part for part in remarks if "no better than random selection of as much in caption sentences" in part] == [
        "At about 10 % of the bytes, or the nearest budget measured, no better than random selection of as much in "
        "caption sentences: Narrow at keep_ratio = 0.08 (20 right, random 21, full cache 114)."
    ]
    assert not [part for part in remarks if "as much in questions" in part]
    assert (
        "As much right as with the full cache, at the smallest budget: Deep at chunks = 1 (31 % of the bytes)."
        in remarks
    )
    assert next(part for part in remarks if "Without a random floor" in part).endswith(": Deep.")
    assert [part for part in remarks if "not above what its paper compares it with" in part] == [
        "There not above what its paper compares it with, in questions: Narrow (55 right) and Deep (57).",
        "There not above what its paper compares it with, in caption sentences: Narrow (20 right) and Deep (114).",
    ]
    assert "Runs here and is not measured yet: Waiting." in remarks


def test_one_more_right_answer_changes_the_remarks(scratch_root):
    def better(data):
        data["cells"][0]["quality"]["captions"]["correct"] = 22
        data["cells"][0]["quality"]["correct"] = 54

    rewrite(scratch_root, "narrow", better)
    rewrite(scratch_root, "deep", lambda data: data["cells"][0]["quality"].update(correct=56))
    text = rendered(scratch_root, COMPARED)
    assert "as much in caption sentences" not in text
    assert "as much in questions" in text
    assert "No technique gets as much right at its smallest budget as the full cache." in text


def test_what_each_needs_and_breaks_is_of_code_and_record(compared):
    rows = table(compared, "What each technique needs and breaks")
    assert rows[1] == ["Deep", "QUESTION_KNOWN", "–", "–", "–"]
    conflict = "A kernel that hides its weights ends it."
    assert rows[2] == ["Narrow", "QUESTION_KNOWN", "GRID", "Attention rows", conflict]
    assert "the visual tokens form a full grid" in words(compared)


def test_other_machines_models_questions_and_ceilings_make_another_group(narrow):
    def other(**changes) -> Result:
        return Result("x/y/narrow", {**narrow.data, **changes})

    protocol = {**narrow.data["protocol"], "clips": 3}
    model = {**narrow.data["model"], "name": "another"}
    hardware = {**narrow.data["hardware"], "cpu": "another"}
    baseline = {**narrow.data["baseline"], "quality": {**narrow.data["baseline"]["quality"], "correct": 1}}
    changed = [other(protocol=protocol), other(model=model), other(hardware=hardware), other(baseline=baseline)]
    found = groups({"narrow": [narrow, *changed, other()]}, ["narrow"])
    assert sorted(len(group.curves) for group in found) == [1, 1, 1, 1, 2]


def test_cells_that_draft_and_caches_of_one_size_are_left_out(narrow):
    cells = narrow.data["cells"]
    drafting = Result(
        "x/y/narrow", {**narrow.data, "cells": [{**cell, "speculation": {"speedup": 1}} for cell in cells]}
    )
    alike = Result("x/y/narrow", {**narrow.data, "cells": [{**cell, "kv_ratio": 1.0} for cell in cells]})
    assert groups({"narrow": [drafting]}, ["narrow"]) == groups({"narrow": [alike]}, ["narrow"]) == []


def test_prompts_without_right_answers_have_a_table_and_no_picture(scratch_root):
    def unasked(data):
        for cell in [data["baseline"], *data["cells"], *data["random"]]:
            nothing = {"correct": 0, "of": 0, "accuracy": 0.0}
            cell["quality"] = {**nothing, "by_kind": {}, "captions": nothing}

    for name in ("narrow", "deep"):
        rewrite(scratch_root, name, unasked)
    page = html5lib.parse(rendered(scratch_root, COMPARED))
    assert not [part for part in page.iter(f"{HTML}ul") if part.get("class") == "multiples"]
    assert table(page, "Cache compression")[2][4:8] == ["–"] * 4
    assert "random selection of as much in" not in words(page)


def test_each_category_has_the_page_of_its_own_kind(site, root):
    pages = {page.url: page.template for page in all_pages(collect(root))}
    assert pages[COMPARED] == "compression.html"
    assert pages["prefill/token-compression/compared/"] == "compared.html"
    links = {"narrow": (COMPARED, "make the cache smaller"), "fastv": ("prefill/token-compression/compared/", "draft")}
    for id_, (url, ending) in links.items():
        page = html5lib.parse((site / f"papers/{id_}/index.html").read_text(encoding="utf-8"))
        found = [words(part) for part in page.iter(f"{HTML}a") if part.get("href") == f"../../{url}"]
        assert found == [f"Compared with the other techniques that {ending}"]


def test_without_such_results_there_is_no_page_and_no_link(scratch_root):
    for name in ("narrow", "deep"):
        (scratch_root / f"results/cpu-test/tiny-qwen/{name}.json").unlink()
    assert COMPARED not in {page.url for page in all_pages(collect(scratch_root))}
    for url in ("papers/narrow/", "decode/", "decode/kv-cache-compression/"):
        assert "compared" not in rendered(scratch_root, url).lower()


def test_a_category_that_does_not_lower_these_bytes_has_no_such_page(scratch_root):
    path = scratch_root / "taxonomy/stages.yaml"
    path.write_text(path.read_text().replace("lowers: [KV bytes]", "lowers: [visual tokens]"))
    assert COMPARED not in {page.url for page in all_pages(collect(scratch_root))}


def test_the_taxonomy_of_the_survey_uses_the_word_that_is_looked_for():
    stages = yaml.safe_load((Path(__file__).parents[2] / "taxonomy/stages.yaml").read_text(encoding="utf-8"))
    lowered = [
        words for stage in stages.values() for each in stage["categories"].values() for words in each.get("lowers", [])
    ]
    assert compression.LOWERED in lowered


def test_the_map_of_heads_has_a_square_per_head_and_a_table_that_says_the_same(site):
    page = html5lib.parse((site / "papers/narrow/measured/index.html").read_text(encoding="utf-8"))
    (figure,) = [part for part in page.iter(f"{HTML}figure") if "Heads by kind" in words(part)]
    (picture,) = figure.iter(f"{SVG}svg")
    assert picture.get("aria-label") == "Heads by kind, 3 calm and 3 busy; the table below names them"
    drawn = {part.get("class"): part for part in picture.iter(f"{SVG}path")}
    assert {part.get("data-result-id") for part in drawn.values()} == {"cpu-test/tiny-qwen/narrow#heads/grid"}
    corners = {css: re.findall(r"M([\d.]+),([\d.]+)", part.get("d")) for css, part in drawn.items()}
    columns, rows = (sorted({float(at[i]) for found in corners.values() for at in found}) for i in (0, 1))
    filled = {(columns.index(float(x)), rows.index(float(y))) for x, y in corners["f-mark"]}
    assert filled == {(0, 1), (1, 0), (1, 1)}
    assert len(corners["l-mark"]) == 3
    assert table(figure, "Heads by kind") == [
        ["Layer", "calm heads", "busy heads"], ["0", "0", "1"], ["1", "–", "0, 1"], ["2", "0, 1", "–"]
    ]  # fmt: skip
    assert "Narrow(keep_ratio=0.5) after clip 10000" in words(figure)
    assert "Heads by kind" not in (site / "papers/deep/measured/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "grid", [[[0, 1], [1]], [[0, 2]], [[]], []], ids=["ragged", "a third kind", "no head", "empty"]
)
def test_a_map_that_is_no_grid_of_two_kinds_is_refused(scratch_root, grid):
    rewrite(scratch_root, "narrow", lambda data: data["heads"].update(grid=grid))
    with pytest.raises(SiteError, match="no grid of two kinds"):
        load_results(scratch_root / "results")


def test_composition_shows_needs_conflicts_and_relations_with_their_sources(site):
    page = html5lib.parse((site / "papers/narrow/index.html").read_text(encoding="utf-8"))
    contract = [part for part in page.iter(f"{HTML}div") if part.get("class") == "contract"][-1]
    assert [words(part) for part in contract] == [
        "needs", "Attention rows", "Attention weights of a few query rows.",
        "conflicts", "A kernel that hides its weights ends it.",
    ]  # fmt: skip
    links = [part.get("href") for part in page.iter(f"{HTML}a")]
    assert any(link.endswith("taxonomy/needs.yaml") for link in links)
    assert any(link.endswith("catalog/narrow.yaml") and "/blob/" in link for link in links)
    assert "Builds on FastV (Table 1)" in words(page)
    assert "Relations" not in (site / "papers/waiting/index.html").read_text(encoding="utf-8")


def test_a_record_that_does_not_run_has_a_composition_if_it_says_anything(scratch_root):
    path = scratch_root / "catalog/narrow.yaml"
    planned = path.read_text().replace("{status: runnable}", "{status: planned, reason: Later.}")
    path.write_text(planned)
    assert 'href="#compose"' in rendered(scratch_root, "papers/narrow/")
    path.write_text(re.sub("(?s)needs:.*", "", planned))
    assert "compose" not in rendered(scratch_root, "papers/narrow/")
