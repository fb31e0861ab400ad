"""Data sets as they cross HTTP."""

from typing import Any, Literal

from kargah.assets.schemas import Asset
from kargah.datasets.stored import DatasetInfo
from kargah.ground.web.envelope import Wire
from kargah.text.languages import Language
from kargah.text.messages import translate

Cell = str | int | float | bool | None


class UploadStarted(Wire):
    """An upload that is here and being imported; its progress is a stream."""

    dataset_id: str
    status: Literal["downloading"]
    download_id: str


class DatasetColumn(Wire):
    """A column. `numUnique` is null when there are more than `numUniqueOver` different values."""

    name: str
    type: Literal["string", "int", "float", "bool"]
    examples: list[Cell]
    num_nulls: int
    num_unique: int | None
    num_unique_over: int | None


class DatasetSplit(Wire):
    """A split."""

    name: Literal["train", "validation", "test"]
    num_rows: int


class Finding(Wire):
    """Something about the rows that a person should know; `examples` are places in the imported files."""

    code: str
    severity: Literal["info", "warning", "error"]
    count: int
    examples: list[dict[str, Any]]
    message: str
    remedy: str


class SourceFileFacts(Wire):
    """A file the data set was made from."""

    name: str
    split: Literal["train", "validation", "test"] | None
    format: str
    size_bytes: int
    num_rows: int


class Dataset(Asset):
    """A data set with all that is known of its inside. `mapping` is role (`text`, `textPair`, `label`) to column."""

    columns: list[DatasetColumn]
    splits: list[DatasetSplit]
    version: str
    mapping: dict[str, str]
    task: str | None
    labels: list[str]
    findings: list[Finding]
    files: list[SourceFileFacts]


class Rows(Wire):
    """Some rows of one split; `total` counts all that match."""

    rows: list[dict[str, Cell]]
    total: int
    split: str


def of_info(info: DatasetInfo, language: Language) -> dict[str, Any]:
    """What `Dataset` has beside the asset."""
    return {
        "columns": [
            {
                "name": column.name,
                "type": column.type,
                "examples": column.examples,
                "numNulls": column.num_nulls,
                "numUnique": column.num_unique,
                "numUniqueOver": column.num_unique_over,
            }
            for column in info.columns
        ],
        "splits": [{"name": name, "numRows": num_rows} for name, num_rows in info.splits.items()],
        "version": info.version,
        "mapping": info.mapping,
        "task": info.task,
        "labels": info.labels,
        "findings": [
            {
                **finding,
                "severity": "warning",
                "message": translate(f"finding.{finding['code']}", language, count=finding["count"]),
                "remedy": translate(f"finding.{finding['code']}.remedy", language),
            }
            for finding in info.findings
        ],
        "files": info.sources,
    }
