"""The command line: list, show, run, bench, train, search, estimate, pairs, demo.

`elvi run --json` prints one object: plan, question, expected (null for own input), answer, tokens, report (the fields
of `elvi.core.meter.Report`), and with --baseline the same keys of the unmodified model under `baseline`; of a related
system it is technique and tables (each title, columns, rows, note). Exit codes:
0, 2 for a request that cannot be met (one sentence on stderr), 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvi import discover, estimate, pairs, terminal
from elvi.errors import ElviError
from elvi.related import commands as related

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elvi.families.family import Family


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse exits by itself on a malformed command line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    options.command_line = shlex.join(["elvi", *arguments])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options.command(options)
    except ElviError as error:
        print(f"elvi: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"elvi: interrupted{options.when_interrupted}", file=sys.stderr)
        return 130
    return 0


def list_(options: argparse.Namespace) -> None:
    rows = [
        {"id": name, "stage": discover.stage_of(name), "summary": discover.summary_of(name)}
        for name in (discover.list_techniques(options.stage) if options.stage else discover.list_all())
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    from elvi import tables

    terminal.echo(tables.techniques(rows))


def show(options: argparse.Namespace) -> None:
    from elvi import tables

    show = tables.system if discover.stage_of(options.id) == discover.RELATED else tables.technique
    terminal.echo(show(options.id, discover.technique(options.id)))


def run(options: argparse.Namespace) -> None:
    if related.named(options.ids):
        related.run(options)
        return
    from elvi import spec
    from elvi.ask import ask, clip_from
    from elvi.core.plan import Plan

    plan = Plan(*map(spec.parse, options.ids))
    clip = clip_from(options.video, options.image, options.sample, options.prompt)
    family = _load(options.model)
    settings = {key: getattr(options, key) for key in ("max_new_tokens", "temperature", "seed")}
    result = ask(family, clip, options.prompt, plan, **settings)
    if options.baseline:
        result["baseline"] = ask(family, clip, options.prompt, Plan(), **settings)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    from elvi import tables

    terminal.echo(tables.answers(result))


def bench(options: argparse.Namespace) -> None:
    if related.named(options.ids):
        related.bench(options)
        return
    from rich.console import Console

    from elvi import tables
    from elvi.bench import sweep
    from elvi.bench.measure import Protocol

    if options.speed is not None or options.kept:
        (_kept if options.kept else _speed)(options)
        return
    if not options.ids:
        raise ElviError("Nothing was named to measure: give technique ids, `all`, --speed or --kept.")
    protocol = Protocol(options.clips, options.repeat)
    sweeps = [] if options.ids == ["all"] else [sweep.parse(text, options.budget) for text in options.ids]
    family = _load(options.model)
    console = Console(stderr=True)
    if not sweeps:
        sweeps = sweep.fitting(family, options.budget, console.print)
    for each in sweeps:
        each.check(family)
    for each in sweeps:
        with terminal.progress() as progress:
            task = progress.add_task(each.name, total=each.steps(protocol))
            path, data = sweep.run(
                family,
                each,
                protocol,
                options.out,
                command=options.command_line,
                resume=options.resume,
                tick=partial(progress.advance, task),
            )
        terminal.echo(tables.sweep(data))
        print(path)


def search_skips(options: argparse.Namespace) -> None:
    from elvi.bench import search

    family = _load(options.model)
    with terminal.progress() as progress:
        task = progress.add_task(family.name, total=options.trials)
        found = search.search(
            family.num_layers,
            partial(search.predicted_speedup, family),
            trials=options.trials,
            seed=options.seed,
            study=options.study,
            name=family.name,
            tick=partial(progress.advance, task),
        )
    terminal.echo(f"{found.spec}\npredicted speed-up {found.predicted_speedup:.3f} after {found.trials} trials")


def search_heads(options: argparse.Namespace) -> None:
    from elvi.bench import heads

    family = _load(options.model)
    with terminal.progress() as progress:
        task = progress.add_task(family.name, total=options.clips)
        scores = heads.count(family, clips=options.clips, seed=options.seed, tick=partial(progress.advance, task))
    path = heads.save(scores, family.name, options.out or heads.FOUND)
    terminal.echo(f"{heads.summary(scores)}\n{path}")


def search_profile(options: argparse.Namespace) -> None:
    from elvi.bench import heads, profile
    from elvi.prefill import btp, fitprune

    measure, default, what = {
        "btp": (profile.likeness, btp.FOUND, "Cosines of layers"),
        "fitprune": (profile.recipes, fitprune.FOUND, "Recipes"),
    }[options.kind]
    family = _load(options.model)
    with terminal.progress() as progress:
        task = progress.add_task(family.name, total=options.clips)
        found = measure(family, clips=options.clips, seed=options.seed, tick=partial(progress.advance, task))
    path = heads.save(found, family.name, options.out or default, what)
    for row in found.tolist():
        terminal.echo(" ".join(f"{number:.3f}" for number in row))
    terminal.echo(path)


def demo(options: argparse.Namespace) -> None:
    from elvi import demo, tables

    family = _load(demo.MODEL)
    for scene in demo.SCENES:
        terminal.echo(
            f"[bold]{scene.path.name}[/bold]: {scene.seconds} seconds, {family.name}, {family.attention_kernel}\n"
        )
        terminal.echo(tables.answers(demo.compare(family, scene)))
        terminal.echo("")


def _speed(options: argparse.Namespace) -> None:
    from elvi.bench import speed

    _quiet()
    only = speed.themes(options.speed)
    speed.run(options.out, command=options.command_line, tell=print, only=only)


def _kept(options: argparse.Namespace) -> None:
    from elvi.bench import kept

    family = _load(options.model)
    print(kept.run(family, options.out, command=options.command_line, tell=partial(print, flush=True)))


def _load(name: str) -> Family:
    from elvi.families.load import load

    _quiet()
    return load(name)


def _quiet() -> None:
    """Keep the libraries' log lines and loading bars out of what is printed."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub.set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elvi", description="Efficient large vision-language inference.")
    parser.set_defaults(when_interrupted="")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _list_parser(commands)
    _run_parser(commands)
    _bench_parser(commands)
    related.add_train(commands)
    _search_parser(commands)
    estimate.add_parser(commands)
    pairs.add_parser(commands)
    command = commands.add_parser("demo", help="one composed plan next to the unmodified model, on a shipped clip")
    command.set_defaults(command=demo)
    return parser


def _list_parser(commands: Any) -> None:
    command = commands.add_parser("list", help="name the techniques that can be run")
    command.add_argument("--stage", choices=discover.STAGES)
    command.add_argument("--json", action="store_true", help="print an array of {id, stage, summary}")
    command.set_defaults(command=list_)
    command = commands.add_parser("show", help="describe one technique: fields, defaults, what it needs and ends")
    command.add_argument("id", metavar="ID")
    command.set_defaults(command=show)


def _run_parser(commands: Any) -> None:
    command = commands.add_parser("run", help="answer a question with a plan of techniques")
    command.add_argument(
        "ids", nargs="*", metavar="ID[:field=value,...]", help="techniques; none is the unmodified model"
    )
    _model_option(command)
    source = command.add_mutually_exclusive_group()
    source.add_argument("--video", metavar="F")
    source.add_argument("--image", metavar="F", nargs="+")
    source.add_argument(
        "--sample", metavar="N", type=int, help="synthetic clip N (default 10000; held out from there on)"
    )
    command.add_argument("--prompt", metavar="T", help="the question; alone it is asked without any picture")
    command.add_argument("--max-new-tokens", metavar="N", type=int, default=256)
    command.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 (default) is greedy")
    command.add_argument("--seed", metavar="S", type=int, default=0)
    command.add_argument("--baseline", action="store_true", help="run the unmodified model too")
    command.add_argument("--json", action="store_true", help="print one object instead of tables")
    command.set_defaults(command=run)


def _bench_parser(commands: Any) -> None:
    command = commands.add_parser("bench", help="measure techniques next to the unmodified model and save the results")
    command.add_argument("ids", nargs="*", metavar="ID[:field=value,...]", help="techniques to sweep, or `all`")
    _model_option(command)
    command.add_argument("--budget", metavar="V,V", help="values of the swept field (default: the technique's own)")
    command.add_argument("--clips", metavar="N", type=_positive, default=60)
    command.add_argument("--repeat", metavar="N", type=_positive, default=5, help="timed repeats")
    command.add_argument("--out", metavar="DIR", type=Path, default=Path("results"))
    command.add_argument("--resume", action="store_true", help="go on where an interrupted sweep stopped")
    command.add_argument(
        "--speed",
        metavar="THEME,...",
        nargs="?",
        const="",
        help="measure the ratios of speed and memory of elvi itself, all or those of some themes",
    )
    command.add_argument(
        "--kept",
        action="store_true",
        help="draw what measured techniques keep of one frame, and ask what evenly spaced tokens answer",
    )
    command.set_defaults(command=bench, when_interrupted="; finished cells are saved, and --resume goes on from them")


def _search_parser(commands: Any) -> None:
    command = commands.add_parser("search", help="find out by trying what a technique has to know about a model")
    kinds = command.add_subparsers(required=True, metavar="ID")
    command = kinds.add_parser("draft-and-verify", help="the sub-layers to skip while a model drafts for itself")
    _model_option(command)
    command.add_argument("--trials", metavar="N", type=_positive, default=100)
    command.add_argument("--seed", metavar="S", type=int, default=0)
    command.add_argument(
        "--study", metavar="FILE", type=Path, help="where trials are kept; an interrupted search resumes"
    )
    command.set_defaults(command=search_skips, when_interrupted="; trials made are in the study file, if one was named")
    command = kinds.add_parser("sparsemm", help="the heads that look at what is being named")
    _model_option(command)
    command.add_argument("--clips", metavar="N", type=_positive, default=200, help="captioned clips (default 200)")
    command.add_argument("--seed", metavar="S", type=int, default=0)
    command.add_argument(
        "--out", metavar="FILE", type=Path, help="the table to write to (default: the one that sparsemm reads)"
    )
    command.set_defaults(command=search_heads)
    for kind, what in (
        ("btp", "how much every layer changes the visual tokens"),
        ("fitprune", "how many visual tokens every layer may lose, budget by budget"),
    ):
        command = kinds.add_parser(kind, help=what)
        _model_option(command)
        command.add_argument("--clips", metavar="N", type=_positive, default=64, help="clips (default 64)")
        command.add_argument("--seed", metavar="S", type=int, default=0)
        command.add_argument(
            "--out", metavar="FILE", type=Path, help=f"the table to write to (default: that of {kind})"
        )
        command.set_defaults(command=search_profile, kind=kind)


def _model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", metavar="NAME", default="tiny-qwen", help="shipped model, folder, .gguf file or hub id"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
