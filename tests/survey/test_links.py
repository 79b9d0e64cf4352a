"""A link is ok, dead or unknown, and only a history of misses makes it dead."""

from __future__ import annotations

from pathlib import Path

import pytest
from replies import Stand

from elvi.errors import ElviError
from elvi_survey import web as web_module
from elvi_survey.cli import main
from elvi_survey.links import STRIKES, Health, History, addresses, check_links, judged, look, summary
from elvi_survey.load import load_catalog

ARXIV, GITHUB = "https://arxiv.org/abs/2403.06764", "https://github.com/a/b"


def days(count: int) -> list[str]:
    return [f"2026-11-{day:02d}" for day in range(1, count + 1)]


def after(*seen: int | str) -> Health:
    """The health after these looks, one a day."""
    health = Health()
    for day, reply in zip(days(len(seen)), seen, strict=True):
        health = judged(health, reply, day)
    return health


@pytest.mark.parametrize(
    ("seen", "state", "strikes"),
    [
        ([200], "ok", 0),
        ([301], "ok", 0),
        ([404], "unknown", 1),
        ([404, 410], "unknown", 2),
        ([404, 410, 404], "dead", 3),
        ([404, 404, 200, 404], "unknown", 1),
        ([429], "unknown", 0),
        ([403, 403, 403, 403], "unknown", 0),
        ([404, 404, 429, 404], "dead", 3),
        ([404, 404, 404, 503], "dead", 3),
        ([404, 404, 404, 200], "ok", 0),
        ([500, "timed out", 401], "unknown", 0),
    ],
)
def test_only_three_misses_in_a_row_make_a_link_dead(seen: list, state: str, strikes: int) -> None:
    health = after(*seen)
    assert (health.state, health.strikes, health.reply) == (state, strikes, str(seen[-1]))


def test_three_looks_on_one_day_are_one_strike() -> None:
    health = Health()
    for _ in range(STRIKES):
        health = judged(health, 404, "2026-11-01")
    assert (health.state, health.strikes) == ("unknown", 1)


def test_the_last_good_day_is_remembered() -> None:
    assert after(200, 404, 429).last_ok == "2026-11-01"


def test_head_is_asked_first_and_the_page_only_after_a_refusal(tmp_path: Path) -> None:
    stand = Stand({"good": b"", "refuses": 405})
    assert look(stand.web(tmp_path), "https://a.org/good") == 200
    assert look(stand.web(tmp_path), "https://b.org/refuses") == 405
    assert [method for method, _ in stand.asked] == ["HEAD", "HEAD", "GET"]


def test_one_host_is_asked_once_a_second(tmp_path: Path) -> None:
    stand = Stand({"org": b""})
    for url in ("https://a.org/1", "https://a.org/2", "https://b.org/1"):
        look(stand.web(tmp_path), url)
    assert stand.slept == [1.0]


def test_a_run_notes_every_link_of_the_catalog_and_forgets_the_others(tree: Path, tmp_path: Path) -> None:
    catalog = load_catalog(tree)
    history = History({ARXIV: after(404, 404), "https://gone.org/": after(404)})
    stand = Stand({"arxiv.org/abs/2403": 404, "arxiv.org/abs/2501": "silence", "github.com": b"x"})
    links = check_links(stand.web(tmp_path / "cache"), catalog, history, "2026-11-09")
    assert set(history.links) == set(addresses(catalog))
    assert {url: health.state for url, health in links.items()} == {
        ARXIV: "dead", GITHUB: "ok", "https://arxiv.org/abs/2501.00001": "unknown",
    }  # fmt: skip
    first, dead, unknown = summary(links, catalog).splitlines()
    assert first == "3 links: 1 ok, 1 dead, 1 unknown"
    assert dead == f"dead {ARXIV} (404, strike 3 of 3) in fast-thing"
    assert unknown.startswith("unknown https://arxiv.org/abs/2501.00001 (the host could not be reached (timed out)")
    assert unknown.endswith(" in other")


def test_a_history_is_written_and_read_back(tmp_path: Path) -> None:
    history = History({ARXIV: after(404), GITHUB: after(200)})
    history.write(tmp_path / "below/links.json")
    assert History.read(tmp_path / "below/links.json") == history
    assert History.read(tmp_path / "none.json") == History()


@pytest.mark.parametrize("text", ["", "[]", '{"links": {"a": 3}}', '{"links": {"a": {"mood": 1}}}', "[" * 100_000])
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "links.json").write_text(text)
    with pytest.raises(ElviError, match="is not a history of links"):
        History.read(tmp_path / "links.json")


def test_the_command_exits_1_for_a_dead_link_and_keeps_the_history(tree: Path, tmp_path, monkeypatch, capsys) -> None:
    stand = Stand({"2403": 404, "2501": b"", "github": 429})
    monkeypatch.setattr(web_module, "Web", lambda: stand.web(tmp_path / "cache"))
    file = tmp_path / "links.json"
    History({ARXIV: after(404, 404)}).write(file)
    assert main(["--root", str(tree), "links", "--history", str(file)]) == 1
    assert capsys.readouterr().out.startswith("3 links: 1 ok, 1 dead, 1 unknown\ndead ")
    assert History.read(file).links[ARXIV].strikes == 3
