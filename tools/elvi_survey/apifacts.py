"""The public names of the core with their signatures and docstrings, read from syntax trees: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elvi_survey.codefacts import parse

CORE = "impls/elvi/core"
WIDE = 88


@dataclass(frozen=True)
class Name:
    """One public name; `kind` is class, function, property or constant, `members` are those of a class."""

    name: str
    kind: str
    signature: str
    doc: str
    line: int
    members: tuple[Name, ...] = ()


@dataclass(frozen=True)
class Module:
    """One file of the core; `path` is relative to the repository's root."""

    name: str
    path: str
    doc: str
    names: tuple[Name, ...]

    @property
    def summary(self) -> str:
        """The first sentence or two, as one line."""
        return " ".join(self.doc.split("\n\n")[0].split())


def read_core(root: Path) -> dict[str, Module]:
    """The modules of the core by name, sorted; raises CodeFactsError for a file that cannot be read."""
    paths = sorted((root / CORE).glob("[!_]*.py"))
    return {path.stem: _module(root, path.relative_to(root).as_posix()) for path in paths}


def _module(root: Path, file: str) -> Module:
    source, tree = parse(root, file)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    names = tuple(_names(tree.body, source.splitlines(), classes))
    return Module(Path(file).stem, file, ast.get_docstring(tree) or "", names)


def _names(body: list[ast.stmt], lines: list[str], classes: dict[str, ast.ClassDef]) -> Iterator[Name]:
    """Public names in the order of the file."""
    for node in body:
        if isinstance(node, ast.ClassDef) and _public(node.name):
            yield _class(node, lines, classes)
        elif isinstance(node, ast.FunctionDef) and _public(node.name):
            yield _function(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _constant(node, lines)


def _class(node: ast.ClassDef, lines: list[str], classes: dict[str, ast.ClassDef]) -> Name:
    """A class is called with the fields of a dataclass, its bases' first, or with what `__init__` takes."""
    bases = [ast.unparse(base) for base in node.bases]
    doc, members = ast.get_docstring(node) or "", tuple(_members(node, lines, enum="Enum" in bases))
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        signature = _call(node.name, _fields(node, classes))
    else:
        start = next(
            (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None
        )
        shown = f"({', '.join(bases)})" if bases else ""
        signature = f"{node.name}{shown}" if start is None else _call(node.name, _arguments(start)[1:])
    return Name(node.name, "class", f"class {signature}", doc, node.lineno, members)


def _fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    inherited = [field for base in node.bases for field in _fields_of(ast.unparse(base), classes)]
    own = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item)]
    return inherited + [ast.unparse(item) for item in own if not ast.unparse(item.target).startswith("_")]


def _fields_of(base: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    return _fields(classes[base], classes) if base in classes else []


def _members(node: ast.ClassDef, lines: list[str], *, enum: bool) -> Iterator[Name]:
    """Public methods and properties; of a protocol also what a class has to declare, of an enum its values."""
    protocol = "Protocol" in map(ast.unparse, node.bases)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and _public(item.name):
            yield _function(item, bound=True)
        elif isinstance(item, ast.Assign | ast.AnnAssign) and (protocol or enum):
            yield from _constant(item, lines, told=enum)


def _function(node: ast.FunctionDef, *, bound: bool = False) -> Name:
    marks = [ast.unparse(each) for each in node.decorator_list]
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    doc = ast.get_docstring(node) or ""
    if any(mark.endswith("property") for mark in marks):
        return Name(node.name, "property", f"{node.name}{result.replace(' -> ', ': ')}", doc, node.lineno)
    arguments = _arguments(node)
    taken = arguments[1:] if bound and "staticmethod" not in marks else arguments
    return Name(node.name, "function", _call(node.name, taken) + result, doc, node.lineno)


def _constant(node: ast.Assign | ast.AnnAssign, lines: list[str], *, told: bool = False) -> Iterator[Name]:
    """A constant is explained by the comment at its end or, where it is `told`, by its value, a sentence."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    if isinstance(target, ast.Name) and _public(target.id):
        comment = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset or 0 :].decode().strip()
        doc = comment.lstrip("# ") if comment.startswith("#") else ""
        if told and isinstance(node.value, ast.Constant):
            yield Name(target.id, "constant", target.id, str(node.value.value), node.lineno)
        else:
            yield Name(target.id, "constant", ast.unparse(node), doc, node.lineno)


def _arguments(node: ast.FunctionDef) -> list[str]:
    """The arguments as written, each with its type and default, and the marks between them."""
    found, depth, start = [], 0, 0
    text = ast.unparse(node.args) + ","
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    return [each for each in found if each]


def _call(name: str, arguments: list[str]) -> str:
    """On one line where it fits, else an argument a line."""
    line = f"{name}({', '.join(arguments)})"
    return line if len(line) <= WIDE else f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + ")"


def _public(name: str) -> bool:
    return not name.startswith("_")
