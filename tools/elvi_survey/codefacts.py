"""What a technique's module says about itself, read from its syntax tree: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elvi.errors import ElviError
from elvi.example import Example, example
from elvi_survey.load import read_text
from elvi_survey.marked import MarkedError

STAGES = ("encode", "prefill", "decode", "serve")
RELATED = "related"  # stage of the systems with models of their own
FACTS = "impls/elvi/core/facts.py"


class CodeFactsError(ElviError):
    """A module cannot be read as a technique; `file` and `line` say where."""

    def __init__(self, file: str, line: int, message: str, fix: str) -> None:
        super().__init__(f"{file}:{line} {message}: {fix}.")
        self.file, self.line, self.message, self.fix = file, line, message, fix


@dataclass(frozen=True)
class FieldFacts:
    """One field; `default` is its source (None: must be given), `doc` the comment at the end of its line."""

    name: str
    type: str
    default: str | None
    line: int
    doc: str | None


@dataclass(frozen=True)
class ClassFacts:
    """One frozen dataclass; `needs` and `breaks` are names of facts, `methods` the public ones in source order.

    companions: specs of techniques that it cannot act without. sweep: the field that measurements vary, and its values.
    prompt: what a related system can be asked as a text; None where it reads none.
    """

    name: str
    line: int
    doc: str
    fields: list[FieldFacts]
    needs: list[str]
    breaks: list[str]
    methods: list[str]
    companions: list[str]
    sweep: tuple[str, tuple[float, ...]] | None
    prompt: str | None


@dataclass(frozen=True)
class Technique:
    """A module and its classes, the main one first; the facts of the main one can be read directly.

    lines: of the module, or of all modules of a related system.
    """

    id: str
    stage: str
    path: str
    lines: int
    summary: str
    doc: str
    classes: list[ClassFacts]

    @property
    def main(self) -> ClassFacts:
        return self.classes[0]

    @property
    def name(self) -> str:
        return self.main.name

    @property
    def line(self) -> int:
        return self.main.line

    @property
    def companions(self) -> list[str]:
        """Specs of the techniques that the first one cannot act without."""
        return self.main.companions if self.classes else []

    @property
    def example(self) -> Example:
        """The command that shows it at work."""
        return example(self.id, self.needs, self.methods, self.companions, self.main.sweep)

    @property
    def fields(self) -> list[FieldFacts]:
        return self.main.fields

    @property
    def needs(self) -> list[str]:
        return self.main.needs

    @property
    def breaks(self) -> list[str]:
        return self.main.breaks

    @property
    def methods(self) -> list[str]:
        return self.main.methods


def module_files(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(stage, id, file) of every technique module below `root`, in order; a related technique is a package."""
    for stage in STAGES:
        for path in sorted((root / "impls/elvi" / stage).glob("[!_]*.py")):
            yield stage, path.stem.replace("_", "-"), path
    for path in sorted((root / "impls/elvi/related").glob("[!_]*/__init__.py")):
        yield RELATED, path.parent.name.replace("_", "-"), path


def read_techniques(root: Path) -> dict[str, Technique]:
    """The code facts of every technique by id; raises CodeFactsError at the first module that breaks the contract."""
    return {id_: read_technique(root, stage, id_, path) for stage, id_, path in module_files(root)}


def read_technique(root: Path, stage: str, id_: str, path: Path) -> Technique:
    """The code facts of one module; raises CodeFactsError when it does not follow the contract."""
    file = path.relative_to(root).as_posix()
    source, tree = parse(root, file)
    doc = ast.get_docstring(tree)
    if not doc:
        raise CodeFactsError(file, 1, "the module has no docstring", "begin it with one sentence on the paper's idea")
    mark = "bench" if stage == RELATED else "needs"
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_technique(node, mark)]
    if not nodes:
        parts = "`run`, `bench` and `train`" if stage == RELATED else "`needs` and `breaks`"
        fix = f"write `@dataclass(frozen=True)` above a class with {parts}"
        raise CodeFactsError(file, 1, "the module has no public technique class", fix)
    try:
        classes = [_class(node, source.splitlines()) for node in nodes]
    except (ValueError, RecursionError):
        raise CodeFactsError(file, nodes[0].lineno, "a value of the class is no literal", "write it out") from None
    files = [each.relative_to(root).as_posix() for each in sorted(path.parent.glob("*.py"))]
    lines = sum(len(parse(root, each)[0].splitlines()) for each in (files if stage == RELATED else [file]))
    return Technique(id_, stage, file, lines, doc.split("\n\n")[0].replace("\n", " "), doc, classes)


def read_facts(root: Path) -> dict[str, str]:
    """Name -> sentence of the closed list of facts; raises CodeFactsError when the enum is not there."""
    tree = parse(root, FACTS)[1] if (root / FACTS).is_file() else ast.Module([], [])
    enum = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Fact"), None)
    if enum is None:
        raise CodeFactsError(FACTS, 1, "there is no class Fact", "define the enum of facts there")
    return {
        node.targets[0].id: node.value.value
        for node in enum.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def parse(root: Path, file: str) -> tuple[str, ast.Module]:
    """Text and syntax tree of a file inside `root`; raises CodeFactsError for a link, a large file and bad syntax."""
    path = root / file
    if path.resolve() != root.resolve() / file:
        raise CodeFactsError(file, 1, "the file is reached through a symbolic link", "put a plain file there")
    try:
        source = read_text(path)
        return source, ast.parse(source)
    except MarkedError as error:
        raise CodeFactsError(file, error.line, error.message, error.fix) from None
    except SyntaxError as error:
        raise CodeFactsError(file, error.lineno or 1, "the file is not Python", "correct the syntax") from None
    except (ValueError, RecursionError, MemoryError):
        raise CodeFactsError(file, 1, "the file is not Python", "correct the syntax") from None


def _is_technique(node: ast.ClassDef, mark: str) -> bool:
    """A public frozen dataclass with an attribute or method `mark`: what it needs, or the experiment of a system."""
    frozen = any(
        isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith("dataclass")
        and any(word.arg == "frozen" and ast.unparse(word.value) == "True" for word in call.keywords)
        for call in node.decorator_list
    )
    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
    return frozen and not node.name.startswith("_") and (mark in methods or _attribute(node, mark) is not None)


def _class(node: ast.ClassDef, lines: list[str]) -> ClassFacts:
    annotated = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    fields = [_field(item, lines) for item in annotated if "ClassVar" not in ast.unparse(item.annotation)]
    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
    needs, breaks = _fact_names(_attribute(node, "needs")), _fact_names(_attribute(node, "breaks"))
    named, sweep, prompt = (_literal(node, name) for name in ("companions", "sweep", "prompt"))
    doc = ast.get_docstring(node) or ""
    return ClassFacts(node.name, node.lineno, doc, fields, needs, breaks, methods, list(named or ()), sweep, prompt)


def _field(item: ast.AnnAssign, lines: list[str]) -> FieldFacts:
    default = item.value
    if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
        default = next((word.value for word in default.keywords if word.arg in ("default", "default_factory")), None)
    rest = lines[(item.end_lineno or item.lineno) - 1].encode()[item.end_col_offset or 0 :].decode().strip()
    doc = rest.lstrip("#: ") or None if rest.startswith("#") else None
    given = None if default is None else ast.unparse(default)
    return FieldFacts(ast.unparse(item.target), ast.unparse(item.annotation), given, item.lineno, doc)


def _attribute(node: ast.ClassDef, name: str) -> ast.expr | None:
    """The value that the class body gives to `name`."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign | ast.Assign):
            targets = [item.target] if isinstance(item, ast.AnnAssign) else item.targets
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return item.value
    return None


def _literal(node: ast.ClassDef, name: str) -> Any:
    value = _attribute(node, name)
    return None if value is None else ast.literal_eval(value)


def _fact_names(value: ast.expr | None) -> list[str]:
    """The NAMEs of every `Fact.NAME` inside `value`, in source order."""
    nodes = [node for node in ast.walk(value) if isinstance(node, ast.Attribute)] if value is not None else []
    found = [node for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "Fact"]
    return [node.attr for node in sorted(found, key=lambda node: (node.lineno, node.col_offset))]
