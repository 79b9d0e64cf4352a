"""A new record from an id or a BibTeX entry: facts with their source, decisions left to people, no paper twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from replies import Stand

from elvi_survey import add as adding
from elvi_survey.add import AddError, find_paper, known_venue, new_record, suggested_id
from elvi_survey.check import check
from elvi_survey.cli import main
from elvi_survey.fmt import format_text
from elvi_survey.load import read_catalog
from elvi_survey.marked import read_marked
from elvi_survey.readbib import BibError, parse_bibtex
from elvi_survey.similar import SAME_TITLE, likeness, normalised
from elvi_survey.sources import Paper

ENTRY = r"""
@inproceedings{lovelace2024,
  title = {{NewThing}: An {\'E}tude on 50\% of the Tokens},
  author = {Lovelace, Ada and Alan {van der} Turing and {Team A and B} and others},
  booktitle = {Computer Vision -- {ECCV} 2024},
  year = 2024, month = oct,
  doi = {https://doi.org/10.1007/123},
  url = {https://example.org/a%20b\_c},
}
"""
OTHER_ENTRY = "@article{second, title={A second one}, author={Grace Hopper}, year={2025}, journal={CoRR}}"


@pytest.fixture
def bib(tree: Path) -> Path:
    path = tree / "new.bib"
    path.write_text(ENTRY)
    return path


def run(tree: Path, *arguments: str) -> int:
    return main(["--root", str(tree), "add", *arguments])


def test_a_bibtex_entry_becomes_a_canonical_record_with_a_source_for_every_fact(tree: Path, bib: Path) -> None:
    assert run(tree, "--bibtex", str(bib)) == 0
    text = (tree / "catalog/newthing.yaml").read_text()
    data = read_marked(text).data
    assert data["title"] == "NewThing: An Étude on 50% of the Tokens"
    assert data["authors"] == ["Ada Lovelace", "Alan van der Turing", "Team A and B"]
    assert (data["authors_truncated"], data["year"], data["month"]) == (True, 2024, 10)
    assert (data["venue"], data["venue_type"], data["doi"]) == ("eccv", "conference", "10.1007/123")
    assert data["url"] == "https://example.org/a%20b_c"
    assert data["provenance"] == dict.fromkeys(
        ["title", "authors", "year", "month", "venue", "doi", "url"], "BibTeX entry lovelace2024"
    )
    assert format_text(text) == text


def test_what_only_a_person_can_decide_is_left_to_do_and_nothing_else_is_wrong(tree: Path, bib: Path, capsys) -> None:
    run(tree, "--bibtex", str(bib))
    problems = check(tree)
    assert {problem.code for problem in problems} == {"to-do"}
    said = " ".join(problem.message for problem in problems)
    for field in ("placements.0.stage", "placements.0.category", "modality.0", "summary"):
        assert f"{field} is still to be filled in" in said
    out = capsys.readouterr().out
    assert out.startswith("catalog/newthing.yaml is written")
    assert "choose a key of taxonomy/stages.yaml" in out


def test_a_record_is_complete_once_everything_is_filled_in(tree: Path, bib: Path) -> None:
    run(tree, "--bibtex", str(bib), "--place", "decode/kv-cache")
    path = tree / "catalog/newthing.yaml"
    text = path.read_text()
    assert "stage: decode\n  category: kv-cache\n  source: ours" in text
    path.write_text(text.replace("- TODO", "- image").replace("summary: TODO", "summary: Mine."))
    assert check(tree) == []


def test_an_arxiv_paper_is_a_preprint_with_its_comment_as_a_hint(tree: Path, monkeypatch, tmp_path: Path) -> None:
    stand = Stand({"export.arxiv.org": "arxiv-paper.xml"})
    monkeypatch.setattr(adding, "Web", lambda: stand.web(tmp_path / "cache"))
    (tree / "catalog/fast-thing.yaml").unlink()
    (tree / "impls/elvi/prefill/fast_thing.py").unlink()
    assert run(tree, "arXiv:2403.06764v2", "--id", "fastv") == 0
    text = (tree / "catalog/fastv.yaml").read_text()
    data = read_marked(text).data
    assert (data["venue"], data["arxiv"], data["first_posted"]) == ("arxiv", "2403.06764", "2024-03")
    assert 'arxiv: "2403.06764"' in text
    assert "# venue: the comment on arXiv says Accepted to ECCV 2024 (Oral)\nvenue: arxiv" in text
    assert set(data["provenance"].values()) == {"arXiv API"}


@pytest.mark.parametrize(
    ("arguments", "file", "venue"),
    [
        (["--doi", "https://doi.org/10.1007/978-3-031-73004-7_2"], "crossref.json", "eccv"),
        (["--openreview", "https://openreview.net/forum?id=aBcDeF1234"], "openreview.json", "TODO"),
    ],
)
def test_other_services_give_a_record_too(tree: Path, monkeypatch, tmp_path: Path, arguments, file, venue) -> None:
    monkeypatch.setattr(adding, "Web", lambda: Stand({"api": file}).web(tmp_path / "cache"))
    assert run(tree, *arguments, "--id", "new") == 0
    text = (tree / "catalog/new.yaml").read_text()
    assert read_marked(text).data["venue"] == venue
    assert {problem.code for problem in check(tree)} == {"to-do"}
    assert ("the source says ICLR 2025 Poster" in text) == (venue == "TODO")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"arxiv": "2403.06764"}, "has the same arxiv, 2403.06764"),
        ({"doi": "10.1007/978-3-031".upper()}, "has the same doi"),
        ({"title": "Fast-Thing - half the TOKENS"}, "has the title 'FastThing: Half the Tokens'"),
        ({"title": "FastThing: Halve the Tokens"}, "has the title"),
    ],
)
def test_a_paper_that_is_there_is_refused(tree: Path, facts: dict, words: str) -> None:
    paper = Paper("test", **{"title": "Something entirely different", **facts})
    with pytest.raises(AddError, match="is in the catalog, catalog/fast-thing") as caught:
        new_record(paper, *read_catalog(tree))
    assert words in str(caught.value)


def test_a_record_with_problems_still_counts_as_a_duplicate(tree: Path) -> None:
    path = tree / "catalog/fast-thing.yaml"
    path.write_text(path.read_text().replace("year: 2024", "year: soon"))
    with pytest.raises(AddError, match="is in the catalog"):
        new_record(Paper("test", "FastThing: Half the Tokens"), *read_catalog(tree))


def test_titles_of_different_papers_in_the_shipped_catalog_are_told_apart(repository: Path) -> None:
    titles = [normalised(record.title) for record in read_catalog(repository)[0].records.values()]
    pairs = [(a, b) for a in titles for b in titles if a < b]
    assert [pair for pair in pairs if likeness(*pair) >= SAME_TITLE] == []


def test_an_id_that_is_taken_is_refused(tree: Path) -> None:
    with pytest.raises(AddError, match="exists for another paper"):
        new_record(Paper("test", "New"), *read_catalog(tree), "other")
    with pytest.raises(AddError, match="cannot be an id"):
        new_record(Paper("test", "New"), *read_catalog(tree), "../other")


@pytest.mark.parametrize(
    ("title", "id_"),
    [
        ("FastV: Fewer Tokens", "fastv"),
        ("VScan++: A Study", "vscan"),
        ("An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play", "image-worth-1-2"),
        ("Mémoire: x", "memoire"),
        ("中文", "paper"),
        ("../../etc/passwd: x", "etc-passwd"),
    ],
)
def test_an_id_is_the_short_name_or_the_first_words(title: str, id_: str) -> None:
    assert suggested_id(title) == id_


@pytest.mark.parametrize(
    ("words", "id_"),
    [
        ("Findings of the Association for Computational Linguistics: ACL 2025", "findings-acl"),
        ("Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics", "acl"),
        ("Computer Vision – ECCV 2024", "eccv"),
        ("ICLR 2025 Poster", "iclr"),
        ("Advances in Neural Information Processing Systems 37", "neurips"),
        ("A workshop in a racler", None),
        ("", None),
    ],
)
def test_a_venue_is_found_in_the_words_of_a_source(repository: Path, words: str, id_: str | None) -> None:
    assert known_venue(words, read_catalog(repository)[0]) == id_


def test_of_several_entries_one_must_be_chosen() -> None:
    both = ENTRY + OTHER_ENTRY
    with pytest.raises(BibError, match=r"holds 2 entries \(lovelace2024, second\); choose one with --key"):
        parse_bibtex(both, "x.bib")
    with pytest.raises(BibError, match="has no entry 'third'; it has lovelace2024, second"):
        parse_bibtex(both, "x.bib", "third")
    assert parse_bibtex(both, "x.bib", "second").venue_type == "preprint"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "X.bib holds no entry"),
        ("\n@article{a, title={b", "Line 2 of x.bib is not BibTeX"),
        ("@article{a, author={b}}", "BibTeX entry a has no title"),
        ("@article{a, title={}}", "BibTeX entry a has no title"),
    ],
)
def test_a_file_without_a_usable_entry_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BibError) as caught:
        parse_bibtex(text, "x.bib")
    assert str(caught.value).startswith(sentence)


def test_a_preprint_in_bibtex_is_found_by_its_number() -> None:
    entry = "@article{a, title={T}, author={A B}, journal={arXiv preprint arXiv:2501.00001}, year={2025}}"
    paper = parse_bibtex(entry, "x.bib")
    assert (paper.arxiv, paper.url, paper.venue_type) == ("2501.00001", "https://arxiv.org/abs/2501.00001", "preprint")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["not-an-id"], "'not-an-id' is not an id of arxiv; write it like 2403.06764"),
        (["--doi", "doi.org"], "'doi.org' is not an id of doi"),
        (["--openreview", "?"], "'?' is not an id of openreview"),
        (["--bibtex", "/no/such/file.bib"], "/no/such/file.bib cannot be read, the file does not exist"),
        ([], "One of the arguments ARXIV-ID --doi --openreview --bibtex is required"),
        (["2403.06764", "--doi", "10.1/x"], "not allowed with argument"),
    ],
)
def test_misuse_is_one_sentence_and_asks_no_one(tree: Path, capsys, monkeypatch, arguments, words: str) -> None:
    monkeypatch.setattr(adding, "Web", lambda: Stand({}).web(tree))
    assert run(tree, *arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_an_unknown_place_names_the_nearest(tree: Path, bib: Path, capsys) -> None:
    assert run(tree, "--bibtex", str(bib), "--place", "decode/kv-cach") == 2
    assert "did you mean decode/kv-cache?" in capsys.readouterr().err
    assert not (tree / "catalog/newthing.yaml").exists()


def test_bibtex_needs_no_network(bib: Path, monkeypatch) -> None:
    monkeypatch.setattr(adding, "Web", lambda: pytest.fail("the network was asked"))
    assert find_paper(None, None, None, bib, None).year == 2024
