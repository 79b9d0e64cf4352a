"""The shipped catalog."""

from __future__ import annotations

from pathlib import Path

from elvi_survey.check import check
from elvi_survey.load import load_catalog


def test_the_shipped_catalog_has_no_problem(repository: Path) -> None:
    assert [str(problem) for problem in check(repository)] == []


def test_every_reconstruction_says_so(repository: Path) -> None:
    records = load_catalog(repository).records
    reconstructed = {id_ for id_, record in records.items() if "(R)" in (record.note or "")}
    assert {"lvspec", "hybridkv", "t2dr", "trait", "skipbert", "visionzip"} <= reconstructed


def test_every_claim_on_a_table_of_others_names_it(repository: Path) -> None:
    claims = [claim for record in load_catalog(repository).records.values() for claim in record.claims]
    assert len(claims) >= 20
    assert all(claim.source and claim.setting for claim in claims)
