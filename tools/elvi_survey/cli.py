"""`elvi-survey`: check, format, extend and export the catalog; build the site.

Exit codes: 0 done and clean, 1 problems found, 2 misuse or a service that cannot be used, 130 interrupted.  Only add,
links and discover ask the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from elvi.errors import ElviError
from elvi_survey.check import check
from elvi_survey.fmt import format_files
from elvi_survey.load import catalog_files, load_catalog, read_catalog, read_text
from elvi_survey.marked import MarkedError
from elvi_survey.problems import CatalogError
from elvi_survey.report import REPORTS

FORMATS = ("bibtex", "cff", "csl", "csv", "json", "record-schema", "ris", "schema")


class UsageError(ElviError):
    """The command line asks for something that cannot be done."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["site"]:
            return _site(arguments[1:])
        options = _parser().parse_args(arguments)
        return options.run(options)
    except CatalogError as error:
        print("\n".join(map(str, error.problems)), file=sys.stderr)
        return 1
    except ElviError as error:
        print(f"elvi-survey: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("elvi-survey: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message[0].upper()}{message[1:]}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="elvi-survey", description="Check, format, extend and export the catalog; build the site.")
    parser.add_argument("--root", type=Path, default=None, help="repository root (default: found from here upwards)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        made.set_defaults(run=run)
        return made

    made = command("check", _check, "report every problem of the catalog")
    made.add_argument("--format", choices=list(REPORTS), default="text")
    made = command("fmt", _fmt, "bring records into canonical form")
    made.add_argument("--check", action="store_true", help="only say which files would change")
    made = command("add", _add, "write a new record from arXiv, a DOI, OpenReview or BibTeX")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("arxiv", nargs="?", metavar="ARXIV-ID")
    source.add_argument("--doi")
    source.add_argument("--openreview", metavar="FORUM")
    source.add_argument("--bibtex", type=Path, metavar="FILE", help="asks no network")
    made.add_argument("--key", help="entry of the BibTeX file, where it holds several")
    made.add_argument("--id", help="id of the record, kept for ever (default: from the title)")
    made.add_argument("--place", metavar="STAGE/CATEGORY[/SUBCATEGORY]", help="where it belongs in the taxonomy")
    made = command("from-issue", _from_issue, "turn the body of an issue form into a patch")
    made.add_argument("file", type=Path, help="Markdown, or JSON with the issue; - reads standard input")
    made.add_argument("--id", help="id of a new record (default: from the title)")
    made.add_argument("--write", action="store_true", help="write the record instead of printing the patch")
    made = command("export", _export, "write the catalog in another format")
    made.add_argument("--format", choices=FORMATS, required=True)
    made.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    made = command("links", _links, "look at every external link and keep a history")
    made.add_argument("--history", type=Path, default=Path("build/links.json"))
    made = command("discover", _discover, "list new papers on arXiv that are not in the catalog")
    made.add_argument("--cursor", type=Path, default=Path("build/discover.json"))
    made = command("stats", _stats, "count records by stage, category, year and status")
    made.add_argument("--json", action="store_true")
    made = command("changed", _changed, "list the pages that differ from another checkout's")
    made.add_argument("base", type=Path, help="root of the other checkout")
    commands.add_parser("site", help="build or serve the site")
    return parser


def repository(asked: Path | None) -> Path:
    """`asked`, or the closest folder from here upwards with catalog and taxonomy; raises UsageError without one."""
    here = Path.cwd()
    for folder in [asked] if asked else [here, *here.parents]:
        if (folder / "catalog").is_dir() and (folder / "taxonomy").is_dir():
            return folder
    raise UsageError(f"There is no catalog and taxonomy folder in {asked or here}; run it in a clone or pass --root.")


def _check(options: argparse.Namespace) -> int:
    root = repository(options.root)
    problems = check(root)
    sys.stdout.write(REPORTS[options.format](problems))
    print(f"{len(catalog_files(root))} records, {len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


def _fmt(options: argparse.Namespace) -> int:
    root = repository(options.root)
    changed = format_files(root, write=not options.check)
    for path in changed:
        print(f"{'would change' if options.check else 'changed'} {path.relative_to(root)}")
    return 1 if changed and options.check else 0


def _add(options: argparse.Namespace) -> int:
    from elvi_survey.add import find_paper, new_record
    from elvi_survey.from_issue import placement

    root = repository(options.root)
    catalog, reading = read_catalog(root)
    known = {"placements": [placement(options.place, catalog)]} if options.place else {}
    paper = find_paper(options.arxiv, options.doi, options.openreview, options.bibtex, options.key)
    id_, text = new_record(paper, catalog, reading, options.id, known)
    file = f"catalog/{id_}.yaml"
    _write(root / file, text)
    print(f"{file} is written; it is complete when `elvi-survey check` is quiet:")
    sys.stdout.write(REPORTS["text"]([problem for problem in check(root) if problem.file == file]))
    return 0


def _from_issue(options: argparse.Namespace) -> int:
    from elvi_survey.from_issue import diff, from_issue

    root = repository(options.root)
    catalog, reading = read_catalog(root)
    file, text = from_issue(_input(options.file), catalog, reading, options.id)
    if options.write:
        _write(root / file, text)
    else:
        old = read_text(root / file) if (root / file).is_file() else ""
        sys.stdout.write(diff(file, old, text))
    problems = [problem for problem in check(root, {file: text}) if problem.file == file]
    print(REPORTS["text"](problems) + f"{file}: {len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


def _export(options: argparse.Namespace) -> int:
    from elvi_survey.export import FORMATS as WRITERS

    text = WRITERS[options.format](load_catalog(repository(options.root)))
    if options.output is None:
        sys.stdout.write(text)
    else:
        _write(options.output, text)
    return 0


def _links(options: argparse.Namespace) -> int:
    from elvi_survey.links import History, check_links, summary
    from elvi_survey.web import Web

    catalog, history = load_catalog(repository(options.root)), History.read(options.history)
    links = check_links(Web(), catalog, history, _today(), lambda url: print(url, file=sys.stderr))
    history.write(options.history)
    sys.stdout.write(summary(links, catalog))
    return 1 if any(health.state == "dead" for health in links.values()) else 0


def _discover(options: argparse.Namespace) -> int:
    from elvi_survey.discover import Cursor, discover, markdown
    from elvi_survey.web import Web

    catalog, reading = read_catalog(repository(options.root))
    cursor = Cursor.read(options.cursor)
    found, failed = discover(Web(), catalog, reading, cursor, datetime.now(UTC).date())
    sys.stdout.write(markdown(found, failed, catalog))
    cursor.write(options.cursor)
    return 1 if failed else 0


def _stats(options: argparse.Namespace) -> int:
    from elvi_survey.stats import stats, text

    counts = stats(load_catalog(repository(options.root)))
    sys.stdout.write(json.dumps(counts, indent=1, ensure_ascii=False) + "\n" if options.json else text(counts))
    return 0


def _changed(options: argparse.Namespace) -> int:
    from elvi_survey.changed import changed_pages

    sys.stdout.write(changed_pages(repository(options.base), repository(options.root)))
    return 0


def _site(arguments: list[str]) -> int:
    """Hand over to the site generator, which is imported only here because it needs the site's own packages."""
    from elvi_survey.site.build import main as site

    return site(arguments)


def _today() -> str:
    return str(datetime.now(UTC).date())


def _input(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else read_text(path)
    except MarkedError as error:
        raise UsageError(f"{path} cannot be read: {error.message}; {error.fix}.") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); name another file.") from None
