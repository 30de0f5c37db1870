"""Fuzzes what the Hub answers: a real server on loopback changes its answers, for the real client in this process.

It is run alone: the client reads its settings from the environment when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner
from helpers.hub import Hub
from helpers.hub_api import Answer, Request
from hostile.base_builders import SINGLE

from fuzz import seeds
from fuzz.calls import CHANGES, judged, listing, written
from fuzz.guided import watched
from fuzz.mutate import of_bytes, of_json

WORDS = (
    "siblings",
    "rfilename",
    "size",
    "lfs",
    "sha",
    "id",
    "gated",
    "private",
    "tags",
    "cardData",
    "branches",
    "ref",
    "path",
    "type",
    "oid",
)
STATUSES = (
    200,
    204,
    206,
    301,
    302,
    307,
    400,
    401,
    403,
    404,
    405,
    408,
    409,
    410,
    416,
    418,
    429,
    451,
    500,
    502,
    503,
    504,
)
HEADERS = ("X-Repo-Commit", "ETag", "X-Linked-ETag", "X-Linked-Size", "Location", "Content-Range", "X-Error-Code",
    "X-Error-Message",
           "Content-Type", "Link", "Retry-After", "Accept-Ranges")  # fmt: skip
VALUES = ("", "0", "-1", "x", "main", "../../x", "9" * 40, "0" * 40, "bytes 0-1/2", "bytes */0", "GatedRepo",
    "RevisionNotFound", "EntryNotFound",
          "RepoNotFound", "/x", "http://127.0.0.1:1/x", '"x"', 'W/"y"', "text/html", "application/json",
          "99999999999999999999", "a" * 300)  # fmt: skip


class OddHub(Hub):
    """A Hub that changes some of its answers."""

    seed = ""
    """Of the call that asks; with the request it decides, as requests come in any order. Empty: nothing is changed."""

    def answer(self, request: Request) -> Answer:
        asked = sum((one.method, one.path) == (request.method, request.target) for one in self.log)
        said, rng = super().answer(request), Random(f"{self.seed} {request.method} {request.target} {asked}")
        if not self.seed or rng.random() < 0.45:
            return said
        headers, content, status = dict(said.headers), said.content, said.status
        span: range | None = said.span
        match rng.randrange(7):
            case 0:
                status = rng.choice(STATUSES)
            case 1 | 2:
                headers[rng.choice(HEADERS)] = rng.choice(VALUES)
            case 3 if headers:
                del headers[rng.choice(list(headers))]
            case 4:
                content, span = rng.choice((b"", b"<html>login</html>", b"{}", b"[]", b"null", b"\x00" * 9)), None
            case _ if isinstance(content, bytes) and content:
                change = of_json if headers.get("Content-Type") == "application/json" else of_bytes
                content, span = change(rng, content) if change is of_bytes else of_json(rng, content, WORDS), None
        headers = {key: value for key, value in headers.items() if "\n" not in value and value.isascii()}
        return Answer(status, content, headers, span)


BASE_MODEL = "zai-org/CogVideoX-2b"
LICENCES = (
    "---\nlicense: other\nlicense_link: LICENSE\n---\n", "---\nlicense: mit\n---\n", "no head",
    "---\nlicense: other\n---\n",
    "---\nlicense: [x]\n---\n", "---\nlicense: other\nlicense_link: https://x.invalid/y\n---\n",
)  # fmt: skip
HUB = OddHub()
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.update(HUB.environment(Path(os.environ["HF_HOME"])))

counts: dict[str, int] = {}


def part(place: Path, rng: Random, go_on: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
    """What run.py calls."""
    from loraforge.cli.app import main
    from loraforge.hub import client

    client._TRIES, time.sleep = 2, lambda _: None
    watch, number = watched(place.parent, hosts=("127.0.0.1", "::1", "localhost")), 0
    with HUB:
        while go_on():
            number += 1
            folder, name = place / f"{number}", f"me/style-{number}"
            folder.mkdir()
            words, files = _call(rng, folder, name)
            HUB.repos.clear(), HUB.log.clear()
            HUB.add(name, dict(files))
            HUB.add(BASE_MODEL, {"README.md": rng.choice(LICENCES).encode()})
            HUB.seed = str(rng.random())
            before, codes = listing(folder), list[Any]()

            def call(words: list[str] = words, codes: list[Any] = codes) -> None:
                result = CliRunner().invoke(main, words)
                codes.append(result)
                if result.exception and not isinstance(result.exception, SystemExit):
                    raise result.exception

            wrong = watch.faults(call, 1 << 20)
            HUB.seed = ""
            wrong += judged(codes[0], folder, before, False) if codes else []
            ended = f"{words[0]} {codes[0].exit_code}" if codes else f"{words[0]} stopped"
            counts[ended] = counts.get(ended, 0) + 1
            if wrong:
                answers = [(one.method, one.path, one.status) for one in HUB.log]
                (folder / "answers.json").write_text(json.dumps(answers))
            yield [
                {
                    "what": f"{words[0]}: {line.replace(str(folder), '').replace(name, 'R')}",
                    "words": words,
                    "folder": folder,
                }
                for line in wrong
            ]
            shutil.rmtree(folder)
            shutil.rmtree(Path(os.environ["HF_HOME"]) / "hub", ignore_errors=True)


part.counts = {"ended": counts}  # type: ignore[attr-defined]


def _call(rng: Random, folder: Path, name: str) -> tuple[list[str], seeds.Files]:
    """The words of a call, and the files of the repository."""
    kind = rng.choice(("diffusers", "plain", "peft", "sharded", "kohya", "finetrainers"))
    files = dict(seeds.adapters()[kind][0]) | {"README.md": rng.choice(seeds.CARDS).encode()}
    if rng.random() < 0.3:
        path = rng.choice(list(files))
        files[path] = CHANGES.get(Path(path).suffix, of_bytes)(rng, files[path])
    at = rng.choice(
        (
            f"hf://{name}",
            f"hf://{name}",
            f"hf://{name}@main",
            f"hf://{name}@a/b",
            f"hf://{name}/{rng.choice(list(files))}",
            name,
        )
    )
    verb = rng.choice(
        (
            ["inspect"],
            ["inspect"],
            ["doctor"],
            ["convert", "--dry-run", "--to", "peft"],
            ["convert", "--to", "peft", "-o", str(folder / "out")],
            ["push"],
            ["fuse"],
        )
    )
    if verb == ["push"]:
        source = written(folder / "in", seeds.adapters()["diffusers"][0])
        return [
            "push",
            str(source),
            name,
            "--base-model",
            "zai-org/CogVideoX-2b",
            *(["--dry-run"] * (rng.random() < 0.7)),
        ], files
    if verb == ["fuse"] and rng.random() < 0.5:
        adapter = written(folder / "in", seeds.adapters()["diffusers"][0])
        held = seeds.DATA / "bases" / "2b"
        files = {path: (held / path).read_bytes() for path in ("config.json", SINGLE)}
        return ["fuse", f"hf://{name}", str(adapter), "--dry-run", "-o", str(folder / "out")], files
    if verb == ["fuse"]:
        return ["fuse", str(seeds.DATA / "bases" / "2b"), at, "--dry-run", "-o", str(folder / "out")], files
    return [*verb, at, *(["--fetch"] if verb[0] in ("inspect", "doctor") and rng.random() < 0.5 else [])], files
