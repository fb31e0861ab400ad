"""What is approved, what is held, and how it comes here: the catalog, assets, models and data sets."""

import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from kargah.client import routes
from kargah.client.connection import Connection
from kargah.client.errors import StreamFailed
from kargah.client.records import (
    ApprovalRequest,
    Asset,
    AssetSummary,
    Cell,
    ConfiguredEndpoint,
    Dataset,
    DownloadStarted,
    DownloadState,
    Freed,
    Rows,
    TestedEndpoint,
    TransferProgress,
    UploadStarted,
    Withdrawn,
)
from kargah.client.streams import follow_as, transfer_ended

Kind = Literal["model", "dataset", "checkpoint"]
FilePath = str | os.PathLike[str]
AssetList = list[Asset]
TransferList = list[TransferProgress]

PAGE_SIZE = 200
# The server has the last bytes of an upload on its disk before it answers.
UPLOAD_ANSWER_SECONDS = 300.0


class Catalog:
    """`client.catalog`: what is approved, whether held or not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def models(self, q: str | None = None) -> AssetList:
        """Approved models; `q` searches ids, names and descriptions."""
        return self._connection.data(routes.APPROVED_MODELS, AssetList, query={"q": q})

    def datasets(self, q: str | None = None) -> AssetList:
        """Approved data sets."""
        return self._connection.data(routes.APPROVED_DATASETS, AssetList, query={"q": q})

    def request(self, asset_id: str, kind: Literal["model", "dataset"], reason: str | None = None) -> ApprovalRequest:
        """Ask that a model or a data set of the hub be approved; asked again, the open request counts one more."""
        body = {"id": asset_id, "kind": kind} | ({"reason": reason} if reason is not None else {})
        return self._connection.data(routes.REQUEST, ApprovalRequest, body=body)

    def requests(
        self, *, status: Literal["open", "approved", "declined"] | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[ApprovalRequest]:
        """Requests, newest first, asked for page by page as they are read."""
        return self._connection.pages(routes.REQUESTS, ApprovalRequest, {"status": status}, page_size)

    def decline(self, request_id: str, note: str | None = None) -> ApprovalRequest:
        """Decline an open request. Raises `Conflict` (`INVALID_STATE`)."""
        body = {} if note is None else {"note": note}
        return self._connection.data(routes.DECLINE_REQUEST, ApprovalRequest, body=body, request_id=request_id)

    def withdraw(self, request_id: str) -> Withdrawn:
        """Withdraw an open request. Raises `Conflict` (`INVALID_STATE`)."""
        return self._connection.data(routes.WITHDRAW_REQUEST, Withdrawn, request_id=request_id)


class Hub:
    """`client.hub`: the hub endpoints of the server's settings."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def endpoints(self) -> list[ConfiguredEndpoint]:
        """The endpoints in the order they are tried."""
        return self._connection.data(routes.HUB_ENDPOINTS, list[ConfiguredEndpoint])

    def test(self, url: str | None = None) -> list[TestedEndpoint]:
        """Test every endpoint, or the one at `url`: which step fails, latency, speed. Raises `Conflict` (`OFFLINE`)."""
        body = {} if url is None else {"url": url}
        return self._connection.data(routes.TEST_HUB_ENDPOINTS, list[TestedEndpoint], body=body)


class Assets:
    """`client.assets`: everything held, models, data sets and checkpoints together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, *, kind: Kind | None = None, q: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Asset]:
        """Everything held, newest first, asked for page by page as it is read."""
        return self._connection.pages(routes.ASSETS, Asset, {"kind": kind, "q": q}, page_size)

    def find(self, asset_id: str, kind: Kind) -> Asset | None:
        """One asset, or None when it is not held."""
        return next((asset for asset in self.list(kind=kind, q=asset_id) if asset.id == asset_id), None)

    def summary(self) -> AssetSummary:
        """All of it, counted."""
        answer = self._connection.answer("GET", routes.ASSETS.at(), params={"limit": 1})
        return self._connection.parsed(AssetSummary, answer.get("summary"))

    def on_the_way(self) -> TransferList:
        """Downloads and uploads that are on their way or did not arrive, oldest first."""
        return self._connection.data(routes.DOWNLOADS, TransferList)

    def delete(self, asset_id: str, kind: Kind | None = None) -> Freed:
        """Delete an asset and give its space back; `kind` decides where one id names two. Raises `Conflict` (`IN_USE`)
        while a run or an endpoint uses it."""
        return self._connection.data(routes.DELETE_ASSET, Freed, query={"kind": kind}, asset_id=asset_id)


class Downloads:
    """What models and data sets have in common: they are downloaded, and the server goes on by itself."""

    def __init__(
        self, connection: Connection, assets: Assets, kind: Literal["model", "dataset"], paths: routes.DownloadRoutes
    ) -> None:
        self._connection = connection
        self._assets = assets
        self._kind = kind
        self._routes = paths

    def download(self, asset_id: str) -> DownloadStarted:
        """Begin to bring an approved one here, by its id in the catalog or on the hub; `fetch` also waits for it."""
        return self._connection.data(self._routes.start, DownloadStarted, body=self._body(asset_id))

    def bring(self, archive: FilePath, asset_id: str | None = None) -> DownloadStarted:
        """Import an approved one from an archive (zip, tar, tar.gz, tar.zst) without a network, read from the disk as
        it is sent; then `wait` for it. `asset_id` is needed where the archive does not tell what it is. Raises
        `OSError`, `Refused`, `Conflict`, `ServerFailed` (`DISK_FULL`), `AnswerLost`."""
        form = {} if asset_id is None else self._body(asset_id)
        with open(archive, "rb") as opened:
            answer = self._connection.answer(
                "POST",
                self._routes.bring.at(),
                data=form,
                files=[("file", (Path(archive).name, opened))],
                timeout=self._connection.timeout(UPLOAD_ANSWER_SECONDS),
            )
        return self._connection.parsed(DownloadStarted, answer["data"])

    def progress(self, asset_id: str, after: str | None = None) -> Generator[TransferProgress, None, None]:
        """Events of the newest download or upload, up to `done` or `error`. Closing it stops only the watching."""
        query, path = self._body(asset_id), self._routes.progress.at()
        return follow_as(TransferProgress, self._connection, path, query, transfer_ended, after)

    def pause(self, asset_id: str) -> DownloadState:
        """Let go of the network and keep the bytes."""
        return self._connection.data(self._routes.pause, DownloadState, body=self._body(asset_id))

    def resume(self, asset_id: str) -> DownloadState:
        """Go on with a paused download."""
        return self._connection.data(self._routes.resume, DownloadState, body=self._body(asset_id))

    def retry(self, asset_id: str) -> DownloadState:
        """Ask the hub now instead of waiting; begin one again that ended in an error, with the bytes it has."""
        return self._connection.data(self._routes.retry, DownloadState, body=self._body(asset_id))

    def cancel(self, asset_id: str, *, discard: bool = False) -> DownloadState:
        """End a download, or an upload; its bytes stay for a later try unless `discard`. Raises `Conflict`
        (`INVALID_STATE`) when it has ended, but `discard` then throws away what an ended one left."""
        body = {**self._body(asset_id), **({"discard": True} if discard else {})}
        return self._connection.data(self._routes.cancel, DownloadState, body=body)

    def delete(self, asset_id: str) -> Freed:
        """Delete it and give its space back. Raises `Conflict` (`IN_USE`)."""
        return self._assets.delete(asset_id, self._kind)

    def wait(self, asset_id: str) -> None:
        """Until the newest download or upload of it has ended. Raises `StreamFailed` with the code of its end."""
        for event in self.progress(asset_id):
            if event.status == "error":
                raise StreamFailed(event.error or "INTERNAL", event.message or "", event.details)

    def _arrived(self, asset_id: str) -> str:
        started = self.download(asset_id)
        own_id = (started.model_id if self._kind == "model" else started.dataset_id) or asset_id
        if started.status != "ready":
            self.wait(own_id)
        return own_id

    def _body(self, asset_id: str) -> dict[str, str]:
        return {f"{self._kind}Id": asset_id}


class Models(Downloads):
    """`client.models`."""

    def __init__(self, connection: Connection, assets: Assets) -> None:
        super().__init__(connection, assets, "model", routes.MODEL_DOWNLOADS)

    def list(self, *, q: str | None = None) -> Iterator[Asset]:
        """Models held, newest first."""
        return self._assets.list(kind="model", q=q)

    def fetch(self, model_id: str) -> Asset:
        """Download a model and wait until it is here; at once when it is. Raises `StreamFailed`, `ApiError`."""
        own_id = self._arrived(model_id)
        model = self._assets.find(own_id, "model")
        if model is None:
            raise self._connection.gone(own_id)
        return model


class Datasets(Downloads):
    """`client.datasets`."""

    def __init__(self, connection: Connection, assets: Assets) -> None:
        super().__init__(connection, assets, "dataset", routes.DATASET_DOWNLOADS)

    def list(self, *, q: str | None = None) -> AssetList:
        """Data sets held, newest first: downloaded, uploaded, built in."""
        return self._connection.data(routes.DATASETS, AssetList, query={"q": q})

    def get(self, dataset_id: str) -> Dataset:
        """A data set: columns, splits, mapping, and what was found in it."""
        return self._connection.data(routes.DATASET, Dataset, dataset_id=dataset_id)

    def rows(
        self, dataset_id: str, *, split: str | None = None, offset: int = 0, limit: int = 50, q: str | None = None
    ) -> Rows:
        """Some rows of a split; fewer than `limit` when they are very long."""
        query = {"split": split, "offset": offset, "limit": limit, "q": q}
        return self._connection.data(routes.ROWS, Rows, query=query, dataset_id=dataset_id)

    def every_row(
        self, dataset_id: str, *, split: str | None = None, q: str | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[dict[str, Cell]]:
        """Every row of a split, asked for bit by bit as they are read."""
        offset = 0
        while True:
            part = self.rows(dataset_id, split=split, offset=offset, limit=page_size, q=q)
            yield from part.rows
            offset += len(part.rows)
            if not part.rows or offset >= part.total:
                return

    def fetch(self, dataset_id: str) -> Dataset:
        """Download a data set and wait until it is here; at once when it is. Raises `StreamFailed`, `ApiError`."""
        return self.get(self._arrived(dataset_id))

    def upload(
        self,
        *files: FilePath,
        name: str | None = None,
        train: Iterable[FilePath] = (),
        validation: Iterable[FilePath] = (),
        test: Iterable[FilePath] = (),
        columns: Mapping[str, str] | None = None,
        task: str | None = None,
    ) -> "Upload":
        """Upload files (CSV, TSV, JSON, JSON Lines, Parquet) as one data set, read from the disk as they are sent.

        Rows of `files` are divided into training and validation by the server, those of `train`, `validation` and
        `test` stay in their split. `columns` maps roles (`text`, `textPair`, `label`) to columns; without it the
        server looks for them. `name` of None is the first file's. Raises `OSError`, `ValueError` without a file,
        `Refused`, `ServerFailed` (`DISK_FULL`), `AnswerLost`.
        """
        fields = {"file": files, "file:train": train, "file:validation": validation, "file:test": test}
        named = [(field, Path(path)) for field, paths in fields.items() for path in paths]
        if not named:
            raise ValueError("an upload needs at least one file")
        form = {"name": name or named[0][1].stem}
        form |= {"columns": json.dumps(dict(columns), ensure_ascii=False)} if columns else {}
        form |= {"task": task} if task else {}
        with ExitStack() as opened:
            parts = [(field, (path.name, opened.enter_context(open(path, "rb")))) for field, path in named]
            answer = self._connection.answer(
                "POST",
                routes.UPLOAD.at(),
                data=form,
                files=parts,
                timeout=self._connection.timeout(UPLOAD_ANSWER_SECONDS),
            )
        return Upload(self, self._connection.parsed(UploadStarted, answer["data"]))


class Upload:
    """An upload that is with the server and being imported."""

    def __init__(self, datasets: Datasets, started: UploadStarted) -> None:
        self._datasets = datasets
        self.dataset_id = started.dataset_id
        self.download_id = started.download_id

    def progress(self) -> Generator[TransferProgress, None, None]:
        """Events of the import, up to `done` or `error`."""
        return self._datasets.progress(self.dataset_id)

    def wait(self) -> Dataset:
        """The data set, once it is imported. Raises `StreamFailed`, which says the row or the byte."""
        self._datasets.wait(self.dataset_id)
        return self._datasets.get(self.dataset_id)

    def __repr__(self) -> str:
        return f"Upload(dataset_id={self.dataset_id!r})"


def reference(asset: Asset | str) -> Any:
    """An asset, or its id, as a body names it."""
    return {"id": asset.id, "kind": asset.kind} if isinstance(asset, Asset) else asset
