"""Pages on speculative decoding: numbers of the files, side by side, never mixed."""

import json

import html5lib
import pytest

from elvi_survey.site import speculation
from elvi_survey.site.build import collect
from elvi_survey.site.pages import all_pages
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import Result, load_results

HTML = "{http://www.w3.org/1999/xhtml}"
COMPARED = "prefill/token-compression/compared/"


@pytest.fixture(scope="session")
def drafting(root) -> Result:
    return next(result for result in load_results(root / "results")["fastv"] if speculation.rows(result))


@pytest.fixture
def compared(site):
    return html5lib.parse((site / COMPARED / "index.html").read_text(encoding="utf-8"))


def texts(element) -> list[str]:
    return [" ".join("".join(part.itertext()).split()) for part in element.iter(f"{HTML}td") if part.itertext()]


def tables(page, words: str) -> list:
    return [part for part in page.iter(f"{HTML}div") if words in (part.get("aria-label") or "")]


def test_every_address_resolves_to_the_number_that_is_printed(compared, root):
    parts = [part for part in compared.iter() if part.get("data-result-id")]
    assert len(parts) > 40
    for part in parts:
        file, path = part.get("data-result-id").split("#")
        value = Result(file, json.loads((root / f"results/{file}.json").read_text())).value(path)
        words = "".join(part.itertext())
        if words and isinstance(value, float) and "/speculation/" in path:
            assert words == f"{value:.2f}"


def test_rows_stand_fastest_first_beside_plain_decoding(compared, drafting):
    (table,) = tables(compared, "Speculative decoding on tiny-text")
    heads = ["".join(row.itertext()) for row in table.iter(f"{HTML}th") if row.get("scope") == "row"]
    assert heads[0] == "plain decoding"
    assert [head.split("relaxation = ")[1] for head in heads[1:]] == ["0.5", "0.0", "0.75"]
    words = " ".join("".join(compared.itertext()).split())
    assert "Slower than plain decoding here: FastV at relaxation = 0.75." in words
    assert "Keeps less than 98 % of the right answers here: FastV at relaxation = 0.5, FastV at" in words


def test_relaxed_rows_stand_next_to_the_law(compared, drafting):
    """The survey's own row: K = 10 and 3.40 accepted when strict give 5.71 and 7.52."""
    (table,) = tables(compared, "Relaxed verification on tiny-text")
    rows = [texts(row) for row in table.iter(f"{HTML}tr")][1:]
    assert [(row[1], row[2]) for row in rows] == [("3.40", "3.40"), ("5.55", "5.71"), ("7.42", "7.52")]
    baseline, cell = drafting.data["baseline"]["quality"], drafting.data["cells"][1]["quality"]
    share = (cell["correct"] + cell["captions"]["correct"]) / (baseline["correct"] + baseline["captions"]["correct"])
    assert rows[1][-1] == f"{100 * share:.1f} %"


def test_other_machines_models_and_questions_make_another_table(drafting):
    def other(**changes) -> Result:
        return Result("x/y/fastv", {**drafting.data, **changes})

    protocol = {**drafting.data["protocol"], "clips": 3}
    model = {**drafting.data["model"], "name": "another"}
    found = speculation.groups({"fastv": [drafting, other(protocol=protocol), other(model=model), other()]}, ["fastv"])
    assert sorted(len(group.rows) for group in found) == [3, 3, 6]


def test_the_technique_page_has_both_pictures_and_its_model_as_a_heading(site):
    page = html5lib.parse((site / "papers/fastv/index.html").read_text(encoding="utf-8"))
    assert ["".join(part.itertext()) for part in page.iter(f"{HTML}h3")][:2] == ["tiny-qwen", "tiny-text"]
    labels = [part.get("aria-label") for part in page.iter("{http://www.w3.org/2000/svg}svg")]
    assert "Rounds by the number of drafted tokens accepted" in labels
    assert "Time of decoding by what it was spent on" in labels
    links = [part.get("href") for part in page.iter(f"{HTML}a")]
    assert f"../../{COMPARED}" in links


def test_without_drafts_there_is_no_page_and_no_link(scratch_root):
    for path in (scratch_root / "results/cpu-test").glob("tiny-*/fastv.json"):
        path.unlink()
    sources = collect(scratch_root)
    pages = {page.url: page for page in all_pages(sources)}
    assert COMPARED not in pages
    made = environment(sources, "https://example.org/r")
    for url in ("papers/fastv/", "prefill/", "prefill/token-compression/"):
        assert "compared" not in markdown(made, pages[url]).lower()


def test_a_command_names_what_goes_with_the_technique(scratch_root):
    path = scratch_root / "impls/elvi/prefill/fastv.py"
    path.write_text(
        path.read_text().replace("    needs: ", '    companions: ClassVar = ("other:depth=3",)\n    needs: ', 1)
    )
    sources = collect(scratch_root)
    page = next(page for page in all_pages(sources) if page.url == "papers/fastv/")
    assert 'elvi run other:depth=3 <span class="k">fastv</span>' in markdown(
        environment(sources, "https://x.org"), page
    )
