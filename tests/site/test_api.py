"""The pages about the core say what Python says about it, and leave nothing out."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest

from elvi_survey.apifacts import Module, Name, read_core
from elvi_survey.site.api import GROUPS, OTHERS, Links, grouped
from elvi_survey.site.pages import Page

REPOSITORY = Path(__file__).parents[2]
HTML = "{http://www.w3.org/1999/xhtml}"
CORE = read_core(REPOSITORY)


def defined(module: str) -> dict[str, object]:
    """What Python itself finds: public functions and classes that are defined in a module of the core."""
    found = vars(importlib.import_module(f"elvi.core.{module}"))
    made = {name: inspect.unwrap(getattr(value, "py_func", value)) for name, value in found.items() if name[0] != "_"}
    kinds = {name: value for name, value in made.items() if inspect.isfunction(value) or inspect.isclass(value)}
    return {name: value for name, value in kinds.items() if value.__module__ == f"elvi.core.{module}"}


def names(module: Module) -> dict[str, Name]:
    return {name.name: name for name in module.names}


def test_every_module_and_public_name_of_the_core_is_read():
    assert set(CORE) == {path.stem for path in (REPOSITORY / "impls/elvi/core").glob("[!_]*.py")}
    for module in CORE.values():
        called = {name.name for name in module.names if name.kind != "constant"}
        assert called == set(defined(module.name)), module.name


def test_every_public_name_is_explained():
    for module in CORE.values():
        assert module.doc, module.path
        for name in module.names:
            assert name.doc, f"{module.path}:{name.line} {name.name}"
            if "(Protocol" not in name.signature:  # the docstring of a protocol tells of all its members
                assert not [f"{module.path}:{each.line} {each.name}" for each in name.members if not each.doc]


@pytest.mark.parametrize("module", CORE.values(), ids=lambda module: module.name)
def test_signatures_name_the_parameters_that_a_call_takes(module):
    for name, value in defined(module.name).items():
        if inspect.isclass(value) and (value.__init__ is object.__init__ or hasattr(value, "__members__")):
            continue
        if getattr(value, "_is_protocol", False):
            continue
        said = ast.parse(f"def {names(module)[name].signature.removeprefix('class ')}: ...").body[0].args
        found = [*said.posonlyargs, *said.args, said.vararg, *said.kwonlyargs, said.kwarg]
        assert [each.arg for each in found if each] == [*inspect.signature(value).parameters], name


def test_the_core_is_read_without_importing_it():
    code = "import sys; from pathlib import Path; from elvi_survey.apifacts import read_core; read_core(Path('.'))"
    command = [sys.executable, "-c", f"{code}; print('torch' in sys.modules, 'elvi.core' in sys.modules)"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(str(REPOSITORY / name) for name in ("impls", "tools"))}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_every_module_stands_once_and_what_a_technique_implements_comes_first():
    groups = grouped(CORE)
    listed = [module.name for modules in groups.values() for module in modules]
    assert sorted(listed) == sorted(CORE)
    assert listed[:2] == ["seams", "facts"]
    assert OTHERS not in groups, "a module that no group names should be given its place in GROUPS"
    assert {name for group in GROUPS.values() for name in group} == set(CORE)
    new = Module("new", "impls/elvi/core/new.py", "New.", ())
    assert grouped({**CORE, "new": new})[OTHERS] == [new]


def test_every_name_and_its_docstring_stand_on_the_page_of_its_module(root, site):
    for module in read_core(root).values():
        tree = html5lib.parse((site / f"api/{module.name}/index.html").read_text(encoding="utf-8"))
        ids = [element.get("id") for element in tree.iter() if element.get("id")]
        assert len(ids) == len(set(ids)), module.name
        text = "".join("".join(tree.itertext()).split())
        for name in module.names:
            assert name.name in ids
            assert {f"{name.name}.{member.name}" for member in name.members} <= set(ids)
            assert "".join(re.split(r"[`.]", name.doc)[0].split()) in text, name.name


def test_types_in_signatures_lead_to_where_they_are_explained_and_nothing_gets_through_unescaped():
    links = Links(Page("api/seams/", "api.html", "", ""), {"Tokens": "tokens", "Reduce": "seams"})
    shown = links.linked("Reduce(tokens: Tokens, x='<b>')", "Reduce")
    assert shown == 'Reduce(tokens: <a href="../../api/tokens/#Tokens">Tokens</a>, x=&#39;&lt;b&gt;&#39;)'
