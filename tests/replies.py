"""A stand-in for the network: it answers from files, notes what it was asked, and keeps its own time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elvi_survey.web import Reply, Web, WebError

FOLDER = Path(__file__).parent / "survey/replies"


@dataclass
class Stand:
    """`replies`: part of an address -> status, body or file name; `slept` and `asked` say what happened."""

    replies: Mapping[str, int | bytes | str]
    now: float = 1_800_000_000.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def __call__(self, url: str, method: str = "GET") -> Reply:
        self.asked.append((method, url))
        for part, reply in self.replies.items():
            if part in url:
                return self._reply(reply)
        raise AssertionError(f"nothing is recorded for {url}")

    @staticmethod
    def _reply(reply: int | bytes | str) -> Reply:
        if reply == "silence":
            raise WebError("the host could not be reached (timed out); try again later.")
        if isinstance(reply, int):
            return Reply(reply, b"")
        return Reply(200, reply if isinstance(reply, bytes) else (FOLDER / reply).read_bytes())

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def web(self, cache: Path) -> Web:
        return Web(cache, self, lambda: self.now, self.sleep)
