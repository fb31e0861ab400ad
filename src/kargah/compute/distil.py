"""Distilling a teacher's judgement into a smaller student, by its logits.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network": the student's softened probabilities are
drawn to the teacher's, beside the true labels. The teacher judges every training row once, before training; it may
have another tokenizer, for what is compared are classes, not tokens.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kargah.compute.data import Rows
from kargah.compute.encode import encode_rows
from kargah.compute.failures import Code, TrainingFailed
from kargah.compute.forward import logits_of
from kargah.compute.model import load_tokenizer, load_trained, max_positions, num_embeddings, takes_token_types
from kargah.compute.sink import Log
from kargah.compute.trainer import Objective
from kargah.spec.layout import fsync_folder
from kargah.spec.manifest import digest_file
from kargah.spec.run_spec import ModelRef


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    """The objective without a teacher: cross entropy in nats, summed over the rows."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def distillation_objective(alpha: float, temperature: float) -> Objective:
    """The objective with a teacher: `alpha * T² * KL(teacher || student) + (1 - alpha) * cross entropy`, summed.

    Both distributions of the divergence are softened by the temperature T; T² keeps its gradients' size.
    """

    def objective(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
        assert teacher is not None, "rows carry no teacher logits"
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=-1),
            functional.log_softmax(teacher / temperature, dim=-1),
            reduction="sum",
            log_target=True,
        )
        return alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy_sum(logits, labels, None)

    return objective


def teacher_logits(
    teacher: ModelRef,
    rows: Rows,
    labels: Sequence[str],
    max_length: int,
    device: torch.device,
    folder: Path,
    log: Log,
    between: Callable[[], None],
) -> NDArray[np.float32]:
    """The teacher's logits of `rows`, float32 of shape [rows, classes], columns in the order of `labels`.

    Kept in `folder` under a name made of everything they depend on, so later attempts read them. `between` is called
    whenever the work gets on and may raise. Raises `TrainingFailed`: `TEACHER_MISMATCH` when the teacher judges other
    labels.
    """
    source = Path(teacher.path)
    path = folder / f"logits-{_key(source, rows, labels, max_length)}.npy"
    if path.is_file():
        log.info("teacherLogitsRead", numRows=len(rows))
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    tokenizer = load_tokenizer(source)
    model, teacher_labels = load_trained(source)
    if set(teacher_labels) != set(labels) or len(teacher_labels) != len(labels):
        raise TrainingFailed(
            Code.TEACHER_MISMATCH,
            "the teacher judges other labels than the data has",
            teacherLabels=teacher_labels,
            labels=list(labels),
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    cast(torch.nn.Module, model).to(device)
    encoded, facts = encode_rows(
        tokenizer,
        rows,
        labels,
        max_length=min(max_length, max_positions(model) or max_length),
        token_types=takes_token_types(model),
        num_embeddings=num_embeddings(model),
        between=between,
    )
    log.info("teacherJudges", numRows=len(rows), truncatedShare=facts.truncated_share)
    logits = logits_of(model, encoded, device, between=between)
    aligned = np.ascontiguousarray(logits[:, [teacher_labels.index(label) for label in labels]])
    _keep(path, aligned)
    return aligned


def _key(source: Path, rows: Rows, labels: Sequence[str], max_length: int) -> str:
    sha = hashlib.sha256(f"{rows.digest()} {max_length} {list(labels)!r}".encode())
    for path in sorted(source.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.is_file():
            sha.update(f"{path.relative_to(source)} {digest_file(path)}".encode())
    return sha.hexdigest()[:32]


def _keep(path: Path, logits: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        np.save(file, logits, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(path.parent)
