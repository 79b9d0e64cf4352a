"""Whatever stands in whatever field of records and vocabularies, the site shows it as text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import html5lib
import pytest
import yaml

from elvi_survey.check import check
from elvi_survey.site.build import build
from elvi_survey.site.text import one_line

HTML = "{http://www.w3.org/1999/xhtml}"
ATTACKS = {
    "html": '<b id="owned">x</b><img src="x" onerror="owned()"></p></td></section><h1>owned</h1>',
    "script": "</script><script>owned()</script><svg onload=owned()></title><style>*{display:none}</style>",
    "markdown": "# owned [owned](javascript:owned) **o** ![owned](https://owned.example/x) *o* _w_ ~~n~~ | a | b |",
    "block": '\n# owned\n\n- owned\n\n> owned\n\n    owned\n\n~~~\nowned\n~~~\n\n[TOC]\n\n--8<-- "mkdocs.yml"\n\n:::x',
    "template": "{{ 7 * 191 }} {% include 'owned' %} {# owned #} ${7*191} <%= 7*191 %> {: .owned #owned }",
    "entities": "&lt;owned&gt; &#60;b&#62; %3Cscript%3E ]]> <!-- owned --> <?php owned ?> \\u003c",
    "address": "https://example.org/(owned)*_~[x](javascript:owned())%22;owned&lt;?a=#owned",
}
RECORD = {
    "name": "x", "title": "x", "authors": ["x", "x"], "year": 2025, "month": 3,
    "first_posted": "2025-01", "venue": "acl", "venue_type": "conference", "arxiv": "2501.00001", "doi": "10.1234/x",
    "openreview": "abcdef12",
    "url": "https://e.org/",
    "links": [{"kind": "official", "url": "https://e.org/"}, {"kind": "fork", "url": "https://e.org/"}],
    "project_page": "https://e.org/", "training_free": False, "modality": ["text"], "in_survey": False,
    "placements": [{"stage": "decode", "category": "speculative-decoding", "source": "ours"}], "verified": ["title"],
    "summary": "x", "implementation": {"status": "planned", "reason": "x"},
    "claims": [{"number": 2.5, "unit": "x", "what": "x", "setting": "x", "source": "x"}],
    "provenance": {"title": "x", "venue": "x"}, "note": "x",
}  # fmt: skip


def leaves(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to every string in nested data."""
    if isinstance(data, str):
        yield path
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, key))


def put(data: Any, path: tuple, value: Any) -> Any:
    """A copy of nested data with another value at `path`."""
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = put(data[path[0]], path[1:], value)
    return copy


def accepted(root: Path, file: str, data: Any, word: Callable[[tuple], str]) -> list[tuple]:
    """The paths at which `check` lets the word of that path stand, tried all at once and then less what it refuses."""
    paths = list(leaves(data))
    while True:
        text = yaml.safe_dump(filled(data, paths, word), allow_unicode=True, sort_keys=False)
        refused = [problem.message.split(":")[0] for problem in check(root, {file: text}) if problem.file == file]
        if not refused:
            return paths
        left = [path for path in paths if ".".join(map(str, path)) not in refused]
        assert len(left) < len(paths), refused
        paths = left


def filled(data: Any, paths: list[tuple], word: Callable[[tuple], str]) -> Any:
    for path in paths:
        data = put(data, path, word(path))
    return data


def named(path: tuple) -> str:
    return "at" + "".join(str(part).replace("_", "").replace("-", "").title() for part in path)


def skeleton(page: Path) -> list[tuple]:
    """Every element with the names of its attributes, in order."""
    return [(element.tag, *sorted(element.attrib)) for element in html5lib.parse(page.read_text("utf-8")).iter()]


def words(page: Path) -> str:
    """What a reader, and a reader of the head, is shown."""
    parsed = html5lib.parse(page.read_text("utf-8"))
    contents = [element.get("content", "") for element in parsed.iter(f"{HTML}meta")]
    return one_line(" ".join(["".join(parsed.itertext()), *contents]))


@pytest.fixture(scope="session")
def sites(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, list[tuple]]]:
    """The same repository built twice, with plain words and with attacks in every field that accepts them."""
    plain, hostile = tmp_path_factory.mktemp("plain") / "root", tmp_path_factory.mktemp("hostile") / "root"
    for folder in (plain, hostile):
        shutil.copytree(root, folder, ignore=shutil.ignore_patterns("build", "tests"))
    struck: dict[str, list[tuple]] = {}
    for number, (name, attack) in enumerate(ATTACKS.items()):
        file = f"catalog/attack-{name}.yaml"
        data = RECORD | {"arxiv": f"2501.0000{number}", "doi": f"10.1234/x{number}", "openreview": f"abcdef1{number}"}
        url = name == "address"

        def attacking(path: tuple, attack: str = attack, url: bool = url) -> str:
            return f"{attack}{named(path)}" if url else f"{named(path)} {attack}"

        def saying(path: tuple, url: bool = url) -> str:
            return f"https://example.org/{named(path)}" if url else named(path)

        data["title"] = f"Title {number} of its own"
        struck[name] = accepted(hostile, file, data, attacking)
        for folder, word in ((plain, saying), (hostile, attacking)):
            text = yaml.safe_dump(filled(data, struck[name], word), allow_unicode=True, sort_keys=False)
            (folder / file).write_text(text, "utf-8")
    for vocabulary in ("stages", "venues"):
        for folder in (plain, hostile):
            path = folder / f"taxonomy/{vocabulary}.yaml"
            data = yaml.safe_load(path.read_text("utf-8"))
            open_ = [p for p in leaves(data) if p[-1] in ("title", "definition", "test", "name")]
            attack = f" {ATTACKS['html']} {ATTACKS['template']}" if folder is hostile else ""
            text = yaml.safe_dump(filled(data, open_, lambda p, attack=attack: named(p) + attack), sort_keys=False)
            path.write_text(text, "utf-8")
    for folder in (plain, hostile):
        build(folder, folder / "build/site")
    return plain / "build/site", hostile / "build/site", struck


def test_every_field_of_free_text_was_attacked(sites) -> None:
    struck = sites[2]
    free = {".".join(map(str, path)) for path in struck["html"]}
    assert {"name", "title", "authors.0", "summary", "implementation.reason", "claims.0.what", "note"} <= free
    assert {path[0] for path in struck["address"]} >= {"url", "links", "project_page", "summary"}


def test_no_attack_changes_the_elements_of_any_page(sites) -> None:
    plain, hostile, _ = sites
    pages = sorted(path.relative_to(plain) for path in plain.rglob("*.html"))
    assert pages == sorted(path.relative_to(hostile) for path in hostile.rglob("*.html"))
    changed = [str(page) for page in pages if skeleton(plain / page) != skeleton(hostile / page)]
    assert changed == []


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_page_shows_of_a_field_it_shows_as_it_was_written(sites, name: str) -> None:
    plain, hostile, struck = sites
    page = f"papers/attack-{name}/index.html"
    before, after = words(plain / page), words(hostile / page)
    shown = [path for path in struck[name] if named(path) in before]
    assert len(shown) >= 5
    if name != "address":
        lost = [path for path in shown if one_line(f"{named(path)} {ATTACKS[name]}") not in after]
        assert lost == []


def test_no_address_runs_code_or_leaves_its_attribute(sites) -> None:
    _, hostile, struck = sites
    page = html5lib.parse((hostile / "papers/attack-address/index.html").read_text("utf-8"))
    targets = [element.get("href") or "" for element in page.iter(f"{HTML}a")]
    assert not [target for target in targets if target.strip().lower().startswith("javascript:")]
    written = {f"{ATTACKS['address']}{named(path)}" for path in struck["address"] if path[0] in ("url", "links")}
    assert written <= set(targets)


def test_nothing_of_an_attack_is_computed(sites) -> None:
    for page in sites[1].rglob("*.html"):
        assert "1337" not in page.read_text("utf-8").replace("7 * 191", "")
