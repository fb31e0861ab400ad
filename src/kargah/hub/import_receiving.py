"""Receiving an import: the parts of a multipart body go to the disk as they come, and nothing of them is trusted.

Fields are `modelId` or `datasetId`, `commit`, `digests` (JSON, path to digest) and files `file`: one archive, or the
files of a folder, each with its path below it as its name. They are spooled under their number.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

from kargah.assets.catalog import Kind, check_id
from kargah.ground.errors import invalid
from kargah.ground.ids import new_id
from kargah.ground.web.multipart import Receiver, spool
from kargah.hub.import_source import MAX_FILES
from kargah.hub.import_survey import is_commit, is_digest
from kargah.hub.importing import Order, write_order

MAX_FIELD_BYTES = 4 * 1024 * 1024


async def receive(chunks: AsyncIterator[bytes], content_type: str, kind: Kind, imports: Path) -> tuple[Order, Path]:
    """Take a multipart body in. Returns what it asks for, and the folder below `imports` that holds it, synced.

    Raises `ValidationFailed`, and `OSError` of a full disk, and then leaves nothing.
    """
    receiver = _Receiver(imports / f".{new_id()}.receiving", content_type, kind)
    return await spool(chunks, receiver, receiver.finish), receiver.folder


class _Receiver(Receiver):
    """What an import may hold."""

    def __init__(self, folder: Path, content_type: str, kind: Kind) -> None:
        super().__init__(folder, content_type, (f"{kind}Id", "commit", "digests"), MAX_FIELD_BYTES)
        self._kind = kind
        self._names: dict[str, None] = {}

    def file_number(self, name: str, filename: str) -> int | None:
        if name != "file":
            return None
        number = len(self._names)
        if number == MAX_FILES:
            raise invalid("file", "problem.tooMany", bound=MAX_FILES)
        shown = filename.removeprefix("./") or "file"
        if shown in self._names:
            raise invalid("file", "problem.twice")
        self._names[shown] = None
        return number

    def finish(self, data: bytes) -> Order:
        """Take the last bytes; the import is on the disk when this returns."""
        self.end(data)
        if not self._names:
            raise invalid("file", "problem.missing")
        id_field = f"{self._kind}Id"
        wanted, commit = self.text(id_field) or None, self.text("commit") or None
        if commit is not None and not is_commit(commit):
            raise invalid("commit")
        order = Order(
            kind=self._kind,
            wanted=check_id(id_field, wanted) if wanted is not None else None,
            files=tuple(self._names),
            commit=commit,
            digests=self._digests(),
        )
        write_order(self.folder, order)
        return order

    def _digests(self) -> dict[str, str]:
        text = self.text("digests")
        if not text:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise invalid("digests", "problem.json") from error
        if not isinstance(value, dict):
            raise invalid("digests", "problem.object")
        if not all(is_digest(digest) for digest in value.values()):
            raise invalid("digests")
        return value
