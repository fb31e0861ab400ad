"""The hub's protocol over HTTP, so that `HF_ENDPOINT=http://host:port/hub` works with the usual clients unmodified.

Models and data sets: info, tree, paths-info, refs, lists, and `resolve` with ranges. Errors are what those clients
read: a status, `X-Error-Code`, `X-Error-Message`. No upload, no Xet. Addresses are split before they are decoded, for a
revision such as `refs/pr/1` comes as one part, `refs%2Fpr%2F1`.
"""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kargah.hub.source import RepoSource, SourceFile, SourceSnapshot, pointer_of

_KINDS = {"models": "model", "datasets": "dataset"}
_API_VERBS = frozenset({"revision", "tree", "paths-info", "refs"})
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_CHUNK_BYTES = 512 * 1024
_LIST_LIMIT = 1000


def hub_router(source: RepoSource, *, prefix: str = "", bytes_per_second: int | None = None) -> APIRouter:
    """A router that serves `source` below `prefix` (`/hub`). `bytes_per_second` slows each file's body down."""
    router = APIRouter(include_in_schema=False)

    async def answer(request: Request) -> Response:
        try:
            return await _answer(request, source, prefix, bytes_per_second)
        except HubError as error:
            return error.response()

    router.add_api_route(prefix + "/{path:path}", answer, methods=["GET", "HEAD", "POST"])
    return router


class HubError(Exception):
    """An answer that clients of a hub read as an error."""

    def __init__(self, status: int, code: str | None, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.commit = commit

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        if self.commit is not None:
            headers["X-Repo-Commit"] = self.commit
        return JSONResponse({"error": self.message}, self.status, headers)


@dataclass(frozen=True, slots=True)
class _Address:
    """An address taken apart: `verb` is `info`, `tree`, `paths-info`, `refs` or `resolve`."""

    kind: str
    repo_id: str
    verb: str
    revision: str | None = None
    path: str = ""


async def _answer(request: Request, source: RepoSource, prefix: str, bytes_per_second: int | None) -> Response:
    parts = _raw_parts(request, prefix)
    reads = request.method in ("GET", "HEAD")
    if parts == ["api", "whoami-v2"] and reads:
        return JSONResponse({"type": "user", "id": "kargah", "name": "kargah", "fullname": "Kargah", "orgs": []})
    if len(parts) == 2 and parts[0] == "api" and parts[1] in _KINDS and reads:
        return JSONResponse(await run_sync(_list, source, _KINDS[parts[1]], dict(request.query_params)))
    address = _address(parts)
    if address is None:
        raise HubError(404, None, "Not found")
    if address.verb == "refs" and reads:
        return JSONResponse(await run_sync(_refs, source, address))
    snapshot = await run_sync(_snapshot, source, address)
    if address.verb == "resolve" and reads:
        return _resolve(request, snapshot, address.path, bytes_per_second)
    if address.verb == "info" and reads:
        return JSONResponse(_info(snapshot, blobs=_is_true(request.query_params.get("blobs"))))
    if address.verb == "tree" and reads:
        recursive = _is_true(request.query_params.get("recursive"))
        return JSONResponse(_tree(snapshot, address.path, recursive=recursive))
    if address.verb == "paths-info" and request.method == "POST":
        return JSONResponse(_paths_info(snapshot, await _asked_paths(request)))
    raise HubError(405, None, "Method not allowed")


def _raw_parts(request: Request, prefix: str) -> list[str]:
    """The parts of the address as they were sent, still encoded."""
    raw = request.scope.get("raw_path") or quote(request.scope["path"]).encode("ascii")
    path = raw.decode("ascii", "replace").partition("?")[0]
    path = path.removeprefix(quote(request.scope.get("root_path", ""))).removeprefix(prefix)
    return [part for part in path.split("/") if part]


def _address(parts: list[str]) -> _Address | None:
    api = parts[:1] == ["api"]
    if api:
        kind = _KINDS.get(parts[1]) if len(parts) > 2 else None
        rest = parts[2:]
    else:
        kind = "dataset" if parts[:1] == ["datasets"] else "model"
        rest = parts[1:] if kind == "dataset" else parts
    if kind is None:
        return None
    verbs = _API_VERBS if api else frozenset({"resolve", "raw"})
    # `org/name` first: a repository may be called `tree`, an organisation not.
    for id_length in (2, 1):
        repo_id = "/".join(unquote(part) for part in rest[:id_length])
        if api and len(rest) == id_length:
            return _Address(kind, repo_id, "info")
        if len(rest) > id_length and rest[id_length] in verbs and not (id_length == 2 and rest[1] in verbs):
            return _verb_address(kind, repo_id, rest[id_length], rest[id_length + 1 :])
    return None


def _verb_address(kind: str, repo_id: str, verb: str, rest: list[str]) -> _Address | None:
    if verb == "refs":
        return _Address(kind, repo_id, "refs") if not rest else None
    if not rest:
        return None
    # Some clients send `refs/pr/1` as three parts.
    length = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    revision = "/".join(unquote(part) for part in rest[:length])
    path = "/".join(unquote(part) for part in rest[length:])
    if verb == "revision":
        return _Address(kind, repo_id, "info", revision) if not path else None
    return _Address(kind, repo_id, "resolve" if verb == "raw" else verb, revision, path)


def _snapshot(source: RepoSource, address: _Address) -> SourceSnapshot:
    snapshot = source.find(address.kind, address.repo_id, address.revision)
    if snapshot is not None:
        return snapshot
    if source.refs(address.kind, address.repo_id) is None:
        raise HubError(404, "RepoNotFound", "Repository not found")
    raise HubError(404, "RevisionNotFound", "Invalid rev id")


def _info(snapshot: SourceSnapshot, *, blobs: bool) -> dict[str, Any]:
    siblings = [{"rfilename": file.path} | (_sibling_blob(file) if blobs else {}) for file in snapshot.files.values()]
    return {
        "_id": snapshot.commit[:24],
        "id": snapshot.repo_id,
        **({"modelId": snapshot.repo_id} if snapshot.kind == "model" else {}),
        "author": snapshot.repo_id.rpartition("/")[0] or None,
        "sha": snapshot.commit,
        "lastModified": snapshot.modified_at,
        "createdAt": snapshot.modified_at,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "description": snapshot.description,
        "usedStorage": sum(file.size_bytes for file in snapshot.files.values()),
        "siblings": siblings,
    }


def _sibling_blob(file: SourceFile) -> dict[str, Any]:
    blob: dict[str, Any] = {"size": file.size_bytes, "blobId": file.git_id}
    if file.sha256 is not None:
        pointer_size = len(pointer_of(file.sha256, file.size_bytes))
        blob["lfs"] = {"sha256": file.sha256, "size": file.size_bytes, "pointerSize": pointer_size}
    return blob


def _tree(snapshot: SourceSnapshot, path: str, *, recursive: bool) -> list[dict[str, Any]]:
    if path and path not in snapshot.folders:
        raise _no_entry(snapshot)
    start = f"{path}/" if path else ""
    names = [*snapshot.folders, *snapshot.files]
    inside = [name for name in names if name.startswith(start) and (recursive or "/" not in name[len(start) :])]
    return [_entry(snapshot, name) for name in sorted(inside)]


def _paths_info(snapshot: SourceSnapshot, paths: list[str]) -> list[dict[str, Any]]:
    wanted = (path.strip("/") for path in paths)
    return [_entry(snapshot, path) for path in wanted if path in snapshot.files or path in snapshot.folders]


def _entry(snapshot: SourceSnapshot, path: str) -> dict[str, Any]:
    file = snapshot.files.get(path)
    if file is None:
        return {"type": "directory", "oid": snapshot.folders[path], "size": 0, "path": path}
    entry: dict[str, Any] = {"type": "file", "oid": file.git_id, "size": file.size_bytes, "path": path}
    if file.sha256 is not None:
        pointer_size = len(pointer_of(file.sha256, file.size_bytes))
        entry["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": pointer_size}
    return entry


async def _asked_paths(request: Request) -> list[str]:
    """The paths of a paths-info request: a form by the Python client, JSON by the others."""
    body = await request.body()
    if "json" in request.headers.get("Content-Type", ""):
        value = await request.json() if body else {}
        paths = value.get("paths") if isinstance(value, dict) else None
    else:
        paths = parse_qs(body.decode("utf-8", "replace")).get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HubError(400, None, "paths is a list of strings")
    return paths


def _refs(source: RepoSource, address: _Address) -> dict[str, Any]:
    refs = source.refs(address.kind, address.repo_id)
    if refs is None:
        raise HubError(404, "RepoNotFound", "Repository not found")
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    groups = {"refs/convert/": "converts", "refs/tags/": "tags", "refs/pr/": "pullRequests"}
    for name, commit in refs.items():
        start = next((start for start in groups if name.startswith(start)), None)
        if start is None:
            answer["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit})
        else:
            answer[groups[start]].append({"name": name.removeprefix(start), "ref": name, "targetCommit": commit})
    return dict(answer)


def _list(source: RepoSource, kind: str, asked: Mapping[str, str]) -> list[dict[str, Any]]:
    limit = int(asked["limit"]) if asked.get("limit", "").isdigit() else _LIST_LIMIT
    search = asked.get("search", "").casefold()
    author = asked.get("author")
    found = [
        _info(snapshot, blobs=False)
        for snapshot in source.repos(kind)
        if search in snapshot.repo_id.casefold() and (not author or snapshot.repo_id.startswith(f"{author}/"))
    ]
    return found[:limit]


def _resolve(request: Request, snapshot: SourceSnapshot, path: str, bytes_per_second: int | None) -> Response:
    file = snapshot.files.get(path)
    if file is None:
        raise _no_entry(snapshot)
    headers = {
        "X-Repo-Commit": snapshot.commit,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}",
    }
    if file.sha256 is not None:
        headers |= {"X-Linked-Size": str(file.size_bytes), "X-Linked-Etag": f'"{file.sha256}"'}
    start, end = 0, file.size_bytes
    status = 200
    match = _RANGE.match(request.headers.get("Range", ""))
    matches = request.headers.get("If-Range") in (None, headers["ETag"])
    if match is not None and matches and (match[1] or match[2]):
        start, end = _asked_range(match[1], match[2], file.size_bytes)
        if start >= end:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size_bytes}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    body = _body(file, start, end, bytes_per_second)
    return StreamingResponse(body, status_code=status, headers=headers, media_type="application/octet-stream")


def _asked_range(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and end (exclusive) of one range (RFC 9110 14.1.2); an empty one when it lies outside."""
    if not first:
        return max(0, size - int(last)), size if int(last) else 0
    return int(first), min(size, int(last) + 1) if last else size


async def _body(file: SourceFile, start: int, end: int, bytes_per_second: int | None) -> AsyncIterator[bytes]:
    chunk_bytes = _CHUNK_BYTES if bytes_per_second is None else max(1, min(_CHUNK_BYTES, bytes_per_second // 10))
    async with await anyio.open_file(file.location, "rb") as content:
        await content.seek(start)
        left = end - start
        while left > 0:
            chunk = await content.read(min(chunk_bytes, left))
            if not chunk:
                # It became shorter meanwhile: the connection breaks, as the length promised cannot be kept.
                raise ClientDisconnect
            yield chunk
            left -= len(chunk)
            if bytes_per_second is not None:
                await anyio.sleep(len(chunk) / bytes_per_second)


def _no_entry(snapshot: SourceSnapshot) -> HubError:
    return HubError(404, "EntryNotFound", "Entry not found", snapshot.commit)


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true", "yes")
