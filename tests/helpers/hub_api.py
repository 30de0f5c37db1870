"""What the Hub for tests answers to the requests that `huggingface_hub` makes.

Statuses, header names and messages are those of huggingface.co, because the client chooses its exceptions by them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

from helpers.hub_repos import File, NoRevision, Repo, is_lfs

if TYPE_CHECKING:
    from helpers.hub import Hub

DATE = "2026-01-01T00:00:00.000Z"


class Answer:
    def __init__(
        self,
        status: int,
        content: bytes | Path = b"",
        headers: Mapping[str, str] | None = None,
        span: range | None = None,
    ) -> None:
        self.status = status
        self.content = content
        self.headers = headers or {}
        self.span = range(len(content)) if isinstance(content, bytes) and span is None else span or range(0)


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = reply({"error": message}, status, {**named, **(headers or {})})


@dataclass
class Request:
    hub: Hub
    method: str
    target: str
    headers: Message
    body: bytes

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    @cached_property
    def role(self) -> str | None:
        """What the token of a request lets its owner do; None without a token."""
        sent = self.headers.get("Authorization")
        roles = {None: None, f"Bearer {self.hub.token}": "write", f"Bearer {self.hub.reader}": "read"}
        if sent not in roles:
            raise Refused(401, "Invalid credentials in Authorization header")
        return roles[sent]

    def repo(self, name: str, *, write: bool = False, content: bool = False) -> Repo:
        """A repo this request may use so; the Hub tells a stranger nothing of what is private, not even that it is."""
        repo = self.hub.repos.get(name)
        mine = self.role is not None and name.split("/")[0] == self.hub.user
        if repo is None or (repo.private and not mine):
            known = (404, "Repository not found") if self.role else (401, "Invalid username or password.")
            raise Refused(*known, "RepoNotFound")
        if content and repo.gated and not mine:
            asking = "and you are not in the authorized list. Visit the page of the model to ask for access."
            lacking = asking if self.role else "and you must be authenticated to access it. Please log in."
            raise Refused(403 if self.role else 401, f"Access to model {name} is restricted {lacking}", "GatedRepo")
        if write and self.role != "write":
            message = "Forbidden: you must use a write token to upload to a repository."
            raise Refused(403, message) if self.role else Refused(401, "Invalid username or password.")
        if write and not mine and not self.flag("create_pr"):
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo


ROUTES: list[tuple[list[str], re.Pattern[str], Callable[..., Answer]]] = []
REPO, AT, SHA = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)", r"(?P<sha>[0-9a-f]{64})"


def route(methods: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    def keep(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((methods.split(), re.compile(pattern), function))
        return function

    return keep


def answer(request: Request) -> Answer:
    """The answer to a request; 501 to one this Hub has not learned, since a 404 would mean something to the client."""
    path = urlsplit(request.target).path
    for methods, pattern, function in ROUTES:
        if request.method in methods and (found := pattern.fullmatch(path)):
            named = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
            try:
                return function(request, **named)
            except NoRevision as missing:
                return Refused(404, f"Invalid rev id: {missing}", "RevisionNotFound").answer
            except Refused as refused:
                return refused.answer
    return Refused(501, f"the Hub for tests knows no {request.method} {path}").answer


def reply(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    content = json.dumps(data, default=str).encode()
    return Answer(status, content, {"Content-Type": "application/json", **(headers or {})})


def front_matter(readme: str) -> dict[str, Any]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    if found and len(re.findall(r"\*\w", found[1])) > 20:  # its JSON would be hundreds of megabytes
        return {}
    try:
        data = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:  # committed before it was checked
        data = None
    return data if isinstance(data, dict) else {}


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Answer:
    if request.role is None:
        raise Refused(401, "Invalid username or password.")
    auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": request.role}}
    return reply({"type": "user", "name": request.hub.user, "fullname": "Tests", "orgs": [], "auth": auth})


@route("POST DELETE", "/api/repos/(?:create|delete)")
def create_or_delete(request: Request) -> Answer:
    asked = json.loads(request.body)
    owner = asked.get("organization") or request.hub.user
    name = f"{owner}/{asked['name']}"
    if request.method == "DELETE":
        del request.hub.repos[request.repo(name, write=True).name]
        return reply({})
    if request.role is None:
        raise Refused(401, "Invalid username or password.")
    if request.role != "write" or owner != request.hub.user:
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    known = {"url": f"{request.hub.endpoint}/{name}", "name": name, "id": "0" * 24}
    if name in request.hub.repos:
        return reply({"error": "You already created this model repo", **known}, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    request.hub.repos[name] = Repo(name, private)
    return reply(known)


@route("POST", "/api/validate-yaml")
def validate(request: Request) -> Answer:
    try:
        data = front_matter(json.loads(request.body)["content"])
    except yaml.YAMLError as error:
        return reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return reply({"errors": [], "warnings": [] if data else [{"message": "empty or missing yaml metadata"}]})


@route("GET", rf"/api/models/{REPO}(?:/revision/{AT})?")
def model(request: Request, name: str, revision: str = "main") -> Answer:
    repo = request.repo(name)
    commit = repo.at(revision)
    readme = commit.files["README.md"].whole() if "README.md" in commit.files else b""
    card = front_matter(readme.decode("utf-8", "replace"))
    siblings: list[dict[str, Any]] = []
    for path, file in sorted(commit.files.items()):
        lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": 134} if file.lfs else None
        blob = {"size": file.size, "blobId": file.oid, "lfs": lfs}
        siblings.append({"rfilename": path, **(blob if request.flag("blobs") else {})})
    facts = {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit.sha,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": DATE,
        "lastModified": DATE,
        "tags": card.get("tags") or [],
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
        "siblings": siblings,
    }
    wanted = {"_id", "id", *request.query.get("expand", facts)}
    return reply({key: value for key, value in facts.items() if key in wanted})


@route("GET", rf"/api/models/{REPO}/auth-check(?P<write>/write)?")
def auth_check(request: Request, name: str, write: str = "") -> Answer:
    request.repo(name, write=bool(write), content=True)
    return reply({})


@route("GET", rf"/api/models/{REPO}/refs")
def refs(request: Request, name: str) -> Answer:
    found = request.repo(name).refs.items()
    branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in found]
    pulls = [{"name": ref, "ref": ref, "targetCommit": sha} for ref, sha in found if ref.startswith("refs/pr/")]
    branches = [branch for branch in branches if not branch["name"].startswith("refs/")]
    return reply({"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})


@route("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)")
def create_branch(request: Request, name: str, branch: str) -> Answer:
    repo = request.repo(name, write=True)
    if branch in repo.refs:
        raise Refused(409, f"Reference already exists: refs/heads/{branch}")
    repo.refs[branch] = repo.at(json.loads(request.body or b"{}").get("startingPoint") or "main").sha
    return reply({}, 201)


def listing(repo: Repo, revision: str, *, expand: bool) -> dict[str, dict[str, Any]]:
    """Each file and folder of a revision as the API shows it; with the commit that last touched it, if asked."""
    shown: dict[str, dict[str, Any]] = {}
    for path, file in repo.at(revision).files.items():
        for folder in PurePosixPath(path).parents[:-1]:
            oid = hashlib.sha1(str(folder).encode()).hexdigest()
            shown[str(folder)] = {"type": "directory", "path": str(folder), "size": 0, "oid": oid}
        shown[path] = file.entry(path)
    history = repo.history(revision) if expand else []
    for before, commit in pairwise([None, *history]):
        assert commit is not None
        last = {"id": commit.sha, "title": commit.message, "date": DATE}
        for path, file in commit.files.items():
            if before is None or before.files.get(path) != file:
                for touched in (path, *map(str, PurePosixPath(path).parents[:-1])):
                    if touched in shown:
                        shown[touched]["lastCommit"] = last
    return dict(sorted(shown.items()))


@route("GET", rf"/api/models/{REPO}/tree/{AT}(?:/(?P<folder>.+))?")
def tree(request: Request, name: str, revision: str, folder: str = "") -> Answer:
    shown = listing(request.repo(name), revision, expand=request.flag("expand"))
    inside = [entry for path, entry in shown.items() if not folder or path.startswith(f"{folder}/")]
    if folder and not inside:
        raise Refused(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    if not request.flag("recursive"):
        depth = len(PurePosixPath(folder).parts) + 1
        inside = [entry for entry in inside if len(PurePosixPath(entry["path"]).parts) == depth]
    start = int(request.query.get("cursor", ["0"])[0])
    stop = start + request.hub.page
    query = urlencode({**request.query, "cursor": [str(stop)]}, doseq=True)
    following = f'<{request.hub.endpoint}{urlsplit(request.target).path}?{query}>; rel="next"'
    return reply(inside[start:stop], headers={"Link": following} if stop < len(inside) else {})


@route("POST", rf"/api/models/{REPO}/paths-info/{AT}")
def paths_info(request: Request, name: str, revision: str) -> Answer:
    form = parse_qs(request.body.decode())
    shown = listing(request.repo(name), revision, expand=form.get("expand", [""])[0].lower() == "true")
    return reply([shown[path] for path in form.get("paths", []) if path in shown])


@route("GET HEAD", rf"/{REPO}/resolve/{AT}/(?P<path>.+)")
def resolve(request: Request, name: str, revision: str, path: str) -> Answer:
    """A file, or for an LFS file the way to another host, which the client must not show its token."""
    commit = request.repo(name, content=True).at(revision)
    headers = {"X-Repo-Commit": commit.sha}
    if path not in commit.files:
        raise Refused(404, "Entry not found", "EntryNotFound", headers)
    file = commit.files[path]
    if not file.lfs:
        return ranged(request, file, headers)
    linked = {"X-Linked-ETag": file.etag, "X-Linked-Size": str(file.size)}
    return Answer(302, b"", {**headers, **linked, "Location": f"{request.hub.cdn}/_lfs/{name}/{file.sha256}"})


def ranged(request: Request, file: File, headers: Mapping[str, str]) -> Answer:
    headers = {**headers, "ETag": file.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if not asked or not any(asked.groups()):
        return Answer(200, file.content, headers, range(file.size))
    first, last = asked.groups()
    start = int(first) if first else max(file.size - int(last), 0)
    stop = min(int(last) + 1, file.size) if first and last else file.size
    if start >= stop:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{file.size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return Answer(206, file.content, headers, range(start, stop))


@route("GET HEAD PUT", rf"/_lfs/{REPO}/{SHA}")
def storage(request: Request, name: str, sha: str) -> Answer:
    """The host behind: like the real one it asks for no token, the address is the permission."""
    repo = request.hub.repos[name]
    if request.method != "PUT":
        return ranged(request, repo.objects[sha], {}) if sha in repo.objects else Answer(403)
    digest = hashlib.sha256(request.body).hexdigest()
    if "part" in request.query:
        repo.parts.setdefault(sha, {})[int(request.query["part"][0])] = request.body
    elif digest != sha:
        return reply({"error": "BadDigest"}, 400)
    else:
        repo.objects[sha] = File(request.body, lfs=True)
    return Answer(200, b"", {"ETag": f'"{digest}"'})


@route("POST", rf"/api/complete_multipart/{REPO}/{SHA}")
def complete(request: Request, name: str, sha: str) -> Answer:
    repo = request.hub.repos[name]
    parts = [repo.parts[sha][number] for number in sorted(repo.parts.get(sha, {}))]
    named = [(at, f'"{hashlib.sha256(part).hexdigest()}"') for at, part in enumerate(parts, start=1)]
    content = b"".join(parts)
    asked = [(part["partNumber"], part["etag"]) for part in json.loads(request.body)["parts"]]
    if asked != named or hashlib.sha256(content).hexdigest() != sha:
        raise Refused(400, "the parts do not make up the object")
    repo.objects[sha] = File(content, lfs=True)
    return reply({"success": True})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(request: Request, name: str) -> Answer:
    hub, repo = request.hub, request.repo(name, write=True)
    objects: list[dict[str, Any]] = []
    for item in json.loads(request.body)["objects"]:
        sha, size = item["oid"], item["size"]
        href, header = f"{hub.cdn}/_lfs/{name}/{sha}", {}
        if hub.chunk_size and size > hub.chunk_size:
            header = {str(at + 1): f"{href}?part={at + 1}" for at in range(-(-size // hub.chunk_size))}
            header["chunk_size"] = str(hub.chunk_size)
            href = f"{hub.endpoint}/api/complete_multipart/{name}/{sha}"
        verify = {"href": f"{hub.endpoint}/{name}.git/info/lfs/verify"}
        actions = {"actions": {"upload": {"href": href, "header": header}, "verify": verify}}
        objects.append({"oid": sha, "size": size, **({} if sha in repo.objects else actions)})
    return reply({"transfer": "multipart" if hub.chunk_size else "basic", "objects": objects})


@route("POST", rf"/{REPO}\.git/info/lfs/verify")
def verify(request: Request, name: str) -> Answer:
    asked = json.loads(request.body)
    held = request.repo(name, write=True).objects.get(asked["oid"])
    return reply({}) if held and held.size == asked["size"] else reply({"error": "not found"}, 404)


@route("POST", rf"/api/models/{REPO}/preupload/{AT}")
def preupload(request: Request, name: str, revision: str) -> Answer:
    held = request.repo(name, write=True).at(revision).files
    files = []
    for item in json.loads(request.body)["files"]:
        path, size = item["path"], item["size"]
        mode = "lfs" if is_lfs(path, size) else "regular"
        oid = held[path].etag.strip('"') if path in held else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return reply({"files": files})


@route("POST", rf"/api/models/{REPO}/commit/{AT}")
def commit(request: Request, name: str, revision: str) -> Answer:
    repo, pull = request.repo(name, write=True), request.flag("create_pr")
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    parent, head = header["value"].get("parentCommit"), repo.at(revision)
    if revision not in repo.refs:
        raise NoRevision(revision)
    if parent and not pull and repo.at(parent) is not head:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    base = repo.at(parent) if parent else head
    files = dict(base.files)
    for operation in operations:
        apply(repo, files, operation["key"], operation["value"])
    number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
    ref = f"refs/pr/{number}" if pull else revision
    made = repo.commit(ref, files, header["value"]["summary"], header["value"].get("description", ""), base.sha)
    page = f"{request.hub.endpoint}/{name}"
    said = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}", "hookOutput": ""}
    return reply({**said, "pullRequestUrl": f"{page}/discussions/{number}"} if pull else said)


def apply(repo: Repo, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise Refused(400, "LFS pointer pointed to a file that does not exist")
        files[path] = repo.objects[value["oid"]]
    else:
        gone = [held for held in files if held == path or held.startswith(path.rstrip("/") + "/")]
        if not gone or (key == "deletedFile" and path not in files):
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        for held in gone:
            del files[held]
