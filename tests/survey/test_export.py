"""What leaves the catalog can be read by others, and says the same."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib import resources
from pathlib import Path

import bibtexparser
import pybtex.database
import pytest
import rispy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError

from elvi_survey.cli import FORMATS as OFFERED
from elvi_survey.export import (
    FORMATS,
    bibtex,
    to_cff,
    to_json,
    to_record_schema,
    to_schema,
)
from elvi_survey.load import catalog_files, load_catalog
from elvi_survey.marked import read_marked
from elvi_survey.readbib import parse_bibtex
from elvi_survey.schema import Catalog, Record


@pytest.fixture(scope="module")
def catalog(repository: Path) -> Catalog:
    return load_catalog(repository)


def test_bibtex_of_every_record_parses_under_its_id(catalog: Catalog) -> None:
    library = bibtexparser.parse_string(FORMATS["bibtex"](catalog))
    assert library.failed_blocks == []
    assert [entry.key for entry in library.entries] == list(catalog.records)
    for entry in library.entries:
        record = catalog.records[entry.key]
        assert entry["author"].split(" and ") == record.authors + ["others"] * record.authors_truncated
        assert entry["title"] == "{" + record.title.translate({ord(letter): f"\\{letter}" for letter in "&%$#_"}) + "}"
        assert entry["url"] == record.url


def test_bibtex_says_the_kind_of_venue_and_its_long_name(catalog: Catalog) -> None:
    entries = {entry.key: entry for entry in bibtexparser.parse_string(FORMATS["bibtex"](catalog)).entries}
    assert (entries["fastv"].entry_type, entries["calibquant"].entry_type) == ("inproceedings", "misc")
    assert entries["fastv"]["booktitle"] == "European Conference on Computer Vision"
    assert entries["calibquant"]["eprint"] == "2502.14882"


def test_special_characters_survive_bibtex(tree: Path) -> None:
    record = load_catalog(tree).records["other"]
    record = record.model_copy(
        update={"title": r"50% of {a_b} & #1 $x$ \y", "authors": ["Team A and B", "Émile"], "authors_truncated": True}
    )
    [entry] = bibtexparser.parse_string(bibtex(record)).entries
    assert entry["title"] == r"{50\% of \textbraceleft{}a\_b\textbraceright{} \& \#1 \$x\$ \textbackslash{}y}"
    assert entry["author"] == "{Team A and B} and Émile and others"


def test_csl_holds_names_date_and_container(catalog: Catalog) -> None:
    items = {item["id"]: item for item in json.loads(FORMATS["csl"](catalog))}
    assert set(items) == set(catalog.records)
    assert items["specvlm"]["issued"] == {"date-parts": [[2025, 11]]}
    assert items["fastv"]["author"][0] == {"literal": "Liang Chen"}
    assert items["fastv"]["DOI"] == "10.1007/978-3-031-73004-7_2"
    assert "DOI" not in items["aks"]


def test_csv_has_a_row_per_record_and_empty_cells_for_the_unknown(catalog: Catalog) -> None:
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(FORMATS["csv"](catalog)))}
    assert set(rows) == set(catalog.records)
    assert rows["lvspec"]["month"] == ""
    assert rows["fastv"]["training_free"] == "true"
    assert rows["fastv"]["authors"].startswith("Liang Chen; Haozhe Zhao")


def test_a_cell_never_starts_a_formula(tree: Path) -> None:
    catalog = load_catalog(tree)
    catalog.records["other"] = catalog.records["other"].model_copy(update={"title": "=HYPERLINK(1)"})
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(FORMATS["csv"](catalog)))}
    assert rows["other"]["title"] == "'=HYPERLINK(1)"


def test_json_holds_every_fact_of_a_record(catalog: Catalog) -> None:
    data = json.loads(to_json(catalog))
    fastv = next(record for record in data["records"] if record["id"] == "fastv")
    assert fastv["claims"][0] == {
        "number": 60.4, "unit": "score", "what": "GQA", "model": "llava-1-5-7b",
        "setting": "K=3, half of the visual tokens dropped; all tokens 62.0", "source": "official README",
    }  # fmt: skip
    assert list(data["stages"]) == ["encode", "prefill", "decode", "serve", "benchmark", "model", "related", "survey"]


ESCAPES = {
    r"\textbackslash{}": "\\", r"\textbraceleft{}": "{", r"\textbraceright{}": "}", r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^", r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_",
}  # fmt: skip
ESCAPED = re.compile("|".join(map(re.escape, ESCAPES)))


def unescaped(latex: str) -> str:
    return ESCAPED.sub(lambda match: ESCAPES[match[0]], latex)


def whole(words: str) -> str:
    """What stands in the one pair of braces around `words`, if there is one."""
    return words[1:-1] if words.startswith("{") and words.endswith("}") else words


def test_every_entry_says_the_same_to_a_second_parser(catalog: Catalog) -> None:
    entries = pybtex.database.parse_string(FORMATS["bibtex"](catalog), "bibtex").entries
    assert list(entries) == list(catalog.records)
    for key, entry in entries.items():
        record = catalog.records[key]
        assert unescaped(whole(entry.fields["title"])) == record.title
        assert entry.fields["url"] == record.url
        assert entry.fields["year"] == str(record.year)
        assert len(entry.persons["author"]) == len(record.authors) + record.authors_truncated


LETTERS = st.text(st.sampled_from("abcXYZ éß中 {}\\%&$#_~^\"'@,:;=-()\n"), min_size=1, max_size=30)
WORDS = LETTERS.map(lambda words: " ".join(words.split())).filter(bool)
NAMES = st.one_of(WORDS, st.sampled_from(["Team A and B", "others", "van der Berg, Anna", "AND", "O'Brien", "{x}"]))
URLS = st.text(st.sampled_from("abc/%20_#&=?~-."), max_size=20).map(lambda path: f"https://example.org/{path}")


@settings(max_examples=150, deadline=None)
@given(WORDS, st.lists(NAMES, min_size=1, max_size=4), URLS, st.booleans())
def test_any_title_name_and_address_survives_both_parsers(title: str, names: list[str], url: str, more: bool) -> None:
    """Titles, names and addresses with braces, quotes, `%` and `and` come back as they were, in number and in words."""
    facts = {"id": "some-id", "title": title, "authors": names, "authors_truncated": more, "year": 2025, "venue": "acl"}
    facts |= {"venue_type": "conference", "url": url, "arxiv": None, "doi": None, "month": 3}
    text = bibtex(Record.model_construct(**facts), "A & B")
    library = bibtexparser.parse_string(text)
    [entry] = library.entries
    assert not library.failed_blocks
    assert (entry.key, unescaped(whole(entry["title"])), entry["url"]) == ("some-id", title, url)
    [(key, second)] = pybtex.database.parse_string(text, "bibtex").entries.items()
    assert (key, unescaped(whole(second.fields["title"])), second.fields["url"]) == ("some-id", title, url)
    assert len(second.persons["author"]) == len(names) + more
    braced = [unescaped(whole(name)) for name in entry["author"].split(" and ")]
    if not any(" and " in name for name in names):
        assert braced == [*names, *(["others"] if more else [])]


def test_the_catalog_in_bibtex_is_read_back_by_our_own_reader(catalog: Catalog) -> None:
    text = FORMATS["bibtex"](catalog)
    for record in catalog.records.values():
        paper = parse_bibtex(text, "catalog.bib", record.id)
        assert (paper.title, list(paper.authors)) == (record.title, record.authors)
        assert (paper.year, paper.month, paper.doi) == (record.year, record.month, record.doi)
        assert (paper.url, paper.authors_truncated) == (record.url, record.authors_truncated)


def test_ris_is_read_by_another_library(catalog: Catalog) -> None:
    entries = rispy.loads(FORMATS["ris"](catalog))
    assert [entry["id"] for entry in entries] == list(catalog.records)
    for entry in entries:
        record = catalog.records[entry["id"]]
        assert (entry["title"], entry["year"]) == (record.title, str(record.year))
        assert entry["authors"][: len(record.authors)] == record.authors
        assert entry.get("doi") == record.doi


def test_citation_file_follows_its_schema_and_names_every_paper(catalog: Catalog) -> None:
    text = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/citation-file-format.json").read_text()
    data = yaml.safe_load(to_cff(catalog))
    data["date-released"] = str(data["date-released"])
    assert [error.message for error in Draft7Validator(json.loads(text)).iter_errors(data)] == []
    assert [entry["title"] for entry in data["references"]] == [record.title for record in catalog.records.values()]
    assert data["title"].startswith("ELVI")


def test_the_json_follows_its_schema_and_the_schema_refuses_another(catalog: Catalog) -> None:
    schema, data = json.loads(to_schema(catalog)), json.loads(to_json(catalog))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(data)
    data["records"][0]["field of a later version"] = 1
    Draft202012Validator(schema).validate(data)
    data["records"][0]["year"] = "2024"
    with pytest.raises(ValidationError, match="not of type 'integer'"):
        Draft202012Validator(schema).validate(data)


def test_every_record_follows_the_schema_for_editors(catalog: Catalog, repository: Path) -> None:
    schema = json.loads(to_record_schema(catalog))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in catalog_files(repository):
        assert [error.message for error in validator.iter_errors(read_marked(path.read_text()).data)] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("venue: eccv", "venue: ecvc"),
        ("stage: prefill", "stage: prefil"),
        ("category: token-compression", "category: kv-cache"),
        ("subcategory: attention-guided", "subcategory: pooling"),
        ("summary:", "sumary:"),
        ("year: 2024", "year: '2024'"),
    ],
)
def test_the_schema_for_editors_knows_the_taxonomy(tree: Path, before: str, after: str) -> None:
    validator = Draft202012Validator(json.loads(to_record_schema(load_catalog(tree))))
    text = (tree / "catalog/fast-thing.yaml").read_text()
    assert validator.is_valid(read_marked(text).data)
    assert not validator.is_valid(read_marked(text.replace(before, after)).data)


def test_the_command_line_offers_every_format() -> None:
    assert sorted(FORMATS) == sorted(OFFERED)
