"""Fixtures of the training program's tests; the slow ones are made once a session."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast, set_seed

from kargah.spec.layout import RunDir, write_json
from kargah.spec.run_spec import DatasetRef, ModelRef, RunSpec, TrainConfig

from .tiny import NEGATIVE, POSITIVE, make_tokenizer, sentences, write_split

MakeRun = Callable[..., RunDir]

FAST = TrainConfig(max_steps=10, batch_size=8, learning_rate=3e-3, max_length=24, seed=3, log_every_steps=2)


@pytest.fixture
def signals_put_back() -> Iterator[None]:
    """The program makes signals mean "pause"; the tests' own process must not keep that."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(sentences(300)[0])


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT body of 2 layers × 32, without a head, dropout on."""
    folder = tmp_path_factory.mktemp("base-model")
    set_seed(7)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.1,  # wide, so that so small a model learns within seconds
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    """90 training, 30 validation and 30 test rows."""
    folder = tmp_path_factory.mktemp("dataset")
    for split, num_rows, seed in (("train", 90, 1), ("validation", 30, 2), ("test", 30, 3)):
        texts, labels = sentences(num_rows, seed)
        write_split(folder, split, {"متن": texts, "برچسب": labels})
    return DatasetRef("opinions", str(folder), "v1", {"text": "متن", "label": "برچسب"})


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, base_model: Path, dataset: DatasetRef) -> MakeRun:
    """Writes a run directory; `spec` changes fields of the spec, the other keywords fields of the config."""

    def make(*, spec: dict[str, Any] | None = None, **config: Any) -> RunDir:
        run_spec = RunSpec(
            run_id="run-1",
            name="اجرای آزمایشی",
            task="text-classification",
            base_model=ModelRef("tiny", str(base_model)),
            datasets=[dataset],
            config=replace(FAST, **config),
        )
        root = tmp_path_factory.mktemp("run")
        write_json(root / "spec.json", replace(run_spec, **(spec or {})).to_json())
        return RunDir(root)

    return make


@pytest.fixture(scope="session")
def trained(make_run: MakeRun) -> RunDir:
    """A run that learnt the task well; its last checkpoint is step 60."""
    from .tiny import attempt

    run_dir = make_run(max_steps=60, learning_rate=5e-3)
    attempt(run_dir)
    return run_dir


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Path:
    """The base model without dropout."""
    folder = tmp_path_factory.mktemp("plain-model")
    model = BertModel.from_pretrained(base_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    for path in base_model.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def steady_model(tmp_path_factory: pytest.TempPathFactory, plain_model: Path) -> Path:
    """A classifier of the data set's labels without dropout: a run that starts from it draws nothing by chance."""
    folder = tmp_path_factory.mktemp("steady-model")
    set_seed(11)
    labels = sorted([POSITIVE, NEGATIVE])
    model = BertForSequenceClassification.from_pretrained(
        plain_model, id2label=dict(enumerate(labels)), label2id={label: n for n, label in enumerate(labels)}
    )
    model.save_pretrained(folder)
    for path in plain_model.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def steady(steady_model: Path) -> ModelRef:
    """`steady_model` as a run names it."""
    return ModelRef("steady", str(steady_model))
