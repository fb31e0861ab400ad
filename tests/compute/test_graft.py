"""A Persian vocabulary for an encoder that knows none."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from kargah.compute.align import align, glossed, sentence_vectors
from kargah.compute.graft import graft, lexicon, persian_tokenizer
from kargah.spec.run_spec import ModelRef

from .conftest import MakeRun
from .tiny import attempt, make_tokenizer, sentences

ENGLISH = ["my order is late", "i want the money of my phone", "it does not work", "cannot pay order", "good bad thing"]


def english_model(folder: Path) -> Path:
    tokenizer = make_tokenizer(ENGLISH * 5)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_lexicon_is_normalised_and_glossed_in_english() -> None:
    for form, gloss in lexicon().items():
        assert not set(form) & set("يكىةأإؤ\u200c\u0640"), form
        assert gloss.isascii(), form
        assert gloss == gloss.strip().lower() != "", form


def test_a_row_starts_as_the_mean_of_its_gloss(tmp_path: Path) -> None:
    folder = english_model(tmp_path)
    old = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    before = model.get_input_embeddings().weight.detach().clone()
    new = persian_tokenizer(sentences(40)[0], old)
    grafted = graft(model, old, new)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == grafted.vocabulary_size == len(new) == model.config.vocab_size
    assert grafted.num_glossed == len(lexicon())
    gloss = old(lexicon()["سفارشم"], add_special_tokens=False)["input_ids"]
    assert torch.allclose(rows[new.convert_tokens_to_ids("سفارشم")], before[gloss].mean(dim=0))
    for token in (old.cls_token, old.sep_token, old.pad_token):
        assert torch.equal(rows[new.convert_tokens_to_ids(token)], before[old.convert_tokens_to_ids(token)])
    assert torch.isfinite(rows).all()


def test_spellings_of_one_word_are_one_token(tmp_path: Path) -> None:
    new = persian_tokenizer([], AutoTokenizer.from_pretrained(english_model(tmp_path)))
    assert new.tokenize("می‌خوام") == new.tokenize("میخوام") == new.tokenize("ميخوام") == ["میخوام"]
    assert new.tokenize("کتاب‌ها")[0] == "کتابها" or new.tokenize("کتاب‌ها") == ["کتاب", "##ها"]
    assert new("سلام")["input_ids"][0] == new.cls_token_id


def test_equal_texts_give_an_equal_vocabulary_in_another_process(tmp_path: Path) -> None:
    folder = english_model(tmp_path)
    program = (
        "import sys, hashlib\n"
        "from transformers import AutoTokenizer\n"
        "from kargah.compute.graft import persian_tokenizer\n"
        "texts = ['سلام دنیا دنیا', 'app app سفارش‌های من', 'من و تو و من']\n"
        "made = persian_tokenizer(texts, AutoTokenizer.from_pretrained(sys.argv[1]))\n"
        "print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    digests = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


def test_a_run_with_the_persian_vocabulary_keeps_it_in_its_checkpoints(make_run: MakeRun, tmp_path: Path) -> None:
    base = ModelRef("english", str(english_model(tmp_path)))
    run = make_run(spec={"base_model": base}, vocabulary="fa", embedding_learning_rate=0.01, max_steps=4)
    _, sink = attempt(run, end_after_step=2)
    assert "Persian vocabulary grafted" in sink.messages()
    attempt(run, 2)
    straight = make_run(spec={"base_model": base}, vocabulary="fa", embedding_learning_rate=0.01, max_steps=4)
    attempt(straight)
    resumed, unbroken = (made.checkpoints / "step-00000004" for made in (run, straight))
    weights = "model.safetensors"
    assert (resumed / weights).read_bytes() == (unbroken / weights).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(resumed)
    assert tokenizer.tokenize("میخوام") == ["میخوام"]
    model = AutoModelForSequenceClassification.from_pretrained(resumed)
    assert model.config.vocab_size == len(tokenizer)


def test_embeddings_learn_at_their_own_rate(make_run: MakeRun, tmp_path: Path) -> None:
    base = ModelRef("english", str(english_model(tmp_path)))

    def moved(rate: float | None) -> float:
        config = {"vocabulary": "fa", "alignment_epochs": 0, "max_steps": 1, "embedding_learning_rate": rate}
        run = make_run(spec={"base_model": base}, **config)
        ending, _ = attempt(run)
        old = AutoTokenizer.from_pretrained(base.path)
        fresh = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2)
        graft(fresh, old, AutoTokenizer.from_pretrained(run.checkpoints / "step-00000001"))
        first, then = fresh.get_input_embeddings().weight, ending.model.get_input_embeddings().weight
        return float((first - then).detach().abs().max())

    assert moved(0.03) > 5 * moved(None) > 0


def test_alignment_brings_a_text_near_the_vector_of_its_gloss(tmp_path: Path) -> None:
    folder = english_model(tmp_path)
    old = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    english = copy.deepcopy(model.base_model)
    words = [form for form in lexicon() if not form.startswith("##")][::200]
    texts = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    persian = persian_tokenizer(texts, old)
    graft(model, old, persian)
    targets = sentence_vectors(english, old, glossed(texts, persian))
    losses: list[float] = []
    align(
        model.base_model,
        persian,
        texts,
        targets,
        epochs=6,
        learning_rate=3e-3,
        seed=1,
        on_epoch=lambda epoch, loss: losses.append(loss),
        get_on=lambda: None,
    )
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.3


def test_glosses_stand_in_the_order_of_the_words(tmp_path: Path) -> None:
    persian = persian_tokenizer([], AutoTokenizer.from_pretrained(english_model(tmp_path)))
    expected = f"{lexicon()['سفارشم']} {lexicon()['کجاست']}"
    assert glossed(["سفارشم کجاست"], persian) == [expected]
