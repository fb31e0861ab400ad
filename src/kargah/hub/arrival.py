"""What happens to a model once its bytes are here: pickled weights become safetensors, and the folder takes its place.

Converting needs torch, so it is a compute child's work (`kargah.compute.convert`): this process only starts it.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kargah.assets import blobs
from kargah.assets.catalog import Entry
from kargah.ground.home import Home, folder_name
from kargah.ground.ids import now, rfc3339
from kargah.ground.settings import SECRET_VARIABLES
from kargah.spec.layout import fsync_folder, read_json, write_json
from kargah.spec.manifest import MANIFEST, digest_file

log = logging.getLogger(__name__)

CONVERT = "kargah.compute.convert"
UNSAFE_EXIT = 3


class ArrivalFailed(Exception):
    """The files are here and of no use; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Arrival:
    """Puts arrived models where they belong."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def model(self, entry: Entry, snapshot: Path, commit: str) -> dict[str, Any]:
        """Convert what must be, move the snapshot to its place, and give the asset's last facts.

        Raises `ArrivalFailed` (`UNSAFE_WEIGHTS`, `CONVERSION_FAILED`, `COMPUTE_MISSING`) and `OSError`.
        """
        manifest: dict[str, Any] = read_json(snapshot / MANIFEST) or {}
        if manifest["needsConversion"]:
            self._convert(snapshot, manifest)
        target = self._home.models / folder_name(entry.id) / commit
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        os.replace(snapshot, target)
        fsync_folder(target.parent)
        size = sum(int(file["sizeBytes"]) for file in manifest["files"].values())
        facts: dict[str, Any] = {"commit": commit, "endpoint": manifest["endpoint"]}
        if "converted" in manifest:
            facts["converted"] = manifest["converted"]
        return {
            "size_bytes": size,
            "path": str(target.relative_to(self._home.root)),
            "revision": commit,
            "facts": facts,
        }

    def clear(self, folder: Path) -> None:
        """Forget the download's own folder, and contents that only it wanted (originals of converted weights)."""
        shutil.rmtree(folder, ignore_errors=True)
        blobs.sweep(self._home)

    def _convert(self, snapshot: Path, manifest: dict[str, Any]) -> None:
        command = [sys.executable, "-m", CONVERT, str(snapshot), "--remove", "--with-parent"]
        environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        with tempfile.TemporaryFile() as told:
            # Its standard input stays open as long as this server lives: the child ends with it.
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, env=environment
            ) as child:
                assert child.stdout is not None
                answer = child.stdout.read()
                child.wait()
            told.seek(0)
            complaint = told.read()
        if child.returncode != 0:
            log.error("converting %s: %s", snapshot, complaint.decode("utf-8", "replace")[-2000:])
            if child.returncode == UNSAFE_EXIT:
                raise ArrivalFailed("UNSAFE_WEIGHTS")
            missing = b"ModuleNotFoundError" in complaint
            raise ArrivalFailed("COMPUTE_MISSING" if missing else "CONVERSION_FAILED")
        said = json.loads(answer.strip().splitlines()[-1])
        originals = {name: manifest["files"].pop(name) for name in said["converted"] if name in manifest["files"]}
        made = snapshot / said["file"]
        manifest["files"][said["file"]] = {"sizeBytes": made.stat().st_size, "digest": digest_file(made)}
        manifest["converted"] = {"from": originals, "to": said["file"], "at": rfc3339(now())}
        manifest["needsConversion"] = False
        write_json(snapshot / MANIFEST, manifest)
