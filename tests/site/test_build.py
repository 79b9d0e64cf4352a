"""The build as a whole: complete, strict, repeatable, self-contained."""

import json
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest
import yaml

from elvi_survey.problems import CatalogError
from elvi_survey.site.build import build, collect
from elvi_survey.site.errors import SiteError
from elvi_survey.site.lean import lean
from elvi_survey.site.pages import all_pages

HTML = "{http://www.w3.org/1999/xhtml}"
REPOSITORY = Path(__file__).parents[2]
LYCHEE = Path(sys.executable).with_name("lychee")


def tree(page: Path):
    return html5lib.parse(page.read_text(encoding="utf-8"))


def lychee(site: Path) -> subprocess.CompletedProcess[str]:
    """Check every internal link and fragment; 404.html is left out because its addresses start at the server's root."""
    options = ["--offline", "--include-fragments", "--no-progress", "--index-files", "index.html"]
    command = [LYCHEE, *options, "--exclude-path", "404.html", "--root-dir", site, site]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def files(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


def test_every_record_stage_and_category_has_a_page(root, site):
    addresses = {page.url for page in all_pages(collect(root))}
    assert {"", "papers/", "papers/fastv/", "papers/hostile/", "encode/", "prefill/token-compression/"} <= addresses
    assert all((site / address / "index.html").is_file() for address in addresses)


def test_two_builds_are_byte_identical(root, site, scratch_root):
    build(scratch_root, scratch_root / "build/site")
    assert files(site) == files(scratch_root / "build/site")


def test_internal_links_and_fragments_resolve(site):
    done = lychee(site)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* OK", done.stdout)


def test_the_link_check_sees_a_missing_page_and_a_missing_fragment(site, tmp_path):
    (tmp_path / "index.html").write_text('<a href="gone/">a</a><a href="#nowhere">b</a>', encoding="utf-8")
    done = lychee(tmp_path)
    assert done.returncode != 0
    assert "2 Errors" in done.stdout


def test_a_broken_link_in_a_hand_written_page_stops_the_build(scratch_root, capsys):
    (scratch_root / "docs/pages/about.md").write_text("# About\n\n[lost](nowhere.md)\n", encoding="utf-8")
    with pytest.raises(SiteError, match="mkdocs"):
        build(scratch_root, scratch_root / "build/site")
    assert "nowhere.md" in capsys.readouterr().err


def test_a_bad_catalog_stops_the_build_before_anything_is_written(scratch_root):
    (scratch_root / "catalog/fastv.yaml").write_text("title: [", encoding="utf-8")
    with pytest.raises(CatalogError):
        build(scratch_root, scratch_root / "build/site")
    assert not (scratch_root / "build").exists()


def test_a_folder_that_is_not_a_site_is_left_alone(root, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years", encoding="utf-8")
    with pytest.raises(SiteError, match="not a built site"):
        build(root, tmp_path)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "ten years"


def test_a_results_file_of_another_schema_is_refused(scratch_root):
    path = scratch_root / "results/cpu-test/tiny-qwen/fastv.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}), encoding="utf-8")
    with pytest.raises(SiteError, match="schema 1"):
        collect(scratch_root)


def test_a_record_that_claims_to_run_without_code_is_refused(scratch_root):
    (scratch_root / "impls/elvi/prefill/fastv.py").unlink()
    with pytest.raises(SiteError, match="fastv is marked runnable"):
        collect(scratch_root)


def test_nothing_is_loaded_from_another_host(site):
    for path in site.rglob("*.html"):
        page = tree(path)
        loaded = [e.get("src") for e in page.iter() if e.get("src")]
        loaded += [e.get("href") for e in page.iter(f"{HTML}link") if e.get("rel") != "canonical"]
        assert loaded
        assert not [address for address in loaded if "//" in address], path
    for style in site.glob("look/*.css"):
        assert "//" not in re.sub(r"/\*.*?\*/", "", style.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_site_ships_no_file_of_the_theme_that_no_page_loads(site):
    assert not list(site.glob("assets/**/*.js")) + list(site.glob("assets/**/*.css"))


def test_links_into_the_repository_use_the_one_address_of_the_configuration(root, site):
    address = re.search(r"^repo_url: (\S+)$", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert address
    links = {e.get("href") for path in site.rglob("*.html") for e in tree(path).iter(f"{HTML}a")}
    ours = {link for link in links if "/elvi" in link and link.startswith("http")}
    assert len(ours) > 5
    assert all(link.startswith(address[1]) for link in ours)


def test_each_page_opens_the_form_that_fixes_it(root, site):
    form = yaml.safe_load(
        (Path(__file__).parents[2] / ".github/ISSUE_TEMPLATE/fix-entry.yml").read_text(encoding="utf-8")
    )
    assert "record" in {item.get("id") for item in form["body"]}
    links = {e.get("href") for e in tree(site / "papers/fastv/index.html").iter(f"{HTML}a")}
    assert [link for link in links if link.endswith("/issues/new?template=fix-entry.yml&record=fastv")]


def test_every_page_of_a_record_stays_small_and_out_of_the_navigation(tmp_path, site):
    """Measured on the real catalog with all its results, as it is built."""
    build(REPOSITORY, tmp_path / "site")
    weights = {path.parent.name: path.stat().st_size for path in (tmp_path / "site/papers").glob("*/index.html")}
    heaviest = max(weights, key=weights.__getitem__)
    print(f"\n{len(weights)} record pages, the heaviest is {heaviest} with {weights[heaviest]} bytes")
    assert len(weights) > 300
    assert not {name: weight for name, weight in weights.items() if weight > 25_000}
    assert b"papers/hostile" not in (site / "about/index.html").read_bytes()


def test_a_lean_page_keeps_its_main_part_and_loses_what_no_script_of_ours_reads(site):
    page = (site / "papers/hostile/index.html").read_text(encoding="utf-8")
    assert not re.search("__md_|__tabbed_|md-toggle|md-dialog|md-overlay", page)
    assert lean(page) == page
    kept = '<main><pre>  a\n\n  b</pre><p>__md_scope <input class="x"></p></main>'
    assert lean(f"<html>\n  <body>\n\n    {kept}\n  </body>") == f"<html>\n<body>\n{kept}</body>"


def test_the_configuration_uses_no_plugin_and_no_hook(root):
    text = (root / "mkdocs.yml").read_text(encoding="utf-8").replace("!ENV", "")
    configured = yaml.safe_load(text)
    assert configured["plugins"] == []
    assert "hooks" not in configured
    assert configured["theme"]["font"] is False


def test_without_scripts_the_table_lists_every_record(root, site):
    records = collect(root).catalog.records
    rows = [row for row in tree(site / "papers/index.html").iter(f"{HTML}tr") if row.get("id")]
    assert {row.get("id") for row in rows} == set(records)
    assert not [row for row in rows if row.get("hidden") is not None]
