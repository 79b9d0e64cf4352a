"""The page on token reduction: all that leaves fewer visual tokens, between its floors, each number from its file."""

import copy
import gzip
import json
import re
from pathlib import Path

import html5lib
import pytest

from elvi_survey.codefacts import read_techniques
from elvi_survey.site.build import collect
from elvi_survey.site.errors import SiteError
from elvi_survey.site.pages import all_pages
from elvi_survey.site.reduction import BUDGET, groups
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import FORMS, Result, load_machines, load_results

HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
REPOSITORY = Path(__file__).parents[2]
URL = "reduction/"
FORM_OF = {"kept_share": "share", "share": "share", "setting": "setting", "q1": "ratio", "q3": "ratio"}


def words(element) -> str:
    return " ".join("".join(element.itertext()).split())


def rendered(root: Path) -> str:
    sources = collect(root)
    page = next(page for page in all_pages(sources) if page.url == URL)
    return markdown(environment(sources, "https://example.org/r"), page)


def remarks(root: Path) -> list[str]:
    page = html5lib.parse(rendered(root))
    return [words(part) for part in page.iter(f"{HTML}p") if part.get("class") == "remark"]


def rewrite(root: Path, change, name: str = "tiny-qwen/fastv") -> None:
    path = root / f"results/cpu-test/{name}.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def ask_needles(found: list[int], random: list[int], of: int = 10):
    """A change of a file: so many needles found by the cells and by their random twins."""

    def change(data):
        counts = [of, *found, *random]
        for cell, correct in zip([data["baseline"], *data["cells"], *data["random"]], counts, strict=True):
            cell["quality"]["by_kind"]["needle"] = {"correct": correct, "of": of}

    return change


@pytest.fixture
def pair(scratch_root: Path) -> Path:
    """A root with a second technique, Sieve, that acts on frames and does not ask the question."""
    record = (scratch_root / "catalog/fastv.yaml").read_text()
    record = record.replace("name: FastV", "name: Sieve").replace("2403.06764", "2403.06765")
    record = re.sub(
        "placements:\n.*", "placements:\n- {stage: encode, category: keyframe-selection, source: ours}", record
    )
    (scratch_root / "catalog/sieve.yaml").write_text(record.replace("An Image is Worth", "A Sieve is Worth"))
    code = (scratch_root / "impls/elvi/prefill/fastv.py").read_text().replace("Fact.QUESTION_KNOWN", "")
    code = code.replace("FastV", "Sieve").replace(
        "def reduce(self, tokens, seen)", "def select_frames(self, clip, question)"
    )
    (scratch_root / "impls/elvi/encode").mkdir()
    (scratch_root / "impls/elvi/encode/sieve.py").write_text(code)
    rewrite(scratch_root, ask_needles([4, 8, 9], [2, 5, 8]))
    (scratch_root / "results/cpu-test/kept.json").unlink()
    data = json.loads((scratch_root / "results/cpu-test/tiny-qwen/fastv.json").read_text()) | {"technique": "sieve"}
    ask_needles([7, 8, 9], [2, 5, 8])(data)
    (scratch_root / "results/cpu-test/tiny-qwen/sieve.json").write_text(json.dumps(data))
    return scratch_root


@pytest.fixture
def page(site):
    return html5lib.parse((site / URL / "index.html").read_text(encoding="utf-8"))


def test_every_address_resolves_to_the_number_that_is_printed(page, root):
    parts = [part for part in page.iter() if part.get("data-result-id")]
    assert len(parts) > 30
    for part in parts:
        file, path = part.get("data-result-id").split("#")
        value = Result(file, json.loads((root / f"results/{file}.json").read_text())).value(path)
        if part.get("class") == "num" and part.tag == f"{HTML}span":
            keys = path.split("/")
            form = "ms" if "select_s" in path else FORM_OF.get(keys[-1], "plain")
            forms = ("share", "ratio") if keys[-1] == "median" and form != "ms" else (form,)
            assert words(part) in {FORMS[each](value) for each in forms}, path


def test_rows_of_a_table_hold_right_answers_the_floor_and_the_tokens_left(page, root):
    result = load_results(root / "results")["fastv"][0]
    rows = [part for part in page.iter(f"{HTML}tr") if part.get("data-result-id") == f"{result.address}#cells"]
    assert len(rows) == 2  # a table of questions, and one of caption sentences
    for row, where in zip(rows, ("quality", "quality/captions"), strict=True):
        cells = [words(cell) for cell in row.iter(f"{HTML}td")]
        pairs = [(f"cells/{i}", f"random/{i}") for i in range(3)]
        assert cells == ["aware"] + [
            f"{result.value(f'{ours}/{where}/correct')} {result.value(f'{random}/{where}/correct')} at "
            f"{100 * result.value(f'{ours}/kept_share'):.0f} %"
            for ours, random in pairs
        ]


def test_a_panel_draws_what_its_table_says(page, root):
    result = load_results(root / "results")["fastv"][0]
    picture = next(part for part in page.iter(f"{SVG}svg") if "Right questions" in (part.get("aria-label") or ""))
    (marks,) = [part for part in picture.iter(f"{SVG}g") if part.get("data-result-id")]
    line = next(part.get("d") for part in marks if part.get("class") == "l-mark")
    drawn = [tuple(map(int, point.split(","))) for point in line[1:].split()]
    cells = result.data["cells"]
    assert drawn == [
        (round(24 + 262 * cell["kept_share"]), round(150 - 128 * cell["quality"]["correct"] / 60)) for cell in cells
    ]
    (dots,) = [part.get("d") for part in picture.iter(f"{SVG}path") if part.get("stroke-linecap")]
    assert dots.count("M") == 3
    (cross,) = [part.get("d") for part in picture.iter(f"{SVG}path") if "h6m-3-3v6" in part.get("d")]
    assert cross == f"M{drawn[0][0] - 3},{round(150 - 128 * 44 / 60)}h6m-3-3v6"


def test_techniques_stand_at_the_seam_at_which_they_act_first(pair):
    (group,) = groups(load_results(pair / "results"), read_techniques(pair), {})
    assert [(words, [curve.id for curve in curves]) for _, words, curves in group.seams] == [
        ("Frames, before the vision encoder", ["sieve"]), ("Tokens in the language model", ["fastv"])
    ]  # fmt: skip
    assert {curve.id: curve.asks for curve in group.curves} == {"fastv": True, "sieve": False}


def test_a_technique_that_leaves_the_tokens_alone_does_not_stand_here(root):
    found = groups(load_results(root / "results"), read_techniques(root), {})
    assert {curve.id for group in found for curve in group.curves} == {"fastv"}
    assert len(found) == 1  # its cells that draft leave all tokens


def test_the_page_counts_who_is_above_random_and_names_who_is_below(pair):
    def worse(data):
        data["random"][0]["quality"]["captions"]["correct"] = 83
        data["random"][0]["quality"]["correct"] = 41

    rewrite(pair, worse)
    said = [text for text in remarks(pair) if "against random selection" in text]
    assert "in questions: 1 get more right, 1 as many, 0 fewer. As many: FastV." in said[0]
    assert "in needles: 2 get more right, 0 as many, 0 fewer." in said[1]
    assert "in caption sentences: 1 get more right, 0 as many, 1 fewer. Fewer: FastV (82, random 83)." in said[2]


def test_the_comparison_is_at_the_setting_nearest_to_the_budget(pair):
    rewrite(pair, lambda data: [cell.update(kept_share=share) for cell, share in zip(data["cells"], (0.1, 0.3, 0.6))])
    (group,) = groups(load_results(pair / "results"), read_techniques(pair), {})
    near = {curve.id: curve.near.share for curve in group.curves}
    assert BUDGET == 0.25
    assert near == {"fastv": 0.3, "sieve": 0.25}


def test_question_aware_stands_against_question_blind_on_needles_and_the_page_says_why_not(pair):
    said = [text for text in remarks(pair) if "question-aware" in text]
    assert said[0].startswith(
        "At about 25 % of the visual tokens, the question-aware 1 techniques find 40 % of the needles, the "
        "question-blind 1 techniques find 70 % of the needles: question-aware selection is not ahead. Random selection "
        "of as many finds 20 %. Below the mean of the question-blind though they see the question: FastV (4 of 10)."
    )
    assert any(text.startswith("Why not") for text in remarks(pair))
    rewrite(pair, ask_needles([9, 9, 9], [2, 5, 8]))
    assert "question-aware selection is ahead" in "".join(remarks(pair))
    assert not any(text.startswith("Why not") for text in remarks(pair))


def test_without_needles_there_is_no_such_task(page):
    assert "needle" not in words(page)


def test_evenly_spaced_selection_counts_only_at_the_setting_that_is_compared(scratch_root):
    below = "There fewer than evenly spaced selection of as many: FastV (41, evenly spaced 44)."
    assert below in remarks(scratch_root)
    rewrite(scratch_root, lambda data: data["techniques"]["fastv"]["setting"].update(keep_ratio=0.5), "kept")
    assert below not in remarks(scratch_root)


def test_what_selects_more_than_once_has_no_evenly_spaced_floor(scratch_root):
    rewrite(scratch_root, lambda data: data["techniques"]["fastv"].update(even=None), "kept")
    text = rendered(scratch_root)
    assert "What FastV keeps" in text
    assert "h6m-3-3v6" not in text


def test_what_choosing_costs_and_who_misses_its_bar_come_from_the_file_of_ratios(page, scratch_root):
    region = next(part for part in page.iter(f"{HTML}div") if "What choosing costs" in (part.get("aria-label") or ""))
    row = [words(cell) for cell in region.iter() if cell.tag in (f"{HTML}th", f"{HTML}td")][6:]
    assert row == ["FastVkeep_ratio = 0.1", "25 %", "1.00 ms", "0.60", "23 %", "1.04"]
    costly = "Not worth its time there, choosing takes more than a tenth of what it saves: FastV (23 %)."
    assert costly in [words(part) for part in page.iter(f"{HTML}p")]
    rewrite(scratch_root, lambda data: data["ratios"][1].update(met=True), "speed")
    assert costly not in remarks(scratch_root)
    loops = next(part for part in page.iter(f"{HTML}div") if part.get("aria-label") == "Compiled loops")
    assert words(loops).endswith("plain torch loop7.50 7.49 to 7.515yes")


def test_a_map_has_a_square_per_place_that_is_kept_and_a_bar_per_step_with_tokens(page):
    (picture,) = [part for part in page.iter(f"{SVG}svg") if "What FastV keeps" in (part.get("aria-label") or "")]
    (cells,) = [part for part in picture.iter(f"{SVG}path") if part.get("data-result-id")]
    assert re.findall(r"M([\d.]+),([\d.]+)", cells.get("d")) == [("22", "2"), ("22", "22"), ("2", "42")]
    bars = [part.get("d") for part in picture.iter(f"{SVG}path") if "v-" in part.get("d") and part is not cells][-1]
    assert bars.count("v-") == 3
    assert "a red star, a blue circle" in words(page)


def test_without_files_of_the_machine_the_page_stands_with_dashes(scratch_root):
    for name in ("kept", "speed"):
        (scratch_root / f"results/cpu-test/{name}.json").unlink()
    text = rendered(scratch_root)
    assert "not measured yet" in text
    assert "What each keeps" not in text
    assert "Compiled loops" not in text


def test_files_of_another_machine_are_not_shown(scratch_root):
    for name in ("kept", "speed"):
        rewrite(scratch_root, lambda data: data["hardware"].update(id="another"), name)
    assert "What each keeps" not in rendered(scratch_root)


def test_another_models_maps_are_not_shown(scratch_root):
    rewrite(scratch_root, lambda data: data["model"].update(name="another"), "kept")
    assert "What each keeps" not in rendered(scratch_root)


def test_a_file_of_the_machine_of_another_schema_is_refused(scratch_root):
    rewrite(scratch_root, lambda data: data.update(schema=2), "kept")
    with pytest.raises(SiteError, match="schema 1"):
        load_machines(scratch_root / "results")


def test_other_protocols_and_answers_make_another_group(root):
    (result,) = [each for each in load_results(root / "results")["fastv"] if each.value("model/name") == "tiny-qwen"]
    other = copy.deepcopy(result.data)
    other["protocol"]["clips"] = 3
    found = groups({"fastv": [result, Result("x/y/fastv", other)]}, read_techniques(root), {})
    assert [len(group.curves) for group in found] == [1, 1]


def test_pages_of_stages_categories_and_techniques_lead_here(pair):
    sources = collect(pair)
    made = environment(sources, "https://example.org/r")
    for page in all_pages(sources):
        if page.url in ("", "encode/", "encode/keyframe-selection/", "papers/sieve/"):
            assert f'"{page.to(URL)}"' in markdown(made, page), page.url


def test_what_runs_and_is_not_measured_is_named(pair):
    (pair / "results/cpu-test/tiny-qwen/sieve.json").unlink()
    assert "Runs here and is not measured yet: Sieve." in remarks(pair)


def test_without_results_there_is_no_page_and_no_link(pair):
    for path in (pair / "results/cpu-test/tiny-qwen").glob("*.json"):
        path.unlink()
    sources = collect(pair)
    pages = {page.url: page for page in all_pages(sources)}
    assert URL not in pages
    assert URL not in markdown(environment(sources, "https://example.org/r"), pages["papers/sieve/"])


def test_the_page_of_the_survey_has_every_measured_technique_and_stays_small():
    sources = collect(REPOSITORY)
    text = rendered(REPOSITORY)
    assert len(gzip.compress(text.encode())) < 25_000
    for id_, results in sources.results.items():
        code = sources.techniques[id_]
        reduces = any({"reduce", "select_frames"} & set(part.methods) for part in code.classes)
        if reduces and any(cell["kept_share"] < 1 for result in results for cell in result.data["cells"]):
            assert f"/{id_}#cells" in text, id_
