"""The shipped catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from elvi_survey.check import check
from elvi_survey.load import load_catalog
from elvi_survey.schema import Catalog

SURVEY = {"figure3": 88, "table2": 27, "table3": 15, "table4": 3, "table6": 53}


@pytest.fixture(scope="module")
def catalog(repository: Path) -> Catalog:
    return load_catalog(repository)


def test_the_shipped_catalog_has_no_problem(repository: Path) -> None:
    assert [str(problem) for problem in check(repository)] == []


def test_every_reconstruction_says_so(catalog: Catalog) -> None:
    records = catalog.records
    reconstructed = {id_ for id_, record in records.items() if "(R)" in (record.note or "")}
    assert {"lvspec", "hybridkv", "t2dr", "trait", "skipbert", "visionzip"} <= reconstructed


def test_every_claim_on_a_table_of_others_names_it(catalog: Catalog) -> None:
    claims = [claim for record in catalog.records.values() for claim in record.claims]
    assert len(claims) >= 20
    assert all(claim.source and claim.setting for claim in claims)


def test_every_record_says_when_it_came_and_what_it_is(catalog: Catalog) -> None:
    records = catalog.records
    assert len(records) >= 355
    assert [id_ for id_, record in records.items() if record.added is None] == []
    assert [id_ for id_, record in records.items() if not record.summary.endswith(".")] == []
    summaries = [record.summary for record in records.values()]
    assert len(summaries) == len(set(summaries))


def test_a_placement_against_the_survey_is_explained(catalog: Catalog) -> None:
    """Ours comes first only where the survey is thought wrong, and then the note or a source says why."""
    records = catalog.records
    corrected = {
        id_
        for id_, record in records.items()
        if record.placements[0].source == "ours" and {p.source for p in record.placements} & {"figure3", "table2"}
    }
    assert corrected == {"dynamic-llava", "dynamic-vlm", "efficientllava", "himix", "llava-prumerge"}
    assert [id_ for id_ in corrected if "our main placement is" not in (records[id_].note or "")] == ["dynamic-llava"]
    assert "hence our main placement" in (records["dynamic-llava"].note or "")


def test_nothing_that_the_survey_places_is_missing(catalog: Catalog) -> None:
    """Works in its Figure 3 and Tables 2, 3, 4 and 6; one that stands twice in one of them counts once."""
    records = catalog.records.values()
    sources = [{placement.source for placement in record.placements} for record in records]
    counts = {name: sum(name in found for found in sources) for name in SURVEY}
    assert counts == SURVEY


def test_an_unknown_that_matters_has_a_reason(catalog: Catalog) -> None:
    stages = {"encode", "prefill", "decode", "serve"}
    silent = [
        record.id
        for record in catalog.records.values()
        if record.stage in stages and record.training_free is None and "training_free" not in record.provenance
    ]
    assert silent == []


def test_every_benchmark_of_the_vocabulary_has_a_record_of_the_same_id(catalog: Catalog) -> None:
    assert [id_ for id_ in catalog.benchmarks if id_ not in catalog.records] == []
    differ = [id_ for id_, known in catalog.benchmarks.items() if known.arxiv != catalog.records[id_].arxiv]
    assert differ == []


def test_every_fact_of_a_pipeline_stage_has_its_source(catalog: Catalog) -> None:
    stages = [stage for stage in catalog.stages.values() if stage.in_pipeline]
    assert [stage.id for stage in stages] == ["encode", "prefill", "decode"]
    for stage in stages:
        assert {"bottleneck", "metric", "complexity", "formula"} <= set(stage.sources)
        assert {category.axis for category in stage.categories.values()} == set(stage.axes)


def test_every_place_of_the_taxonomy_is_used(catalog: Catalog) -> None:
    used = {path[: n + 1] for record in catalog.records.values() for path in record.paths for n in range(3)}
    places = [
        (stage.id, category.id, subcategory)
        for stage in catalog.stages.values()
        for category in stage.categories.values()
        for subcategory in category.subcategories or [None]
    ]
    assert [place for place in places if place not in used] == []
    assert {record.venue for record in catalog.records.values()} == set(catalog.venues)
    assert {need for record in catalog.records.values() for need in record.needs} == set(catalog.needs)
