"""`elvi-survey`: check, fmt, export, stats and site.  Problems in the catalog exit with 1, misuse with 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from elvi.errors import ElviError
from elvi_survey.check import check
from elvi_survey.export import FORMATS
from elvi_survey.fmt import format_files
from elvi_survey.load import load_catalog
from elvi_survey.problems import CatalogError, Problem


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message[0].upper()}{message[1:]}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="elvi-survey", description="Check, format and export the catalog; build the site.")
    parser.add_argument("--root", type=Path, default=None, help="repository root (default: found from here upwards)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("check", help="report every problem of the catalog")
    command.add_argument("--format", choices=["text", "json", "github"], default="text")
    command.set_defaults(run=_check)
    command = commands.add_parser("fmt", help="bring records into canonical form")
    command.add_argument("--check", action="store_true", help="only say which files would change")
    command.set_defaults(run=_fmt)
    command = commands.add_parser("export", help="write the catalog in another format")
    command.add_argument("--format", choices=sorted(FORMATS), required=True)
    command.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    command.set_defaults(run=_export)
    command = commands.add_parser("stats", help="count records by stage, category and status")
    command.set_defaults(run=_stats)
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
    if options.format == "json":
        print(json.dumps([problem.to_dict() for problem in problems], indent=1, ensure_ascii=False))
    else:
        for problem in problems:
            print(_annotation(problem) if options.format == "github" else problem)
    count = len(list((root / "catalog").glob("*.yaml")))
    print(f"{count} records, {len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


def _annotation(problem: Problem) -> str:
    """A workflow command; the message cannot end it early or start another."""
    file = _escape(problem.file).replace(":", "%3A").replace(",", "%2C")
    place = f"file={file},line={problem.line},col={problem.column},title={problem.code}"
    return f"::error {place}::{_escape(f'{problem.message} — {problem.fix}')}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _fmt(options: argparse.Namespace) -> int:
    root = repository(options.root)
    changed = format_files(root, write=not options.check)
    for path in changed:
        print(f"{'would change' if options.check else 'changed'} {path.relative_to(root)}")
    return 1 if changed and options.check else 0


def _export(options: argparse.Namespace) -> int:
    text = FORMATS[options.format](load_catalog(repository(options.root)))
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{options.output} cannot be written ({error.strerror}); name another file.") from None
    return 0


def _stats(options: argparse.Namespace) -> int:
    catalog = load_catalog(repository(options.root))
    status = Counter(record.implementation.status for record in catalog.records.values())
    print(f"{len(catalog.records)} records: " + ", ".join(f"{count} {name}" for name, count in status.most_common()))
    for stage in catalog.stages.values():
        print(f"{stage.title}: {len(catalog.in_path(stage.id))}")
        for category in stage.categories.values():
            print(f"  {category.title}: {len(catalog.in_path(stage.id, category.id))}")
    return 0


def _site(arguments: list[str]) -> int:
    """Hand over to the site generator, which is imported only here because it needs the site's own packages."""
    from elvi_survey.site.build import main as site

    return site(arguments)
