"""New papers are listed once, in their category, and what was listed is remembered."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from replies import Stand

from elvi.errors import ElviError
from elvi_survey import web as web_module
from elvi_survey.cli import main
from elvi_survey.discover import FIRST_DAYS, MOST, OVERLAP_DAYS, PAGE, Cursor, discover, markdown, plain
from elvi_survey.load import load_catalog, read_catalog
from elvi_survey.queries import QUERIES, read_queries, search_terms

TODAY = date(2026, 11, 20)
QUERY = 'prefill/token-compression:\n- \'"token pruning"\'\ndecode/kv-cache:\n- \'"KV cache" "vision-language"\'\n'


def entry(id_: str, title: str, day: str) -> str:
    return (
        f"<entry><id>http://arxiv.org/abs/{id_}v1</id><title>{title}</title><published>{day}T12:00:00Z</published>"
        "<author><name>Ada Lovelace</name></author></entry>"
    )


def feed(*entries: str) -> bytes:
    return f'<feed xmlns="http://www.w3.org/2005/Atom">{"".join(entries)}</feed>'.encode()


NEW = entry("2611.00001", "NewThing: Prune *all* of it", "2026-11-18")
OLD = entry("2609.00001", "Long ago", "2026-09-01")
THERE = entry("2403.06764", "FastThing", "2026-11-18")
RENAMED = entry("2611.00002", "FastThing - Half the tokens", "2026-11-17")


@pytest.fixture
def queried(tree: Path, put) -> Path:
    put({QUERIES: QUERY})
    return tree


def ask(tree: Path, tmp_path: Path, stand: Stand, cursor: Cursor, today: date = TODAY):
    catalog, reading = read_catalog(tree)
    return discover(stand.web(tmp_path / "cache"), catalog, reading, cursor, today)


def test_a_new_paper_is_listed_in_the_first_category_that_finds_it(queried: Path, tmp_path: Path) -> None:
    stand = Stand({"query": feed(NEW, THERE, RENAMED, OLD)})
    found, failed = ask(queried, tmp_path, stand, cursor := Cursor())
    assert {place: [paper.arxiv for paper in papers] for place, papers in found.items()} == {
        "prefill/token-compression": ["2611.00001"]
    }
    assert failed == []
    assert cursor.asked == dict.fromkeys(["prefill/token-compression", "decode/kv-cache"], "2026-11-20")
    assert cursor.listed == {"2611.00001": "2026-11-18"}
    assert stand.slept == [3.0]


def test_what_was_listed_is_not_listed_again_and_late_papers_are_found(queried: Path, tmp_path: Path) -> None:
    cursor = Cursor()
    ask(queried, tmp_path / "a", Stand({"query": feed(NEW)}), cursor)
    late = entry("2611.00003", "Shown late", str(TODAY - timedelta(OVERLAP_DAYS)))
    later = TODAY + timedelta(1)
    found, _ = ask(queried, tmp_path / "b", Stand({"query": feed(NEW, late)}), cursor, later)
    assert [paper.arxiv for papers in found.values() for paper in papers] == ["2611.00003"]


def test_the_first_run_looks_back_a_month(queried: Path, tmp_path: Path) -> None:
    first = TODAY - timedelta(FIRST_DAYS + OVERLAP_DAYS)
    entries = [entry("2610.00001", "In", str(first)), entry("2610.00002", "Out", str(first - timedelta(1)))]
    found, _ = ask(queried, tmp_path, Stand({"query": feed(*entries)}), Cursor())
    assert [paper.title for papers in found.values() for paper in papers] == ["In"]


def test_a_category_that_cannot_be_asked_keeps_its_cursor(queried: Path, tmp_path: Path) -> None:
    stand = Stand({"KV+cache": 429, "query": feed(NEW)})
    found, failed = ask(queried, tmp_path, stand, cursor := Cursor())
    assert (list(found), list(cursor.asked)) == (["prefill/token-compression"], ["prefill/token-compression"])
    [sentence] = failed
    assert sentence.startswith("decode/kv-cache: export.arxiv.org asks to slow down (HTTP 429)")


def test_pages_are_turned_until_the_papers_are_old(queried: Path, tmp_path: Path) -> None:
    full = [
        entry(f"2611.{i:05d}", f"Paper number {i} of its own kind {i * i}", "2026-11-18") for i in range(10, 10 + PAGE)
    ]
    stand = Stand({"start=50": feed(NEW, OLD), "query": feed(*full)})
    found, _ = ask(queried, tmp_path, stand, Cursor())
    assert "2611.00001" in {paper.arxiv for papers in found.values() for paper in papers}
    assert [parse_qs(urlsplit(url).query)["start"] for _, url in stand.asked] == [["0"], ["50"], ["0"], ["50"]]


def test_a_query_that_finds_too_much_says_so(queried: Path, tmp_path: Path) -> None:
    full = [entry(f"2611.{i:05d}", f"Paper {i}", "2026-11-18") for i in range(PAGE)]
    _, failed = ask(queried, tmp_path, Stand({"query": feed(*full)}), Cursor())
    assert failed[0] == f"prefill/token-compression: only the newest {MOST} papers are listed; narrow its query."


def test_the_list_offers_the_command_and_shows_titles_as_they_are(queried: Path, tmp_path: Path) -> None:
    hostile = entry("2611.00009", "&lt;img src=x&gt; [a](javascript:b) @all `c` https://e.org", "2026-11-18")
    found, failed = ask(queried, tmp_path, Stand({"query": feed(NEW, hostile)}), Cursor())
    lines = markdown(found, [*failed, "a: *b*"], load_catalog(queried)).splitlines()
    assert lines[0] == "# 2 new papers to review"
    assert "## Token compression (prefill/token-compression)" in lines
    assert "  `elvi-survey add 2611.00001 --place prefill/token-compression`" in lines
    assert r"- a: \*b\*" in lines
    listed = next(line for line in lines if "2611.00009" in line)
    assert r"\<img src=x\> \[a\]\(javascript:b\) \@all \`c\`" in listed
    assert "https://e.org" not in listed


def test_plain_words_have_no_live_markup() -> None:
    assert plain("a_b & c") == r"a\_b &amp; c"


def test_the_query_is_written_in_the_language_of_arxiv() -> None:
    terms = search_terms(['"token pruning"', '"KV cache" "vision-language"'])
    assert terms.startswith(
        '(((ti:"token pruning" OR abs:"token pruning")) OR ((ti:"KV cache" OR abs:"KV cache") AND (ti:"vision-language"'
    )
    assert terms.endswith("AND (cat:cs.CV OR cat:cs.CL OR cat:cs.LG OR cat:cs.AI OR cat:cs.MM OR cat:cs.DC)")


def test_every_category_of_the_pipeline_has_a_query(repository: Path) -> None:
    stages = load_catalog(repository).stages
    wanted = {f"{stage.id}/{id_}" for stage in stages.values() if stage.in_pipeline for id_ in stage.categories}
    assert wanted <= set(read_queries(repository))


def test_a_file_of_queries_with_a_defect_is_refused(queried: Path, put) -> None:
    put({QUERIES: "prefill/token-compression: [token]\n"})
    with pytest.raises(ElviError, match="bad-query"):
        read_queries(queried)


def test_a_cursor_is_written_and_read_back(tmp_path: Path) -> None:
    cursor = Cursor({"a/b": "2026-11-20"}, {"2611.00001": "2026-11-18"})
    cursor.write(tmp_path / "below/cursor.json")
    assert Cursor.read(tmp_path / "below/cursor.json") == cursor
    assert Cursor.read(tmp_path / "none.json") == Cursor()


@pytest.mark.parametrize(
    "text", ["", "{}", '{"asked": {"a": "soon"}, "listed": {}}', '{"asked": [], "listed": 3}', "[" * 99_999]
)
def test_a_file_that_is_no_cursor_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cursor.json").write_text(text)
    with pytest.raises(ElviError, match="is not a cursor of discover"):
        Cursor.read(tmp_path / "cursor.json")


def test_the_command_prints_the_list_and_saves_its_cursor(queried: Path, tmp_path, monkeypatch, capsys) -> None:
    day = str(date.today())
    stand = Stand({"KV+cache": "silence", "query": feed(entry("2611.00001", "NewThing: Prune", day))})
    monkeypatch.setattr(web_module, "Web", lambda: stand.web(tmp_path / "cache"))
    file = tmp_path / "cursor.json"
    assert main(["--root", str(queried), "discover", "--cursor", str(file)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("# 1 new paper to review")
    assert "## Not asked" in out
    assert list(json.loads(file.read_text())["listed"]) == ["2611.00001"]
