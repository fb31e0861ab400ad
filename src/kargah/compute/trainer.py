"""The one place that reaches into HF Trainer's private parts (transformers is pinned for it).

Trainer keeps: the loop over epochs and accumulated batches, skipping to the middle of an epoch, optimizer, schedule,
clipping, autocast, and reading the files of optimizer, schedule and random states. Replaced here:

    _maybe_log_save_evaluate     our hooks are asked instead; Trainer logs, evaluates and saves nothing by itself
    compute_loss, _get_num_items_in_batch   the loss is a sum over rows, divided by the rows of the whole step
    get_train_dataloader         batches are a function of (seed, epoch) and draw nothing from torch's random state,
                                 which therefore belongs to dropout alone
    _load_from_checkpoint        the model was loaded from the checkpoint before the trainer was built
    create_optimizer             the input embedding may have a learning rate of its own
    log, floating_point_ops      silent

A checkpoint's files are written here too, from copies: Trainer would write while training waits.
"""

import copy
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from kargah.compute.arguments import Plan
from kargah.compute.batches import EpochBatches
from kargah.compute.encode import EncodedRows
from kargah.compute.hooks import Hook, StateWriter, StepEnd
from kargah.compute.hooks.window import Stopwatch
from kargah.compute.lora import Weights
from kargah.compute.scores import Evaluation
from kargah.compute.snapshot import Snapshot
from kargah.spec.control import Outcome
from kargah.spec.layout import read_json, write_json

HOOKS = "hooks.json"

Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(logits [rows, classes], labels [rows], teacher logits or None) → the sum of the rows' losses."""


class EpochLoader(DataLoader[int]):
    """A loader that tells its batch sampler the epoch, as Trainer expects of it."""

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the batch sampler."""
        if isinstance(self.batch_sampler, EpochBatches):
            self.batch_sampler.set_epoch(epoch)


class HookedTrainer(Trainer):
    """Trainer whose steps are reported to hooks, and whose loss is an `Objective`.

    `evaluate_now` scores the validation rows with the present weights. `weights` gives these for a checkpoint,
    `save_weights` writes a copy of them into a folder.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: Callable[[], Weights],
        save_weights: Callable[[Path, Weights], None],
        arguments: TrainingArguments,
        optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]],
        embedding_learning_rate: float | None,
        bucketed: bool,
        rows: EncodedRows,
        plan: Plan,
        objective: Objective,
        evaluate_now: Callable[[], Evaluation],
        hooks: Sequence[Hook],
        stopwatch: Stopwatch,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=rows, optimizer_cls_and_kwargs=optimizer)
        self.remove_callback(PrinterCallback)
        # The objective divides by the rows of the whole accumulated step; Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        self._ending: Outcome | None = None
        self._model = model
        self._tokenizer = tokenizer
        self._weights = weights
        self._save_weights = save_weights
        self._snapshot = Snapshot()
        self._has_reserved = False
        self._rows = rows
        self._plan = plan
        self._objective = objective
        self._evaluate_now = evaluate_now
        self._hooks = hooks
        self._stopwatch = stopwatch
        self._embedding_learning_rate = embedding_learning_rate
        self._bucketed = bucketed
        self._settled_step = 0

    def run(self, checkpoint: Path | None, step: int) -> Outcome:
        """Train until a hook ends it. `checkpoint` is the folder to go on from, written at `step`."""
        self._settled_step = step
        states = read_json(checkpoint / HOOKS) if checkpoint is not None else None
        endings = []
        for hook in self._hooks:
            if states and hook.name in states:
                hook.load_state(states[hook.name])
            endings.append(hook.on_start(step, self.capture_state))
        for ending in endings:
            if ending is not None:
                return ending
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        assert self._ending is not None, "a hook ends training at the last step"
        return self._ending

    def capture_state(self) -> StateWriter:
        """Copy everything a resumed run needs: weights, optimizer, schedule, random states, hooks. See `StateCapture`.

        The names and the contents of the files are Trainer's, which reads them when it resumes.
        """
        taken = self._snapshot.take(self._state())
        trainer_state = copy.deepcopy(self.state)
        hook_states = {hook.name: hook.state() for hook in self._hooks if hook.name}

        def write(folder: Path) -> None:
            self._save_weights(folder, taken["weights"])
            self._tokenizer.save_pretrained(folder)
            for name, value in taken["files"].items():
                torch.save(value, folder / name)
            trainer_state.save_to_json(str(folder / "trainer_state.json"))
            write_json(folder / HOOKS, hook_states)

        return write

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self._embedding_learning_rate is not None:
            optimizer = super().create_optimizer(model)
            _give_own_rate(optimizer, self._model.get_input_embeddings(), self._embedding_learning_rate)
            return optimizer
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader[int]:
        size = self.args.per_device_train_batch_size
        batches = EpochBatches(self._rows.lengths, size, self.args.seed, bucketed=self._bucketed)
        return EpochLoader(
            self._rows,
            batch_sampler=batches,
            collate_fn=self._rows.batch,
            generator=torch.Generator(),
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        features = {name: value for name, value in inputs.items() if name not in ("labels", "teacher_logits")}
        labels = inputs["labels"]
        logits = model(**features).logits.float()
        loss_sum = self._objective(logits, labels, inputs.get("teacher_logits"))
        for hook in self._hooks:
            hook.on_batch(float(loss_sum.detach()), len(labels))
        return loss_sum / (num_items_in_batch if num_items_in_batch is not None else len(labels))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> int:
        return sum(len(batch["labels"]) for batch in batch_samples)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        model: torch.nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        step = self.state.global_step
        if step == self._settled_step:  # Trainer asks once more at the end of an epoch
            return
        self._settled_step = step
        end = StepEnd(
            step=step,
            epoch=float(self.state.epoch),
            total_steps=self._plan.total_steps,
            steps_per_epoch=self._plan.steps_per_epoch,
            learning_rate=float(learning_rate or 0.0),
            grad_norm=float(grad_norm) if grad_norm is not None else math.nan,
        )
        for hook in self._hooks:
            hook.on_step_end(end)
        if not self._has_reserved:  # an optimizer has its state only after a step
            self._has_reserved = True
            self._snapshot.reserve(self._state())
        with self._stopwatch.paused():
            if end.wants_evaluation:
                evaluation = self._evaluate_now()
                for hook in self._hooks:
                    hook.on_evaluation(end, evaluation)
            for hook in self._hooks:
                hook.on_settled(end)
        if end.ending is not None:
            self._ending = end.ending
            self.control.should_training_stop = True

    def _state(self) -> dict[str, Any]:
        assert self.optimizer is not None, "Trainer makes it before the first step"
        assert self.lr_scheduler is not None, "Trainer makes it before the first step"
        files = {"optimizer.pt": self.optimizer.state_dict(), "scheduler.pt": self.lr_scheduler.state_dict()}
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            files["scaler.pt"] = scaler.state_dict()
        return {"weights": self._weights(), "files": {**files, "rng_state.pth": _random_states()}}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        return

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        return

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


def _give_own_rate(optimizer: torch.optim.Optimizer, module: torch.nn.Module, learning_rate: float) -> None:
    """Move the parameters of `module` into groups of their own, behind the others, with `learning_rate`."""
    own = {id(parameter) for parameter in module.parameters()}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in own]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            options = {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
            optimizer.add_param_group({"params": moved, **options, "lr": learning_rate})
