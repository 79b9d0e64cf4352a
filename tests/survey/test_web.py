"""Services are asked politely, once, and what they answer is used or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from replies import Stand

from elvi_survey.sources import arxiv_feed, arxiv_id, from_arxiv, from_doi, from_openreview
from elvi_survey.web import MAX_BYTES, WebError, open_url

ARXIV, CROSSREF, OPENREVIEW = "export.arxiv.org", "api.crossref.org", "api2.openreview.net"
DOI = "10.1007/978-3-031-73004-7_2"
ASK = {
    ARXIV: lambda web: from_arxiv(web, "2403.06764"),
    CROSSREF: lambda web: from_doi(web, DOI),
    OPENREVIEW: lambda web: from_openreview(web, "aBcDeF1234"),
}


def test_arxiv_says_title_authors_day_and_comment(tmp_path: Path) -> None:
    paper = from_arxiv(Stand({ARXIV: "arxiv-paper.xml"}).web(tmp_path), "2403.06764")
    assert paper.title == (
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration "
        "for Large Vision-Language Models"
    )
    assert (len(paper.authors), paper.authors[0], paper.authors[-1]) == (7, "Liang Chen", "Baobao Chang")
    assert (paper.arxiv, paper.year, paper.posted) == ("2403.06764", 2024, "2024-03-11")
    assert (paper.venue, paper.comment) == (None, "Accepted to ECCV 2024 (Oral)")
    assert paper.url == "https://arxiv.org/abs/2403.06764"


def test_crossref_says_venue_and_names_without_tags(tmp_path: Path) -> None:
    paper = from_doi(Stand({CROSSREF: "crossref.json"}).web(tmp_path), DOI)
    assert paper.title.startswith("An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference")
    assert paper.authors == ("Liang Chen", "Haozhe Zhao", "The Vision Team")
    assert (paper.doi, paper.year, paper.month) == (DOI, 2025, None)
    assert paper.venue == "Lecture Notes in Computer Science; Computer Vision & Patterns – ECCV 2024"


def test_a_doi_of_arxiv_is_asked_at_arxiv(tmp_path: Path) -> None:
    stand = Stand({ARXIV: "arxiv-paper.xml"})
    assert from_doi(stand.web(tmp_path), "10.48550/arXiv.2403.06764").arxiv == "2403.06764"


def test_openreview_says_venue_and_year(tmp_path: Path) -> None:
    paper = from_openreview(Stand({OPENREVIEW: "openreview.json"}).web(tmp_path), "aBcDeF1234")
    assert (paper.title, paper.authors) == ("Half the Frames Are Enough", ("Ada Lovelace", "Alan Turing"))
    assert (paper.venue, paper.year, paper.openreview) == ("ICLR 2025 Poster", 2025, "aBcDeF1234")
    assert paper.url == "https://openreview.net/forum?id=aBcDeF1234"


def test_arxiv_is_asked_three_seconds_apart_also_by_the_next_run(tmp_path: Path) -> None:
    stand = Stand({ARXIV: "arxiv-paper.xml"})
    from_arxiv(stand.web(tmp_path), "2403.06764")
    stand.now += 1
    from_arxiv(stand.web(tmp_path), "2403.06765")
    stand.now += 10
    from_arxiv(stand.web(tmp_path), "2403.06766")
    assert [round(seconds, 3) for seconds in stand.slept] == [2.0]


def test_an_answer_is_kept_for_a_day(tmp_path: Path) -> None:
    stand = Stand({ARXIV: "arxiv-paper.xml"})
    first = from_arxiv(stand.web(tmp_path), "2403.06764")
    stand.now += 80_000
    assert from_arxiv(stand.web(tmp_path), "2403.06764") == first
    assert len(stand.asked) == 1
    stand.now += 10_000
    from_arxiv(stand.web(tmp_path), "2403.06764")
    assert len(stand.asked) == 2


def test_an_answer_that_cannot_be_read_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(WebError):
        from_arxiv(Stand({ARXIV: b"Rate exceeded."}).web(tmp_path), "2403.06764")
    assert from_arxiv(Stand({ARXIV: "arxiv-paper.xml"}).web(tmp_path), "2403.06764").arxiv == "2403.06764"


def test_a_spoilt_cache_is_asked_again(tmp_path: Path) -> None:
    stand = Stand({ARXIV: "arxiv-paper.xml"})
    from_arxiv(stand.web(tmp_path), "2403.06764")
    for kept in tmp_path.glob("*.reply"):
        kept.write_bytes(b"<feed")
    assert from_arxiv(stand.web(tmp_path), "2403.06764").arxiv == "2403.06764"


@pytest.mark.parametrize("service", ASK)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (429, "asks to slow down (HTTP 429); wait a few minutes"),
        (503, "asks to slow down (HTTP 503)"),
        (404, "does not know"),
        (500, "answered with HTTP 500"),
        (b"", ""),
        (b"<html><body>Bad gateway</body></html", ""),
        (b"null", ""),
        (b"[" * 100_000, ""),
        (b'{"message": {"title": 3}, "notes": [{"content": {}}]}', ""),
        (b'{"message": {}, "notes": []}', ""),
        (b"\xff\xfe\x00", ""),
        (b"x" * (MAX_BYTES + 1), "more than"),
        (b'<!DOCTYPE a [<!ENTITY b "b">]><feed>&b;</feed>', ""),
        ("silence", "could not be reached"),
    ],
)
def test_a_bad_answer_is_one_sentence(tmp_path: Path, service: str, reply, words: str) -> None:
    with pytest.raises(WebError) as caught:
        ASK[service](Stand({service: reply}).web(tmp_path))
    sentence = str(caught.value)
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("file", "words"),
    [("arxiv-error.xml", "incorrect id format for 9999.99999"), ("arxiv-none.xml", "has no paper 2403.06764")],
)
def test_arxiv_saying_no_is_passed_on(tmp_path: Path, file: str, words: str) -> None:
    with pytest.raises(WebError, match=words):
        from_arxiv(Stand({ARXIV: file}).web(tmp_path), "2403.06764")


def test_an_entry_without_a_date_is_refused() -> None:
    feed = b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/2403.06764</id></entry></feed>'
    with pytest.raises(WebError, match="cannot be read"):
        arxiv_feed(feed)


@pytest.mark.parametrize(
    ("words", "id_"),
    [
        ("2403.06764", "2403.06764"),
        ("2403.06764v2", "2403.06764"),
        ("arXiv:2403.06764", "2403.06764"),
        ("https://arxiv.org/abs/2403.06764v1", "2403.06764"),
        ("https://arxiv.org/pdf/2403.06764.pdf", "2403.06764"),
        ("hep-th/9901001", None),
        ("2403.06764; rm -rf", None),
        ("", None),
    ],
)
def test_an_arxiv_id_is_found_in_what_people_paste(words: str, id_: str | None) -> None:
    assert arxiv_id(words) == id_


@pytest.mark.parametrize("url", ["http://[::1", "nothing", "http://127.0.0.1:1/", "file:///etc/passwd#"])
def test_an_address_that_cannot_be_asked_is_one_sentence(url: str) -> None:
    with pytest.raises(WebError, match="could not be reached"):
        open_url(url)
