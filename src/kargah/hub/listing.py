"""A repository's commit and files as hubs of any make tell of them, with bounds on how much they may tell.

Hubs differ: some cut the tree into pages (`Link: <…>; rel="next"`), some list one folder at a time whatever they are
asked, some know no tree and give `siblings`, with or without sizes and digests. Where a digest is told nowhere else,
the `ETag` of the file itself is asked, as the hub's own clients do. A file without any digest is not taken.

Whatever does not fit raises `ValueError` (or what a surprise raises: `TypeError`, `KeyError`, `AttributeError`,
`RecursionError`); a refusal by the hub raises `HfHubHTTPError`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id  # type: ignore[attr-defined]

from kargah.hub.asking import Asking
from kargah.hub.endpoint import Endpoint
from kargah.hub.plan import PlannedFile
from kargah.hub.selection import check_paths

MAX_ENTRIES = 200_000
"""More files and folders than a repository that anyone would want here."""
MAX_PAGES = 5_000

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r'^(?:W/)?"?(?:sha256[:-])?([0-9a-f]{64}|[0-9a-f]{40})(?:-gzip)?"?$', re.IGNORECASE)


class Listing:
    """One repository at one endpoint."""

    def __init__(self, client: Asking, endpoint: Endpoint, kind: str, repo_id: str) -> None:
        """Raises `HFValidationError` for what cannot be an id."""
        validate_repo_id(repo_id)
        self._client = client
        self._endpoint = endpoint
        self._kind = kind
        self._repo_id = repo_id
        self._api = f"{endpoint.url}/api/{kind}s/{repo_id}"

    def commit(self, revision: str | None) -> str:
        """The commit that a branch, tag or commit stands for, without one the main one's."""
        at = f"/revision/{quote(revision, safe='')}" if revision is not None else ""
        commit = self._json(f"{self._api}{at}")["sha"]
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise ValueError("names no commit")
        return commit

    def files(self, commit: str) -> dict[str, PlannedFile | None]:
        """Every file of a commit by its path; None where the hub did not say what it is (see `measured`).

        Raises `TransferFailed` (`UNSAFE_PATH`).
        """
        try:
            entries = list(self._tree(commit))
        except HfHubHTTPError as error:
            # A small hub may know no tree.
            if error.response.status_code != 404 or error.response.headers.get("X-Error-Code") is not None:
                raise
            entries = self._siblings(commit)
        check_paths([path for path, _ in entries])
        files: dict[str, PlannedFile | None] = {}
        for path, file in entries:
            if files.setdefault(path, file) != file:
                raise ValueError(f"{path} is listed twice, as different files")
        return files

    def measured(self, commit: str, path: str) -> PlannedFile:
        """A file's size and digest, asked of the file itself."""
        response = self._client.head(self._endpoint.file_url(self._kind, self._repo_id, commit, path))
        hf_raise_for_status(response)
        # What the hub itself says of a file goes before what the storage behind it says.
        answers = [*response.history, response]
        etags = [answer.headers.get(name) for name in ("X-Linked-Etag", "ETag") for answer in answers]
        sizes = [answers[0].headers.get("X-Linked-Size"), response.headers.get("Content-Length")]
        digest = next((found[1].lower() for etag in etags if etag and (found := _ETAG.match(etag.strip()))), None)
        size = next((int(size) for size in sizes if size is not None and size.isdigit()), None)
        if digest is None or size is None:
            raise ValueError(f"{path} has no {'digest' if digest is None else 'size'}")
        return PlannedFile(path, size, f"sha256:{digest}" if len(digest) == 64 else f"git-sha1:{digest}")

    def _tree(self, commit: str) -> Iterator[tuple[str, PlannedFile | None]]:
        """Files of the tree. Folders of which nothing was told are asked by themselves."""
        waiting = [""]
        seen: set[str] = set()
        num_entries = 0
        while waiting:
            folders: set[str] = set()
            told_of: set[str] = set()
            for entry in self._pages(commit, waiting.pop()):
                num_entries += 1
                if num_entries > MAX_ENTRIES:
                    raise ValueError("its list of files does not end")
                path = _text(entry["path"])
                told_of.add(path.rpartition("/")[0])
                if entry.get("type", "file") == "file":
                    yield path, _planned(path, entry)
                elif entry["type"] == "directory" and path not in seen:
                    folders.add(path)
            seen |= folders
            unknown = sorted(folders - told_of)
            check_paths(unknown)
            waiting += unknown

    def _pages(self, commit: str, folder: str) -> Iterator[dict[str, Any]]:
        below = f"/{quote(folder)}" if folder else ""
        place = f"{self._api}/tree/{quote(commit, safe='')}{below}"
        query = "recursive=true&expand=false"
        asked: set[str] = set()
        while query not in asked and len(asked) < MAX_PAGES:
            asked.add(query)
            response = self._ask(f"{place}?{query}")
            page = response.json()
            if not isinstance(page, list):
                raise ValueError("its tree is no list")
            yield from page
            # Only the query is taken: a mirror may hand on the link of the hub behind it.
            link = response.links.get("next", {}).get("url")
            if link is None:
                return
            query = urlsplit(link).query
        raise ValueError("the pages of its tree do not end")

    def _siblings(self, commit: str) -> list[tuple[str, PlannedFile | None]]:
        try:
            info = self._json(f"{self._api}/revision/{commit}?blobs=true")
        except HfHubHTTPError as error:
            if error.response.status_code != 404 or error.response.headers.get("X-Error-Code") is not None:
                raise
            info = self._json(f"{self._api}?blobs=true")
        if info.get("sha", commit) != commit:
            raise ValueError("it moved while it was asked")
        siblings = info["siblings"]
        if len(siblings) > MAX_ENTRIES:
            raise ValueError("its list of files does not end")
        return [(path, _planned(path, entry)) for entry in siblings for path in [_text(entry["rfilename"])] if entry]

    def _json(self, url: str) -> dict[str, Any]:
        value = self._ask(url).json()
        if not isinstance(value, dict):
            raise ValueError("it describes no repository")
        return value

    def _ask(self, url: str) -> httpx2.Response:
        response = self._client.get(url)
        hf_raise_for_status(response)
        return response


def one_size_a_digest(files: Iterable[PlannedFile]) -> None:
    """Refuse what cannot be: one content with two sizes. Raises `ValueError`."""
    sizes: dict[str, int] = {}
    for file in files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            raise ValueError(f"{file.path}: one digest with two sizes")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a path that is no text")
    return value


def _planned(path: str, entry: dict[str, Any]) -> PlannedFile | None:
    """What a tree (`oid`, `lfs.oid`) or a list of siblings (`blobId`, `lfs.sha256`) says of a file."""
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        digest = str(lfs.get("oid") or lfs.get("sha256") or "").removeprefix("sha256:").lower()
        size, name, pattern = lfs.get("size", entry.get("size")), "sha256", r"[0-9a-f]{64}"
    else:
        digest = str(entry.get("oid") or entry.get("blobId") or "").lower()
        size, name, pattern = entry.get("size"), "git-sha1", r"[0-9a-f]{40}"
    if not isinstance(size, int) or isinstance(size, bool) or not re.fullmatch(pattern, digest):
        return None
    if size < 0:
        raise ValueError(f"{path} has a negative size")
    return PlannedFile(path, size, f"{name}:{digest}")
