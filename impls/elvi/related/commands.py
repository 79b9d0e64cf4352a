"""The commands of the command line for related systems."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvi import discover, spec, terminal
from elvi.errors import ElviError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from elvi.related import System

OF_A_PLAN = ("video", "image", "sample", "baseline")  # options that ask for vision-language inference
OF_A_SWEEP = ("budget", "resume", "speed")


def named(ids: list[str]) -> list[str]:
    """The related systems among `ids`. Raises ElviError when techniques stand beside them."""
    systems = discover.list_techniques(discover.RELATED)
    found = [text for text in ids if _id(text) in systems]
    if found and len(found) < len(ids):
        raise ElviError(
            f"{_id(found[0])} has models of its own and cannot be used together with techniques: name it alone."
        )
    return found


def run(options: argparse.Namespace) -> None:
    _refuse(options, OF_A_PLAN)
    if len(options.ids) > 1:
        raise ElviError(f"{' and '.join(map(_id, options.ids))} have nothing to run in common: name one of them.")
    [text] = options.ids
    tables = spec.parse(text).run(options.prompt)
    if options.json:
        print(json.dumps({"technique": _id(text), "tables": [asdict(table) for table in tables]}, indent=1))
    else:
        _show(tables)


def bench(options: argparse.Namespace) -> None:
    _refuse(options, OF_A_SWEEP)
    systems = {_id(text): spec.parse(text) for text in options.ids}
    from elvi.related import results

    for name, system in systems.items():
        with _ticking(name) as tick:
            path, tables = results.measure(name, system, options.out, command=options.command_line, tick=tick)
        _show(tables)
        print(path)


def train(options: argparse.Namespace) -> None:
    name = _id(options.id)
    discover.source_of(name)
    if not named([options.id]):
        systems = ", ".join(discover.list_techniques(discover.RELATED))
        raise ElviError(f"{name} has nothing to train here: name a system with models of its own ({systems}).")
    system: System = spec.parse(options.id)
    if options.data is not None and not options.data.is_file():
        raise ElviError(f"{options.data} was to be trained on, but there is no such file: name a readable one.")
    out = options.out or Path("build") / name
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ElviError(f"{out} cannot be made ({error.strerror}): choose another folder with --out.") from error
    with _ticking(name) as tick:
        system.train(out, options.data, resume=options.resume, tick=tick)
    print(out)


def add_train(commands: Any) -> None:
    """The options of `elvi train`."""
    command = commands.add_parser("train", help="train the models of a related system from the seed")
    command.add_argument("id", metavar="ID[:field=value,...]")
    command.add_argument("--out", metavar="DIR", type=Path, help="folder of weights and checkpoints (build/ID)")
    command.add_argument("--data", metavar="FILE", type=Path, help="train on this instead of the shipped data")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    command.set_defaults(command=train, when_interrupted="; finished parts are saved, and --resume goes on from them")


def _id(text: str) -> str:
    return text.partition(":")[0]


def _refuse(options: argparse.Namespace, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(options, name) not in (None, False):
            raise ElviError(f"{_id(options.ids[0])} has models of its own, to which --{name} says nothing: drop it.")


def _show(tables: Any) -> None:
    from elvi import tables as printed

    for table in tables:
        terminal.echo(printed.related(table))


@contextmanager
def _ticking(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar under a name, as the `tick(done, total)` that a system calls."""
    bar = terminal.progress()
    task = bar.add_task(name, total=None)
    begun = False

    def tick(done: int, total: int) -> None:
        nonlocal begun
        if not begun:  # only now: what is refused before it leaves its sentence alone on stderr
            bar.start()
            begun = True
        bar.update(task, completed=done, total=total)

    try:
        yield tick
    finally:
        if begun:
            bar.stop()
