"""Every measured number on a page leads back to the value it came from."""

import json
import re
import shutil
from pathlib import Path

import html5lib
import pytest

from elvi_survey.site.build import collect
from elvi_survey.site.pages import all_pages
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import FORMS, Result, budget_axis, load_results

HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
FORM_OF = {
    "kept_share": "share", "kv_ratio": "ratio", "median": "ratio", "q1": "ratio", "q3": "ratio",
    "forwards": "count", "setting": "setting", "commit": "commit", "plan": "list",
}  # fmt: skip


@pytest.fixture(scope="session")
def result(root: Path) -> Result:
    return load_results(root / "results")["fastv"][0]


@pytest.fixture
def measured(site: Path):
    """The figure with the measurements on the technique's page."""
    page = html5lib.parse((site / "papers/fastv/measured/index.html").read_text(encoding="utf-8"))
    return next(element for element in page.iter(HTML + "figure") if "measured" in element.get("class", ""))


def addressed(element) -> list:
    return [part for part in element.iter() if part.get("data-result-id")]


def test_every_address_resolves_and_the_text_is_its_value(measured, root, result):
    parts = addressed(measured)
    assert len(parts) > 40
    for part in parts:
        file, path = part.get("data-result-id").split("#")
        assert (root / f"results/{file}.json").is_file()
        value, words = result.value(path), "".join(part.itertext())
        if words and part.tag == f"{HTML}span":
            form = "ms" if "select_s" in path else FORM_OF.get(path.split("/")[-1], "plain")
            assert words == FORMS[form](value), path


def test_no_number_in_the_measurements_lacks_an_address(measured):
    for part in list(measured.iter()):
        if part.get("data-result-id") or "tick" in part.get("class", ""):
            part.text = ""
            for below in list(part):
                part.remove(below)
    assert not re.search(r"\d", "".join(measured.itertext()))


def test_the_machine_the_kernel_and_the_number_of_clips_are_named(measured):
    words = " ".join("".join(measured.itertext()).split())
    assert "sdpa attention kernel" in words
    assert "1 of 2 cores of Test CPU" in words
    assert "60 clips" in words
    assert "commit 0123456" in words


def test_the_page_says_where_random_selection_is_better(scratch_root):
    def text() -> str:
        sources = collect(scratch_root)
        page = next(page for page in all_pages(sources) if page.url == "papers/fastv/")
        return markdown(environment(sources, "https://example.org/r"), page)

    assert "does not beat random selection" not in text()
    path = scratch_root / "results/cpu-test/tiny-qwen/fastv.json"
    data = json.loads(path.read_text())
    data["random"][1]["quality"]["captions"]["correct"] = data["cells"][1]["quality"]["captions"]["correct"] + 7
    path.write_text(json.dumps(data))
    assert text().count(" right, random ") == 1


def test_marks_of_both_panels_stand_for_all_cells(measured):
    marks = sorted(mark.get("data-result-id").split("#")[1] for mark in addressed(measured) if mark.tag == f"{SVG}path")
    random = [f"random/{i}/quality/accuracy" for i in range(3)]
    ours = [f"cells/{i}/{value}" for i in range(3) for value in ("quality/accuracy", "ttft_ratio/median")]
    assert marks == ours + random


def test_reported_numbers_stand_apart_from_measured_ones(site):
    page = (site / "papers/fastv/index.html").read_text(encoding="utf-8")
    before, measured, reported = re.split('id="cost"|id="reported"', page)
    assert "src measured" in measured
    assert "src reported" not in before + measured
    assert "57 %" in reported
    assert "57 %" not in before + measured


def test_a_technique_without_results_says_so(scratch_root):
    shutil.rmtree(scratch_root / "results/cpu-test")
    sources = collect(scratch_root)
    page = next(page for page in all_pages(sources) if page.url == "papers/fastv/")
    text = markdown(environment(sources, "https://example.org/r"), page)
    assert "Not measured yet" in text
    assert "data-result-id" not in text


def _with_budgets(result: Result, **values: list[float]) -> Result:
    data = json.loads(json.dumps(result.data))
    for key, row in values.items():
        for cell, value in zip(data["cells"], row, strict=True):
            cell[key] = value
    return Result(result.address, data)


def test_the_axis_is_the_budget_that_varies(result):
    axis = budget_axis(result)
    assert axis is not None
    assert axis.path == "kept_share"
    bits = budget_axis(_with_budgets(result, kept_share=[1.0, 1.0, 1.0], kv_ratio=[0.2, 0.4, 0.6]))
    assert bits is not None
    assert bits.path == "kv_ratio"
    assert budget_axis(_with_budgets(result, kept_share=[1.0] * 3, kv_ratio=[1.0] * 3)) is None
    fetched = budget_axis(_with_budgets(result, kv_far_bytes=[0.0, 9.0, 9.0], kv_read_ratio=[0.1, 0.2, 0.3]))
    assert fetched is not None
    assert fetched.path == "kv_read_ratio"


def test_the_page_of_a_record_leads_to_all_its_numbers_and_plots_them(site):
    page = html5lib.parse((site / "papers/fastv/index.html").read_text(encoding="utf-8"))
    assert "measured/" in {
        (link.get("href") or "").removeprefix("../../papers/fastv/") for link in page.iter(HTML + "a")
    }
    assert len([mark for mark in addressed(page) if mark.tag == f"{SVG}path"]) > 8
    assert not [table for table in page.iter(HTML + "table") if "TTFT ratio" in "".join(table.itertext())]
