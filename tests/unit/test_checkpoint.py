"""Models in and out of plain folders."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)
from transformers import AutoModelForSequenceClassification as AUTO

from pruneonce import engine
from pruneonce.errors import ConfigError, ModelError
from pruneonce.models import checkpoint, configuration
from pruneonce.sparsity import masks
from pruneonce.tasks.protocol import label_config
from tests.conftest import TINY, random_classifier

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def folder(masked_lm, tokenizer, tmp_path):
    """A masked LM's folder."""
    checkpoint.save(masked_lm, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def same(one, two):
    two = dict(two.named_parameters())
    return all(torch.equal(p, two[name]) for name, p in one.named_parameters())


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_masked_lm_round_trips(folder, masked_lm, tokenizer):
    loaded = checkpoint.load_masked_lm(folder, attention="eager")
    assert same(loaded, masked_lm)
    assert checkpoint.load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    assert not any(p.suffix in (".bin", ".pt", ".pkl") for p in folder.iterdir())


def test_the_same_model_gives_the_same_bytes_wherever_it_came_from(folder, tokenizer, tmp_path):
    checkpoint.save(checkpoint.load_masked_lm(folder, attention="eager"), tokenizer, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(folder)
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_dropout_is_replaced_or_kept(folder):
    kept = checkpoint.load_masked_lm(folder, attention="eager", dropout=0.25)
    rates = {m.p for m in kept.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0}))  # as ALBERT's is written
    whole = checkpoint.load_masked_lm(folder, attention="eager", dropout=0.25)
    assert {m.p for m in whole.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    fresh = checkpoint.random_masked_lm(folder, attention="eager", dropout=0.0)
    assert {m.p for m in fresh.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_a_half_precision_checkpoint_is_loaded_in_fp32(folder, masked_lm, tokenizer, tmp_path):
    checkpoint.save(masked_lm.to(torch.bfloat16), tokenizer, tmp_path / "half")
    loaded = checkpoint.load_masked_lm(tmp_path / "half", attention="eager")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_random_weights_hang_on_the_seed(tiny_folder):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(checkpoint.random_masked_lm(tiny_folder, attention="eager"))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def rewrite(folder, keep):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if keep(k)}, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_mlm_head_is_new(folder, masked_lm):
    rewrite(folder, lambda key: not key.startswith("cls."))
    loaded = checkpoint.load_masked_lm(folder, attention="eager")
    assert same(loaded.bert, masked_lm.bert)
    assert not torch.equal(loaded.cls.predictions.transform.dense.weight, masked_lm.cls.predictions.transform.dense.weight)


PAIRS = ("tokens", "token_type_ids", "attention_mask", "next_sentence_label")


def test_a_corpus_of_pairs_asks_for_a_next_sentence_head(folder, tokenizer, tmp_path, masked_lm):
    """New where there is none, as the MLM head is; from then on part of the checkpoint, pooler and all."""
    loaded = checkpoint.load_masked_lm(folder, attention="eager", columns=PAIRS)
    assert loaded.cls.seq_relationship.weight.shape == (2, 48)
    for name, parameter in masked_lm.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    checkpoint.save(loaded, tokenizer, tmp_path / "both")
    assert same(loaded, checkpoint.load_masked_lm(tmp_path / "both", attention="eager", columns=PAIRS))
    assert same(masked_lm, checkpoint.load_masked_lm(tmp_path / "both", attention="eager"))
    task = checkpoint.load_task_model(AUTO, tmp_path / "both", attention="eager", **label_config(["a", "b"]))
    assert torch.equal(task.bert.pooler.dense.weight, loaded.bert.pooler.dense.weight)


def test_the_pooler_of_a_sparse_student_is_the_language_models_if_it_has_one(tokenizer, tiny_folder, tmp_path):
    torch.manual_seed(0)
    sparse = checkpoint.random_masked_lm(tiny_folder, attention="eager", columns=PAIRS)
    checkpoint.save(sparse, tokenizer, tmp_path / "sparse")
    teacher = random_classifier(5)
    student = checkpoint.load_sparse_task_model(tmp_path / "sparse", teacher, attention="eager", dropout=0.0)
    assert torch.equal(student.bert.pooler.dense.weight, sparse.bert.pooler.dense.weight)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)


@pytest.mark.parametrize("architecture", [AUTO, AutoModelForQuestionAnswering, AutoModelForTokenClassification, AutoModel])
def test_a_task_that_has_no_use_for_the_pooler_takes_the_other_pruned_layers(tokenizer, tiny_folder, tmp_path, architecture):
    """A language model that was pruned with its next-sentence head has a pooler; questions, tags and vectors have none."""
    torch.manual_seed(0)
    sparse = checkpoint.random_masked_lm(tiny_folder, attention="eager", columns=PAIRS)
    masks.mask_linears(sparse, None)
    masks.prune(sparse, 0.5)
    pattern = masks.bake(sparse)
    sparse.config.pruned = list(pattern)
    checkpoint.save(sparse, tokenizer, tmp_path / "sparse")
    without = {"add_pooling_layer": False} if architecture is AutoModel else {}
    model = architecture.from_pretrained(tmp_path / "sparse", **without)
    masks.mask_linears(model, checkpoint.load_pruned(tmp_path / "sparse", model))
    locked = masks.lock(model)
    kept = {name for name in pattern if architecture is AUTO or name != "pooler.dense"}
    assert len(kept) == (13 if architecture is AUTO else 12)
    assert set(locked) == kept
    assert all(torch.equal(locked[name], pattern[name]) for name in kept)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RobertaConfig(**SMALL), "RobertaForMaskedLM without next_sentence_label"),
        (DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16), "DistilBertForMaskedLM without"),
        (ElectraConfig(embedding_size=16, **SMALL), "ElectraForPreTraining without next_sentence_label"),
    ],
)
def test_a_model_without_a_next_sentence_head_is_an_error(tmp_path, config, message):
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{message}.*prepare_corpus\.next_sentence to false"):
        checkpoint.random_masked_lm(tmp_path, attention="eager", columns=PAIRS)
    AutoModelForPreTraining.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        checkpoint.load_masked_lm(tmp_path, attention="eager", columns=PAIRS)


def test_a_missing_weight_of_the_body_is_an_error(folder):
    rewrite(folder, lambda key: "layer.1.output.dense" not in key)
    with pytest.raises(ModelError, match=r"2 missing: bert\.encoder\.layer\.1\.output\.dense\.bias"):
        checkpoint.load_masked_lm(folder, attention="eager")


def test_a_weight_of_another_shape_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match="expected the weights of a bert"):
        checkpoint.load_masked_lm(folder, attention="eager")


def test_no_model_and_no_tokenizer_are_errors(tmp_path, folder):
    with pytest.raises(ModelError, match="expected a transformers model"):
        checkpoint.load_masked_lm(tmp_path / "nothing", attention="eager")
    with pytest.raises(ModelError, match="expected a tokenizer"):
        checkpoint.load_tokenizer(tmp_path / "nothing")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="expected the weights"):
        checkpoint.load_masked_lm(folder, attention="eager")


@pytest.mark.parametrize(("types", "read"), [(2, True), (1, False)])
def test_a_tokenizer_gives_the_token_types_that_its_model_reads(folder, types, read):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type_vocab_size": types}))
    assert ("token_type_ids" in checkpoint.load_tokenizer(folder)(["a"], ["b"])) == read


def test_a_masked_lm_becomes_a_classifier_with_named_classes(folder, masked_lm):
    loaded = checkpoint.load_task_model(AUTO, folder, attention="eager", **label_config(["no", "yes", "maybe"]))
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert loaded.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert loaded.classifier.weight.shape == (3, 48)
    assert same(masked_lm.bert, loaded.bert)


def test_a_classifier_round_trips(classifier, tokenizer, tmp_path):
    checkpoint.save(classifier, tokenizer, tmp_path / "model")
    assert same(classifier, checkpoint.load_task_model(AUTO, tmp_path / "model", attention="eager"))


def test_a_sparse_student_has_its_own_body_and_its_teachers_head(folder, masked_lm, tokenizer, tmp_path):
    masks.mask_linears(masked_lm, r"^encoder\.")
    masks.prune(masked_lm, 0.7)
    masks.bake(masked_lm)
    checkpoint.save(masked_lm, tokenizer, folder)
    teacher = random_classifier(5)
    student = checkpoint.load_sparse_task_model(folder, teacher, attention="eager", dropout=0.0)
    assert same(masked_lm.bert, student.bert)
    assert masks.sparsity(masks.zeros(student, r"^encoder\.")) == pytest.approx(0.7, abs=1e-3)
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"):
        assert torch.equal(student.get_parameter(name), teacher.get_parameter(name)), name
    assert student.config.id2label == teacher.config.id2label
    student.classifier.weight.data.zero_()
    assert teacher.classifier.weight.abs().sum() > 0  # a copy


def test_an_attention_that_the_architecture_does_not_have_is_an_error(tmp_path):
    AutoConfig.for_model("mpnet", num_hidden_layers=1, hidden_size=12).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"expected a mpnet with `common.attention` sdpa.*does not support"):
        checkpoint.random_masked_lm(tmp_path, attention="sdpa")


def test_a_head_that_the_language_model_has_too_is_the_teachers(tokenizer, tmp_path):
    """ModernBERT's classifier begins with what its MLM head begins with: that one learned another task."""
    sizes = {"vocab_size": 162, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("modernbert", **sizes, pad_token_id=0)
    language, teacher = (auto.from_config(config) for auto in (AutoModelForMaskedLM, AUTO))
    checkpoint.save(language, tokenizer, tmp_path)
    student = checkpoint.load_sparse_task_model(tmp_path, teacher, attention="eager", dropout=0.0)
    assert same(language.model, student.model)
    assert same(teacher.head, student.head)
    assert not torch.equal(language.head.dense.weight, student.head.dense.weight)


def test_what_was_pruned_is_written_with_the_model(masked_lm, tokenizer, tmp_path):
    checkpoint.save(masked_lm, tokenizer, tmp_path / "dense")
    with pytest.raises(ModelError, match=r"dense/config\.json, found none: this model did not go through `sparsify`"):
        checkpoint.load_pruned(tmp_path / "dense", masked_lm)
    masked_lm.config.pruned = ["encoder.layer.0.output.dense"]
    checkpoint.save(masked_lm, tokenizer, tmp_path / "sparse")
    student = checkpoint.load_sparse_task_model(tmp_path / "sparse", random_classifier(), attention="eager", dropout=0.0)
    assert checkpoint.load_pruned(tmp_path / "sparse", student) == masked_lm.config.pruned
    assert student.config.pruned == masked_lm.config.pruned


@pytest.mark.parametrize(
    ("config", "most"), [("bert", 64), ("roberta", 62), ("mpnet", 62), ("modernbert", 64), ("deberta-v2", 64)]
)
def test_rows_that_a_model_has_no_positions_for_are_an_error(tmp_path, config, most):
    """RoBERTa and MPNet number positions behind that of padding."""
    AutoConfig.for_model(config, **SMALL, max_position_embeddings=64, pad_token_id=1).save_pretrained(tmp_path)
    configuration.check_tokens(tmp_path, most, setting="a.b")
    with pytest.raises(ConfigError, match=rf"at most {most} tokens, the positions .* found {most + 1}: lower a\.b\."):
        configuration.check_tokens(tmp_path, most + 1, setting="a.b")


def test_of_several_processes_the_first_one_writes(masked_lm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.distributed, "is_initialized", lambda: True)
    for rank, written in ((1, False), (0, True)):
        monkeypatch.setattr(engine.distributed, "get_rank", lambda rank=rank: rank)
        checkpoint.save(masked_lm, tokenizer, tmp_path / "model")
        assert (tmp_path / "model").exists() == written


@pytest.mark.parametrize(("kind", "file"), [("deberta-v2", "spm.model"), ("albert", "spiece.model")])
def test_a_tokenizer_that_is_only_sentencepiece_s_file_loads_and_saves_as_one_in_rust(tmp_path, kind, file):
    """As microsoft/deberta-v3-base has it; sentencepiece itself is the oracle."""
    import sentencepiece

    special = {"pad_piece": "[PAD]", "unk_piece": "[UNK]"} if kind == "deberta-v2" else {"pad_piece": "<pad>"}
    sentencepiece.SentencePieceTrainer.train(
        input=str(TINY / "text/corpus.txt"),
        model_prefix=str(tmp_path / "trained"),
        vocab_size=120,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "bos_piece": "[CLS]", "eos_piece": "[SEP]", **special},
        control_symbols=["[MASK]"],
        minloglevel=2,
    )
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "trained.model"))
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "trained.model").rename(folder / file)
    AutoConfig.for_model(kind).save_pretrained(folder)

    tokenizer = checkpoint.load_tokenizer(folder)
    text = "the people of the school"
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *oracle.encode(text), 2]
    assert tokenizer.mask_token_id == oracle.piece_to_id("[MASK]")
    tokenizer.save_pretrained(tmp_path / "saved")
    AutoConfig.for_model(kind).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.json").is_file()
    assert checkpoint.load_tokenizer(tmp_path / "saved")(text)["input_ids"] == ids
