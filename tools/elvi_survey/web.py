"""HTTP for the few commands that ask the network: requests apart in time, replies of limited size, a cache on disk."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from elvi.errors import ElviError

AGENT = "elvi-survey/0.1 (+https://github.com/elvi-survey/elvi)"
MAX_BYTES = 5 * 1024 * 1024
DAY = 86_400.0
TIMEOUT = 30.0
T = TypeVar("T")


class WebError(ElviError):
    """A service could not be asked, or its reply not be used."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes


def open_url(url: str, method: str = "GET") -> Reply:
    """Ask the network; any HTTP status is a reply.  Raises WebError where there is none."""
    try:
        if not re.match(r"https?://", url):
            raise ValueError
        request = Request(url, headers={"User-Agent": AGENT}, method=method)
        with urlopen(request, timeout=TIMEOUT) as answer:
            return Reply(answer.status, answer.read(MAX_BYTES + 1))
    except HTTPError as error:
        error.close()
        return Reply(error.code, b"")
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise WebError(f"{_host(url)} could not be reached ({reason}); try again later.") from None


def cache_folder() -> Path:
    """Where replies and the times of the last requests are kept, for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "elvi-survey"


@dataclass
class Web:
    """Asks for pages.  `opener`, `clock` and `sleep` are replaced in tests."""

    cache: Path = field(default_factory=cache_folder)
    opener: Callable[..., Reply] = open_url
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def ask(self, url: str, read: Callable[[bytes], T], *, apart: float = 0.0, max_age: float = DAY) -> T:
        """What `read` makes of the reply; kept for `max_age` seconds when it could be read.

        Requests to one host are at least `apart` seconds apart, also between runs.  Raises WebError.
        """
        kept = self.cache / f"{hashlib.sha256(url.encode()).hexdigest()}.reply"
        with suppress(WebError, OSError):
            if 0 <= self.clock() - kept.stat().st_mtime < max_age:
                return read(kept.read_bytes())
        body = self._fetch(url, apart)
        value = read(body)
        self._write(kept, body)
        return value

    def _fetch(self, url: str, apart: float) -> bytes:
        host = _host(url)
        self.space(host, apart)
        reply = self.opener(url)
        if reply.status in (429, 503):
            raise WebError(f"{host} asks to slow down (HTTP {reply.status}); wait a few minutes and run it again.")
        if reply.status in (404, 410):
            raise WebError(f"{host} does not know {url}; check the id.")
        if reply.status != 200:
            raise WebError(f"{host} answered with HTTP {reply.status}; try again later, or give a BibTeX file.")
        if len(reply.body) > MAX_BYTES:
            raise WebError(f"{host} answered with more than {MAX_BYTES} bytes; ask for less.")
        return reply.body

    def space(self, host: str, apart: float) -> None:
        """Wait until `apart` seconds after the last request to `host`, and note this one."""
        stamp = self.cache / f"{host}.last"
        with suppress(OSError):
            since = self.clock() - stamp.stat().st_mtime
            if 0 <= since < apart:
                self.sleep(apart - since)
        self._write(stamp, b"")

    def _write(self, path: Path, body: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(body)
            os.utime(part, (self.clock(), self.clock()))
            part.replace(path)
        except OSError as error:
            raise WebError(f"{path} cannot be written ({error.strerror}); set XDG_CACHE_HOME.") from None


def _host(url: str) -> str:
    with suppress(ValueError):
        return urlsplit(url).hostname or "the address"
    return "the address"
