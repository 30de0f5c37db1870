"""A Hub for tests: a real HTTP server on loopback, for the real `huggingface_hub` in a process of its own.

Nothing of the client is replaced, so what a test proves is what happens: which requests go out, what they carry,
and what becomes of them when the Hub is busy, refuses, or goes away in the middle.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from helpers import forks
from helpers.hub_api import Answer, Refused, Request, answer
from helpers.hub_repos import PIECE, Commit, File, Repo, pieces

TOKEN = "hf_" + "WriteTokenOfTheTests" + "0" * 14
READER = "hf_" + "ReadsOnlyTokenOfTests" + "0" * 13


@dataclass
class Exchange:
    """One request and its answer. Bytes are those of bodies, not of headers; `status` is 0 where none was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0
    sent: int = 0

    @property
    def received(self) -> int:
        return len(self.body)


@dataclass
class Fault:
    """What befalls the next requests that match: one after another `statuses`; or else the connection is cut."""

    method: str
    pattern: str
    statuses: list[int]
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None


class Hub:
    """The server, the repos in it and the record of what it was asked.

    `user` owns the tokens: `token` may write, `reader` may not. Repos of other namespaces are others': gated ones are
    closed, private ones not to be seen, and the public ones take pull requests only.
    """

    token, reader = TOKEN, READER

    def __init__(self, user: str = "me", *, page: int = 1000, chunk_size: int | None = None) -> None:
        self.user = user
        self.page = page  # entries of a tree in one answer
        self.chunk_size = chunk_size  # larger LFS files come in parts of this size
        self.repos: dict[str, Repo] = {}
        self.log: list[Exchange] = []
        self.faults: list[Fault] = []  # those still to come
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{port}"  # another name, for the client goes by it whether to send its token
        self.home = Path(tempfile.mkdtemp(prefix="hub-"))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.home, ignore_errors=True)

    def add(
        self,
        name: str,
        files: Mapping[str, bytes | Path | None],
        *,
        revision: str = "main",
        private: bool | None = None,
        gated: str | bool | None = None,
    ) -> str:
        """Put files into a repo, made where it is not, and say the commit. None takes a file away.

        A path on disk is served from there. A branch that is not begins at `main`. Who may see the repo stays as it
        was where nothing is said of it.
        """
        with self._lock:
            repo = self.repos.setdefault(name, Repo(name))
            repo.private = repo.private if private is None else private
            repo.gated = repo.gated if gated is None else "manual" if gated is True else gated
            base = repo.at(revision if revision in repo.refs else "main")
            repo.refs.setdefault(revision, base.sha)
            if not files:
                return base.sha
            kept = {path: file for path, file in base.files.items() if path not in files}
            new = {path: File.at(path, content) for path, content in files.items() if content is not None}
            return repo.commit(revision, {**kept, **new}, f"Add to {revision}", parent=base.sha).sha

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        held = self.repos[name].at(revision).files
        return {path: file.whole() for path, file in held.items()}

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """The history of a revision, oldest first; like the real one it begins with `.gitattributes`."""
        return self.repos[name].history(revision)

    def fail(
        self, method: str, pattern: str, statuses: Iterable[int], headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the next requests whose path and query match with these statuses, and do nothing of what they ask."""
        self.faults.append(Fault(method, pattern, list(statuses), headers or {}))

    def cut(self, method: str, pattern: str, after: int, times: int = 1) -> None:
        """Close the connection after so many bytes of the request's body; of a GET, of the answer's."""
        self.faults.append(Fault(method, pattern, [0] * times, after=after))

    def cut_answer(self, method: str, pattern: str, times: int = 1) -> None:
        """Do what the next matching requests ask, and close the connection without an answer."""
        self.faults.append(Fault(method, pattern, [0] * times))

    def asked(self, method: str, pattern: str = "") -> list[Exchange]:
        return [one for one in self.log if one.method == method and re.search(pattern, one.path)]

    @property
    def received(self) -> list[bytes]:
        """The bodies of all requests, for a test to look in them for what should not have left."""
        return [one.body for one in self.log if one.body]

    @property
    def sent(self) -> int:
        """Bytes of all answers' bodies, headers not counted, as given to the socket."""
        return sum(one.sent for one in self.log)

    def environment(self, home: Path, token: str | None = TOKEN, *, offline: bool = False) -> dict[str, str]:
        """This process's environment for one that is to know this Hub and nothing of the machine's own settings."""
        others = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {}),
            **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        }

    def run(
        self,
        *words: object,
        token: str | None = TOKEN,
        cwd: Path | None = None,
        offline: bool = False,
        forked: bool = forks.POSSIBLE,
    ) -> subprocess.CompletedProcess[str]:
        """Run loraforge against this Hub. Its Hub cache is this Hub's own and stays from run to run."""
        environment = self.environment(self.home, token, offline=offline)
        if forked:
            return forks.loraforge([str(word) for word in words], environment, cwd)
        command = [sys.executable, "-c", "from loraforge.cli import main; main()", *map(str, words)]
        return run(command, environment, cwd)

    def take_fault(self, method: str, path: str) -> tuple[Fault, int] | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path):
                    status = fault.statuses.pop(0)
                    self.faults = [one for one in self.faults if one.statuses]
                    return fault, status
        return None

    def answer(self, request: Request) -> Answer:
        with self._lock:
            return answer(request)


def run(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in http.server
        pass

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (piece := self.rfile.read(min(PIECE, left))):
            left -= len(piece)
            yield piece

    def _respond(self) -> None:
        fault, status = self.hub.take_fault(self.command, self.path) or (None, 0)
        exchange = Exchange(self.command, self.path, dict(self.headers.items()))
        limit = fault.after if fault else None
        body = bytearray()
        # What is in the log is there before the client can know of it, so that a test need not wait for it.
        self.hub.log.append(exchange)
        for piece in self._body():
            body += piece
            if limit is not None and len(body) >= limit:
                exchange.body = bytes(body[:limit])
                self.close_connection = True
                return
        exchange.body = bytes(body)
        if fault and status:
            said = Refused(status, "a fault the test asked for", headers=fault.headers).answer
        else:
            said = self.hub.answer(Request(self.hub, self.command, self.path, self.headers, exchange.body))
        if fault and not status and limit is None:
            self.close_connection = True
            return
        exchange.status = said.status
        self._send(said, exchange, limit)

    def _send(self, said: Answer, exchange: Exchange, limit: int | None) -> None:
        span = said.span
        whole = len(span)
        if limit is not None:
            self.close_connection = True
            span = span[:limit]
        self.send_response(said.status)
        for key, value in {**said.headers, "Content-Length": str(whole)}.items():
            self.send_header(key, value)
        try:
            self.end_headers()
            for piece in pieces(said.content, span) if self.command != "HEAD" else ():
                exchange.sent += len(piece)
                self.wfile.write(piece)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond
