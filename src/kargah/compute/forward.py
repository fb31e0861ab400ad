"""Logits of many rows without learning from them: validation, a teacher, measuring."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from kargah.compute.encode import EncodedRows

FORWARD_BATCH_SIZE = 32


def logits_of(
    model: PreTrainedModel,
    rows: EncodedRows,
    device: torch.device,
    *,
    batch_size: int = FORWARD_BATCH_SIZE,
    between: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Logits of every row, shape [rows, classes], in the order of the rows. `between` is called before each batch.

    Rows of like length share a batch, which saves most of the padding; no random number is drawn, and the model is left
    in the mode (training or not) it was in.
    """
    was_training = model.training
    model.train(False)
    order = np.argsort(rows.lengths, kind="stable")
    result: NDArray[np.float32] | None = None
    try:
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                between()
                numbers = order[begin : begin + batch_size]
                inputs = {name: tensor.to(device) for name, tensor in rows.inputs(numbers.tolist()).items()}
                logits = model(**inputs).logits.float().cpu().numpy()
                if result is None:
                    result = np.empty((len(rows), logits.shape[1]), dtype=np.float32)
                result[numbers] = logits
    finally:
        model.train(was_training)
    return result if result is not None else np.empty((0, 0), dtype=np.float32)
