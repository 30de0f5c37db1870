"""What the tests of publishing share: names, and how they look at a repository of the Hub for tests."""

from __future__ import annotations

from helpers.hub import Hub
from loraforge.publishing.front_matter import fields, split

BASE = "zai-org/CogVideoX-5b"
NAME = "pytorch_lora_weights.safetensors"


def card(hub: Hub, repo: str = "me/style") -> dict[str, object]:
    return fields(split(hub.files(repo)["README.md"].decode())[0], repo)


def last(done: object) -> str:
    return done.stdout.splitlines()[-1]  # type: ignore[attr-defined]


def ours(hub: Hub, repo: str = "me/style") -> list[str]:
    return sorted(hub.files(repo).keys() - {".gitattributes"})


def refused(hub: Hub, *words: object) -> str:
    done = hub.run(*words)
    assert done.returncode == 1, done.stdout
    assert not [one for one in hub.log if one.method not in ("GET", "HEAD")]
    return str(done.stderr)
