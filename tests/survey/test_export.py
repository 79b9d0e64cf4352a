"""What leaves the catalog can be read by others, and says the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import bibtexparser
import pytest

from elvi_survey.export import bibtex, to_bibtex, to_csl, to_csv, to_json
from elvi_survey.load import load_catalog
from elvi_survey.schema import Catalog


@pytest.fixture(scope="module")
def catalog(repository: Path) -> Catalog:
    return load_catalog(repository)


def test_bibtex_of_every_record_parses_under_its_id(catalog: Catalog) -> None:
    library = bibtexparser.parse_string(to_bibtex(catalog))
    assert library.failed_blocks == []
    assert [entry.key for entry in library.entries] == list(catalog.records)
    for entry in library.entries:
        record = catalog.records[entry.key]
        assert entry["author"].split(" and ") == record.authors + ["others"] * record.authors_truncated
        assert entry["title"] == "{" + record.title.translate({ord(letter): f"\\{letter}" for letter in "&%$#_"}) + "}"
        assert entry["url"] == record.url


def test_bibtex_says_the_kind_of_venue_and_its_long_name(catalog: Catalog) -> None:
    entries = {entry.key: entry for entry in bibtexparser.parse_string(to_bibtex(catalog)).entries}
    assert (entries["fastv"].entry_type, entries["calibquant"].entry_type) == ("inproceedings", "misc")
    assert entries["fastv"]["booktitle"] == "European Conference on Computer Vision"
    assert entries["calibquant"]["eprint"] == "2502.14882"


def test_special_characters_survive_bibtex(tree: Path) -> None:
    record = load_catalog(tree).records["other"]
    record = record.model_copy(
        update={"title": r"50% of {a_b} & #1 $x$ \y", "authors": ["Team A and B", "Émile"], "authors_truncated": True}
    )
    [entry] = bibtexparser.parse_string(bibtex(record)).entries
    assert entry["title"] == r"{50\% of \{a\_b\} \& \#1 \$x\$ \textbackslash{}y}"
    assert entry["author"] == "{Team A and B} and Émile and others"


def test_csl_holds_names_date_and_container(catalog: Catalog) -> None:
    items = {item["id"]: item for item in json.loads(to_csl(catalog))}
    assert set(items) == set(catalog.records)
    assert items["specvlm"]["issued"] == {"date-parts": [[2025, 11]]}
    assert items["fastv"]["author"][0] == {"literal": "Liang Chen"}
    assert items["fastv"]["DOI"] == "10.1007/978-3-031-73004-7_2"
    assert "DOI" not in items["aks"]


def test_csv_has_a_row_per_record_and_empty_cells_for_the_unknown(catalog: Catalog) -> None:
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(to_csv(catalog)))}
    assert set(rows) == set(catalog.records)
    assert rows["lvspec"]["month"] == ""
    assert rows["fastv"]["training_free"] == "true"
    assert rows["fastv"]["authors"].startswith("Liang Chen; Haozhe Zhao")


def test_a_cell_never_starts_a_formula(tree: Path) -> None:
    catalog = load_catalog(tree)
    catalog.records["other"] = catalog.records["other"].model_copy(update={"title": "=HYPERLINK(1)"})
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(to_csv(catalog)))}
    assert rows["other"]["title"] == "'=HYPERLINK(1)"


def test_json_holds_every_fact_of_a_record(catalog: Catalog) -> None:
    data = json.loads(to_json(catalog))
    fastv = next(record for record in data["records"] if record["id"] == "fastv")
    assert fastv["claims"][0] == {
        "number": 60.4, "unit": "score", "what": "GQA", "model": "llava-1-5-7b",
        "setting": "K=3, half of the visual tokens dropped; all tokens 62.0", "source": "official README",
    }  # fmt: skip
    assert list(data["stages"]) == ["encode", "prefill", "decode", "serve", "benchmark", "model", "related", "survey"]
