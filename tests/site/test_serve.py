"""What `make serve` runs: the site is built, shown, and put away when someone presses Ctrl+C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from commands import ROOT

from elvi_survey.cli import main

# Ctrl+C is heeded even where whoever started the tests has it ignored, as shells do for what runs behind them.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from elvi_survey.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def started(root: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """`elvi-survey site serve` of the repository at `root`, as a process that does not outlive the test."""
    command = [sys.executable, "-c", PROGRAM, "site", "serve", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_home_page_is_served_until_ctrl_c(scratch_root):
    with started(scratch_root, "--port", "0") as process:
        lines = (process.stdout.readline() for _ in range(2))
        [address] = [found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))]
        with urlopen(address, timeout=20) as reply:
            assert reply.status == 200
            assert b"A living survey" in reply.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "GET / " in err


def test_ctrl_c_during_the_build_is_one_line(monkeypatch, capsys):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("elvi_survey.site.build.build", interrupted)
    assert main(["site", "build"]) == 130
    assert capsys.readouterr().err == "elvi-survey: interrupted\n"


def test_a_taken_port_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("elvi_survey.site.build.build", lambda *arguments: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["site", "serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err
    assert main(["site", "serve", "--port", "70000"]) == 2


def test_make_serves_by_the_command_that_is_tested_here():
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "serve"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].endswith("/elvi-survey site serve")
