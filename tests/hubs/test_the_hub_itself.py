"""The Hub of the tests against the real client, which runs in a process of its own.

What these tests hold is also what the code that pushes and pulls relies on of `huggingface_hub`. Other versions of it
are tried where LORAFORGE_HUB_PYTHONS names their interpreters: it is split like PATH.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import hub as hubs
from helpers.hub import Hub

Client = Callable[..., dict[str, Any]]
HERE = [sys.executable] if importlib.util.find_spec("huggingface_hub") else []
OTHERS = [path for path in os.environ.get("LORAFORGE_HUB_PYTHONS", "").split(os.pathsep) if path]

# The client waits before it asks again: the waits are noted and not made.
PROLOGUE = """
import json, logging, time, warnings
from pathlib import Path
waits = []
time.sleep = waits.append
warnings.simplefilter("ignore")
from huggingface_hub import CommitOperationAdd as Add, CommitOperationCopy as Copy, CommitOperationDelete as Delete
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
api = HfApi()

def commit(files, repo="me/lora", **more):
    return api.create_commit(repo, [Add(path, data) for path, data in files.items()], commit_message="m", **more)

def failure(call):
    try:
        call()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        cause = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        return {"name": type(error).__name__, "status": status, "cause": cause, "text": str(error)}

said = {}
"""

WITH_REQUESTS = {
    "RemoteProtocolError": "ConnectionError",
    "ConnectError": "ConnectionError",
    "RemoteEntryNotFoundError": "EntryNotFoundError",
}
"""What clients before 1.0, which use requests, call it."""
LESS_PATIENT = "before 1.0 the client asks again only for 503; what loraforge makes of that is in test_push_breaks"

pytestmark = pytest.mark.skipif(not HERE + OTHERS, reason="huggingface_hub is not installed")


@pytest.fixture
def old(request: pytest.FixtureRequest) -> bool:
    """Whether the client is one of before 1.0."""
    line = "import huggingface_hub; print(huggingface_hub.__version__)"
    python = request.getfixturevalue("client").python
    done = subprocess.run([python, "-c", line], capture_output=True, text=True, check=True)
    return done.stdout.startswith("0.")


@pytest.fixture
def named(old: bool) -> Callable[[str], str]:
    """What the client calls an error."""
    return lambda name: WITH_REQUESTS.get(name, name) if old else name


@pytest.fixture(params=HERE + OTHERS, ids=lambda path: Path(path).parents[1].name)
def client(hub: Hub, request: pytest.FixtureRequest) -> Client:
    """Run lines of Python with the client against the Hub; they leave what is to be known in `said`."""

    def run(lines: str, *, token: str | None = hub.token, offline: bool = False) -> dict[str, Any]:
        program = f"{PROLOGUE}\n{lines}\nsaid['waits'] = waits\nprint(json.dumps(said))"
        ended = hubs.run([request.param, "-c", program], hub.environment(hub.home, token, offline=offline))
        assert ended.returncode == 0, ended.stderr
        said = json.loads(ended.stdout.splitlines()[-1])
        assert isinstance(said, dict)
        return said

    run.python = request.param  # type: ignore[attr-defined]
    return run


def safetensors() -> bytes:
    header = json.dumps({"__metadata__": {"made": "by"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(4)


def test_a_first_commit_moves_each_byte_once(hub: Hub, client: Client) -> None:
    said = client("""
said["url"] = str(api.create_repo("me/lora", private=True))
said["again"] = str(api.create_repo("me/lora", exist_ok=True))
said["conflict"] = failure(lambda: api.create_repo("me/lora"))
said["empty"] = api.model_info("me/lora").sha
card = b"---\\ntags: [lora]\\n---\\n# A"
made = commit({"README.md": card, "a/w.safetensors": b"w" * 5000}, parent_commit=said["empty"])
said["oid"] = made.oid
info = api.model_info("me/lora", files_metadata=True)
said |= {"sha": info.sha, "private": info.private, "tags": info.card_data.tags, "gated": info.gated}
said["sizes"] = {one.rfilename: one.size for one in info.siblings}
said["user"] = api.whoami()["name"]
""")
    first, second = hub.commits("me/lora")
    assert said["url"] == said["again"] == f"{hub.endpoint}/me/lora"
    assert (said["conflict"]["name"], said["conflict"]["status"]) == ("HfHubHTTPError", 409)
    assert (said["empty"], said["oid"], said["sha"]) == (first.sha, second.sha, second.sha)
    assert (said["private"], said["tags"], said["gated"], said["user"]) == (True, ["lora"], False, "me")
    assert said["sizes"]["a/w.safetensors"] == 5000
    assert hub.files("me/lora")["a/w.safetensors"] == b"w" * 5000
    assert [one.received for one in hub.asked("PUT")] == [5000]
    assert sum(b"w" * 1000 in body for body in hub.received) == 1
    assert not any("Authorization" in one.headers for one in hub.asked("PUT"))
    assert said["waits"] == []


def test_large_files_go_in_parts(hub: Hub, client: Client) -> None:
    hub.chunk_size = 2000
    hub.add("me/lora", {})
    said = client("commit({'w.bin': bytes(range(250)) * 20}); said['sha'] = api.model_info('me/lora').sha")
    assert [one.received for one in hub.asked("PUT", r"part=")] == [2000, 2000, 1000]
    assert len(hub.asked("POST", r"/complete_multipart/")) == 1
    assert hub.files("me/lora")["w.bin"] == bytes(range(250)) * 20
    assert said["sha"] == hub.commits("me/lora")[-1].sha


def test_what_is_there_already_is_not_sent_again(hub: Hub, client: Client) -> None:
    before = hub.add("me/lora", {"w.safetensors": b"w" * 5000, "a.json": b"{}"})
    said = client("""
made = commit({"w.safetensors": b"w" * 5000, "a.json": b"{}"}, parent_commit="0" * 40)
said |= {"oid": made.oid, "url": str(made)}
""")
    assert said["oid"] == before and said["url"].endswith(f"/me/lora/commit/{before}")
    assert not hub.asked("PUT") and not hub.asked("POST", "/commit/")
    assert len(hub.commits("me/lora")) == 2
    client("commit({'moved.safetensors': b'w' * 5000})")
    assert not hub.asked("PUT"), "another path with the same content needs no upload"
    assert hub.files("me/lora")["moved.safetensors"] == b"w" * 5000


def test_a_commit_that_came_between_is_not_written_over(hub: Hub, client: Client) -> None:
    old = hub.add("me/lora", {"a.txt": b"1"})
    new = hub.add("me/lora", {"a.txt": b"2"})
    said = client(f"""
said["late"] = failure(lambda: commit({{"a.txt": b"3"}}, parent_commit="{old}"))
said["short"] = commit({{"a.txt": b"4"}}, parent_commit="{new[:7]}").oid
""")
    assert (said["late"]["name"], said["late"]["status"]) == ("HfHubHTTPError", 412)
    assert "A commit has happened since" in said["late"]["text"]
    assert [one.files["a.txt"].whole() for one in hub.commits("me/lora")[1:]] == [b"1", b"2", b"4"]
    assert said["short"] == hub.commits("me/lora")[-1].sha


def test_files_are_taken_away_and_copied(hub: Hub, client: Client, named: Callable[[str], str]) -> None:
    hub.add("me/lora", {"a.txt": b"a", "w.bin": b"w" * 600, "old/1.txt": b"1", "old/2.txt": b"2"})
    said = client("""
work = [Delete("old/"), Copy("w.bin", "v.bin"), Delete("w.bin")]
api.create_commit("me/lora", work, commit_message="m")
said["missing"] = failure(lambda: api.create_commit("me/lora", [Delete("none.txt")], commit_message="m"))
""")
    assert hub.files("me/lora") == {
        ".gitattributes": hub.files("me/lora")[".gitattributes"],
        "a.txt": b"a",
        "v.bin": b"w" * 600,
    }
    assert said["missing"]["name"] == named("RemoteEntryNotFoundError")


def test_a_pull_request_leaves_main_alone(hub: Hub, client: Client) -> None:
    hub.add("them/lora", {"a.txt": b"1"})
    said = client("""
said["direct"] = failure(lambda: commit({"a.txt": b"2"}, "them/lora"))
made = commit({"a.txt": b"2"}, "them/lora", create_pr=True)
said |= {"url": made.pr_url, "number": made.pr_num, "revision": made.pr_revision}
refs = api.list_repo_refs("them/lora", include_pull_requests=True)
said["refs"] = [one.ref for one in refs.branches + refs.pull_requests]
said["text"] = Path(hf_hub_download("them/lora", "a.txt", revision=made.pr_revision)).read_text()
""")
    assert said["direct"]["status"] == 403 and "create_pr=1" in said["direct"]["text"]
    assert (said["url"], said["number"]) == (f"{hub.endpoint}/them/lora/discussions/1", 1)
    assert said["revision"] == "refs/pr/1" and said["refs"] == ["refs/heads/main", "refs/pr/1"] and said["text"] == "2"
    assert hub.files("them/lora")["a.txt"] == b"1" and hub.files("them/lora", "refs/pr/1")["a.txt"] == b"2"


def test_branches_and_shas_are_revisions(hub: Hub, client: Client, named: Callable[[str], str]) -> None:
    first = hub.add("me/lora", {"a.txt": b"1"})
    hub.add("me/lora", {"a.txt": b"2"})
    said = client(f"""
api.create_branch("me/lora", branch="v1/x", revision="{first}")
commit({{"b.txt": b"b"}}, revision="v1/x")
files = [hf_hub_download("me/lora", "a.txt", revision=one) for one in ("main", "v1/x", "{first}")]
said["texts"] = [Path(file).read_text() for file in files]
said["none"] = failure(lambda: api.model_info("me/lora", revision="none"))
said["new"] = failure(lambda: commit({{"b.txt": b"b"}}, revision="none"))
said["file"] = failure(lambda: hf_hub_download("me/lora", "none.txt"))
""")
    assert said["texts"] == ["2", "1", "1"]
    assert set(hub.files("me/lora", "v1/x")) - set(hub.files("me/lora")) == {"b.txt"}
    assert said["none"]["name"] == said["new"]["name"] == "RevisionNotFoundError"
    assert said["file"]["name"] == named("RemoteEntryNotFoundError") and said["file"]["status"] == 404


def test_who_may_do_what(hub: Hub, client: Client) -> None:
    hub.add("me/secret", {"a.txt": b"a"}, private=True)
    hub.add("them/secret", {"a.txt": b"a"}, private=True)
    hub.add("them/gated", {"a.txt": b"a"}, gated=True)
    lines = """
said["private"] = failure(lambda: api.model_info("me/secret"))
said["theirs"] = failure(lambda: api.model_info("them/secret"))
said["gated"] = failure(lambda: api.auth_check("them/gated"))
said["file"] = failure(lambda: hf_hub_download("them/gated", "a.txt"))
said["kind"] = api.model_info("them/gated").gated
said["new"] = failure(lambda: api.create_repo("me/new"))
said["theirs_new"] = failure(lambda: api.create_repo("them/new"))
said["commit"] = failure(lambda: commit({"a.txt": b"1"}, "me/secret"))
said["held"] = failure(lambda: api.create_repo("me/secret", exist_ok=True))
"""
    writer, reader, nobody = client(lines), client(lines, token=hub.reader), client(lines, token=None)
    wrong = client("said |= failure(lambda: api.model_info('me/secret'))", token="hf_no")
    assert [one["private"] and one["private"]["name"] for one in (writer, reader, nobody)] == [
        None,
        None,
        "RepositoryNotFoundError",
    ]
    for said, status in ((writer, 404), (reader, 404), (nobody, 401)):
        assert (said["theirs"]["name"], said["theirs"]["status"]) == ("RepositoryNotFoundError", status)
    for said, status in ((writer, 403), (reader, 403), (nobody, 401)):
        assert (said["gated"]["name"], said["gated"]["status"]) == ("GatedRepoError", status)
        assert (said["file"]["name"], said["file"]["status"], said["kind"]) == ("GatedRepoError", status, "manual")
    assert (writer["new"], writer["commit"], writer["held"]) == (None, None, None)
    assert (writer["theirs_new"]["name"], writer["theirs_new"]["status"]) == ("HfHubHTTPError", 403)
    assert [reader[key]["status"] for key in ("new", "commit")] == [403, 403]
    assert "write token" in reader["commit"]["text"]
    assert reader["held"] is None, "the client takes a repo it may read for one it has made"
    assert [nobody[key]["status"] for key in ("new", "commit")] == [401, 401]
    assert (wrong["name"], wrong["status"]) == ("HfHubHTTPError", 401)


def test_a_snapshot_is_the_repo_and_the_second_costs_no_files(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add("me/lora", {"a.json": b"{}", "sub/w.safetensors": safetensors()})
    lines = """
folder = Path(snapshot_download("me/lora"))
said["files"] = {str(path.relative_to(folder)): path.read_bytes().hex() for path in folder.rglob("*") if path.is_file()}
said["sha"] = folder.name
"""
    said = client(lines)
    assert {path: bytes.fromhex(text) for path, text in said["files"].items()} == hub.files("me/lora")
    assert said["sha"] == hub.commits("me/lora")[-1].sha
    assert all("Authorization" not in one.headers for one in hub.asked("GET", "/_lfs/")), "the token stays with the Hub"
    moved = len(hub.asked("GET", "/resolve/|/_lfs/"))
    assert client(lines)["files"] == client(lines, offline=True)["files"] == said["files"]
    assert len(hub.asked("GET", "/resolve/|/_lfs/")) == moved


def test_a_tree_comes_in_pages(hub: Hub, client: Client) -> None:
    hub.page = 3
    sha = hub.add("me/lora", {f"d{at}/w{at}.bin": b"w" * (at + 1) for at in range(4)})
    said = client("""
tree = list(api.list_repo_tree("me/lora", recursive=True, expand=True))
said["sizes"] = {one.path: one.size for one in tree if hasattr(one, "size")}
said["lfs"] = {one.path: one.lfs.sha256 for one in tree if getattr(one, "lfs", None)}
said["last"] = [one.last_commit.oid for one in tree if one.path == "d1/w1.bin"]
said["top"] = [one.path for one in api.list_repo_tree("me/lora")]
said["inside"] = [one.path for one in api.list_repo_tree("me/lora", "d2")]
said["infos"] = [one.path for one in api.get_paths_info("me/lora", ["d2/w2.bin", "none"])]
""")
    assert {path: len(content) for path, content in hub.files("me/lora").items()} == said["sizes"]
    assert said["lfs"]["d2/w2.bin"] == hashlib.sha256(b"www").hexdigest() and said["last"] == [sha]
    assert said["top"] == [".gitattributes", "d0", "d1", "d2", "d3"]
    assert said["inside"] == said["infos"] == ["d2/w2.bin"]
    assert len(hub.asked("GET", r"/tree/main\?.*recursive=[tT]rue")) == 3


def test_a_header_is_read_without_the_file(hub: Hub, client: Client, tmp_path: Path) -> None:
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.write(safetensors())
        file.truncate(2**28)
    hub.add("them/base", {"w.safetensors": large})
    said = client("said |= api.parse_safetensors_file_metadata('them/base', 'w.safetensors').metadata")
    assert said["made"] == "by"
    (asked,), (moved,) = hub.asked("GET", "/resolve/"), hub.asked("GET", "/_lfs/")
    assert (asked.status, moved.status) == (302, 206)
    assert hub.sent == moved.sent == 100_001


def test_ranges_are_those_asked_for(hub: Hub, client: Client) -> None:
    hub.add("me/lora", {"a.txt": bytes(range(100))})
    said = client("""
from huggingface_hub.utils import get_session
for one in ("0-9", "90-", "-5", "95-200", "100-"):
    got = get_session().get(f"{api.endpoint}/me/lora/resolve/main/a.txt", headers={"Range": f"bytes={one}"})
    said[one] = [got.status_code, got.content.hex(), got.headers.get("content-range")]
""")
    whole = bytes(range(100))
    assert said["0-9"] == [206, whole[:10].hex(), "bytes 0-9/100"]
    assert said["90-"] == [206, whole[90:].hex(), "bytes 90-99/100"]
    assert said["-5"] == said["95-200"] == [206, whole[95:].hex(), "bytes 95-99/100"]
    assert said["100-"] == [416, "", "bytes */100"]


PATIENT = {
    "preupload": ("POST", "/preupload/", "commit({'a.txt': b'a'})"),
    "batch": ("POST", "/objects/batch", "commit({'w.bin': b'w'})"),
    "put": ("PUT", "/_lfs/", "commit({'w.bin': b'w'})"),
    "verify": ("POST", "/lfs/verify", "commit({'w.bin': b'w'})"),
    "page": ("GET", "/tree/.*cursor=1", "list(api.list_repo_tree('me/lora'))"),
}
IMPATIENT = {
    "create": ("POST", "/repos/create", "api.create_repo('me/new')"),
    "card": ("POST", "/validate-yaml", "commit({'README.md': b'a'})"),
    "commit": ("POST", "/commit/", "commit({'a.txt': b'a'})"),
    "paths": ("POST", "/paths-info/", "api.get_paths_info('me/lora', ['a'])"),
    "info": ("GET", "/api/models/", "api.model_info('me/lora')"),
    "header": ("GET", "/resolve/", "api.parse_safetensors_file_metadata('me/lora', 'h.safetensors')"),
}


@pytest.mark.parametrize("asked", PATIENT)
def test_where_the_client_asks_again_by_itself(hub: Hub, client: Client, old: bool, asked: str) -> None:
    if old:
        pytest.skip(LESS_PATIENT)
    hub.add("me/lora", {"h.safetensors": safetensors()})
    hub.page = 1
    method, pattern, call = PATIENT[asked]
    hub.fail(method, pattern, [429, 503], headers={"Retry-After": "6"})
    hub.fail(method, pattern, [500])
    hub.cut_answer(method, pattern)
    said = client(call)
    assert [one.status for one in hub.asked(method, pattern)] == [429, 503, 500, 0, 200]
    assert said["waits"] == [7, 7, 4, 8] and not hub.faults


@pytest.mark.parametrize("asked", IMPATIENT)
def test_where_the_client_gives_up_at_once(hub: Hub, client: Client, named: Callable[[str], str], asked: str) -> None:
    hub.add("me/lora", {"h.safetensors": safetensors()})
    method, pattern, call = IMPATIENT[asked]
    hub.fail(method, pattern, [429, 500])
    hub.cut_answer(method, pattern)
    said = client(f"said |= {{key: failure(lambda: {call}) for key in ('429', '500', 'cut')}}")
    assert [(said[key]["name"], said[key]["status"]) for key in ("429", "500")] == [
        ("HfHubHTTPError", 429),
        ("HfHubHTTPError", 500),
    ]
    assert (said["cut"]["name"], said["cut"]["status"]) == (named("RemoteProtocolError"), None)
    assert said["waits"] == [] and not hub.faults


def test_a_download_waits_for_429_but_not_for_500(hub: Hub, client: Client, old: bool) -> None:
    if old:
        pytest.skip(LESS_PATIENT)
    hub.add("me/lora", {"a.bin": b"a" * 5000, "b.bin": b"b"})
    hub.fail("GET", "/_lfs/", [429])
    hub.cut("GET", "/_lfs/", after=1000)
    hub.fail("GET", "/_lfs/", [500])
    said = client("""
said["first"] = failure(lambda: hf_hub_download("me/lora", "a.bin"))
said["size"] = Path(hf_hub_download("me/lora", "a.bin")).stat().st_size
""")
    assert (said["first"]["name"], said["first"]["status"]) == ("HfHubHTTPError", 500)
    assert [one.status for one in hub.asked("GET", "/_lfs/")] == [429, 200, 500, 200]
    assert hub.asked("GET", "/_lfs/")[1].sent == 1000 and said["size"] == 5000


def test_a_download_asks_twice_what_a_file_is_but_not_after_a_cut(hub: Hub, client: Client, old: bool) -> None:
    if old:
        pytest.skip(LESS_PATIENT)
    hub.add("me/lora", {"a.txt": b"a"})
    hub.fail("HEAD", "/resolve/", [503])
    said = client("said['path'] = hf_hub_download('me/lora', 'a.txt')")
    assert [one.status for one in hub.asked("HEAD")] == [503, 200] and said["waits"] == []
    hub.fail("HEAD", "/resolve/", [429])
    hub.cut_answer("HEAD", "/resolve/")
    again = client("""
said["kept"] = hf_hub_download("me/lora", "a.txt")
said["cut"] = failure(lambda: hf_hub_download("me/lora", "a.txt"))
""")
    assert again["kept"] == said["path"], "what is in the cache is taken where the Hub is busy"
    assert again["cut"]["name"] == "RemoteProtocolError", "but not where it hangs up"


def test_an_upload_that_is_cut_begins_again(hub: Hub, client: Client) -> None:
    hub.add("me/lora", {})
    hub.cut("PUT", "/_lfs/", after=1000)
    client("commit({'w.bin': b'w' * 3_000_000})")
    assert [one.received for one in hub.asked("PUT")] == [1000, 3_000_000]
    assert hub.files("me/lora")["w.bin"] == b"w" * 3_000_000


def test_an_upload_that_fails_for_good_names_its_cause(hub: Hub, client: Client) -> None:
    hub.add("me/lora", {})
    hub.fail("PUT", "/_lfs/", [500] * 6)
    said = client("said |= failure(lambda: commit({'w.bin': b'w'}))")
    assert (said["name"], said["status"], said["cause"]) == ("RuntimeError", None, 500)
    assert len(hub.asked("PUT")) == 6 and len(hub.commits("me/lora")) == 1


def test_a_commit_whose_answer_is_lost_is_made(hub: Hub, client: Client, named: Callable[[str], str]) -> None:
    parent = hub.add("me/lora", {})
    hub.cut_answer("POST", "/commit/")
    said = client(f"""
said["lost"] = failure(lambda: commit({{"a.txt": b"a"}}, parent_commit="{parent}"))
said["again"] = commit({{"a.txt": b"a"}}, parent_commit="{parent}").oid
""")
    assert said["lost"]["name"] == named("RemoteProtocolError")
    assert said["again"] == hub.commits("me/lora")[-1].sha and len(hub.commits("me/lora")) == 2


def test_without_a_network(hub: Hub, client: Client, named: Callable[[str], str]) -> None:
    lines = """
said["info"] = failure(lambda: api.model_info("me/lora"))
said["file"] = failure(lambda: hf_hub_download("me/lora", "a.txt"))
said["all"] = failure(lambda: snapshot_download("me/lora"))
"""
    said = client(lines, offline=True)
    assert [said[key]["name"] for key in ("info", "file", "all")] == [
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "LocalEntryNotFoundError",
    ]
    assert not hub.log
    said = client(f"api.endpoint = 'http://127.0.0.1:1'\n{lines.splitlines()[1]}")
    assert said["info"]["name"] == named("ConnectError") and said["waits"] == []


def test_loraforge_runs_beside_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-this-machine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    known = hub.environment(tmp_path, token=None)
    assert not {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"} & set(known)
    assert hub.environment(tmp_path)["HF_TOKEN"] == hub.token and known["HF_HOME"] == str(tmp_path)
    ended = hub.run("--version", cwd=tmp_path)
    assert ended.returncode == 0 and "loraforge" in ended.stdout and not hub.log
