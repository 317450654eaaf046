"""Folders of models that are damaged, foreign or hostile: one ModelError that says what is wrong, and no code of theirs."""

import ast
import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from pruneonce.errors import ModelError, PruneOnceError
from pruneonce.models import checkpoint, configuration, folders
from tests.conftest import ROOT, TINY, random_masked_lm

Damage = Callable[[Path], object]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 90868376\n"
WEIGHT = "bert.encoder.layer.0.output.dense.weight"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as `save` writes it."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    checkpoint.save(random_masked_lm(), checkpoint.load_tokenizer(TINY / "model"), folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load(folder: Path) -> None:
    """All that a stage reads of a model's folder."""
    checkpoint.load_tokenizer(folder)
    configuration.check_tokens(folder, 16, setting="a.b")
    checkpoint.load_masked_lm(folder, attention="eager", dropout=0.0)
    checkpoint.random_masked_lm(folder, attention="eager")


def content(name: str, new: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(new)


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        old = (folder / name).read_bytes()
        (folder / name).write_bytes(old[: int(share * len(old))])

    return damage


def dangling(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("blobs/gone")

    return damage


def changed(name: str, change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return damage


def config(**fields: object) -> Damage:
    return changed("config.json", lambda document: document.update(fields))


def component(name: str) -> Damage:
    return changed("tokenizer.json", lambda document: document.update({name: {"type": "OfTheFuture"}}))


TEXT, TWICE = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
CLS, SEP = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))


def template(single: list, pair: list, **other: int) -> Damage:
    """Another post-processor; other: ids for the special tokens in it than their own."""
    ids = {"[CLS]": 2, "[SEP]": 3} | {f"[{name}]": number for name, number in other.items()}
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ids.items()}
    parts = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    return changed("tokenizer.json", lambda document: document.update(post_processor=parts))


def without_post_processor(folder: Path) -> None:
    changed("tokenizer.json", lambda document: document.update(post_processor=None))(folder)
    changed("tokenizer_config.json", lambda document: document.update(tokenizer_class="PreTrainedTokenizerFast"))(folder)


def any_class(damage: Damage) -> Damage:
    """As a class that leaves the post-processor of the file as it is: BertTokenizer builds its own."""
    return lambda folder: (without_post_processor(folder), damage(folder))


def weights(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def shards(index: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / folders.INDEX).write_text(json.dumps(index))

    return damage


def without_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def two_tokens_more(document: dict) -> None:
    common = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    document["added_tokens"] += [{"id": 162 + i, "content": f"<new{i}>", **common} for i in range(2)]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Damage, str]] = {
    **{
        f"{name}, a pointer": (content(name, POINTER), f"found {name} as a pointer of git-LFS.*run `git lfs pull`")
        for name in FILES
    },
    **{f"{name}, empty": (content(name, b""), f"found {name} as an empty file: fetch it again") for name in FILES},
    **{
        f"{name}, a dangling link": (dangling(name), f"found {name} as a link to blobs/gone, where nothing is")
        for name in FILES
    },
    **{
        f"{name}, cut short": (cut(name, 0.6), rf"found {name} as no (JSON|safetensors) \(.*\): it is damaged or cut short")
        for name in FILES
    },
    **{
        f"{name}, no object": (content(name, b"[1]"), f"found {name} as a JSON list, not an object")
        for name in FILES
        if name.endswith(".json")
    },
    "special tokens, no object": (
        content("special_tokens_map.json", b"[1]"),
        "found special_tokens_map.json as a JSON list",
    ),
    "added tokens, no JSON": (content("added_tokens.json", b"{"), r"found added_tokens.json as no JSON"),
    "config, not UTF-8": (content("config.json", b"\xff\xfe"), r"found config.json as no JSON \('utf-8' codec"),
    "a header without end": (
        content("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        "as no safetensors .*header too large",
    ),
    "a folder for a file": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        "found config.json as a folder",
    ),
    "a list for model_type": (config(model_type=[]), "found none that loads: TypeError: unhashable"),
    "an unknown model_type": (config(model_type="of-the-future"), "model type `of-the-future` but Transformers does not"),
    "no model_type": (changed("config.json", lambda d: d.pop("model_type")), "Unrecognized model in"),
    "no masked LM": (config(model_type="clip"), "expected the weights of a clip in"),
    "text for a size": (config(hidden_size="48"), "Field 'hidden_size' expected int, got str"),
    "a negative size": (config(hidden_size=-4), "expected `hidden_size` of at least 1 in .*config.json, found -4"),
    "no layers": (config(num_hidden_layers=0), "expected `num_hidden_layers` of at least 1"),
    "no heads": (config(num_attention_heads=0), "expected `num_attention_heads` of at least 1"),
    "heads that do not divide": (config(num_attention_heads=7), r"hidden size \(48\) is not a multiple"),
    "no vocabulary": (config(vocab_size=0), "expected `vocab_size` of at least 1"),
    "a negative feed-forward": (config(intermediate_size=-2), "expected the weights of a bert|negative dimension"),
    "padding beyond the vocabulary": (config(pad_token_id=9999), "Padding_idx must be within"),
    "an unknown activation": (config(hidden_act="nosuch"), "expected a bert in .*nosuch"),
    "quantized by a library": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "found `quantization_config`",
    ),
    "weights of another shape": (
        weights(lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 3)})),
        rf"{WEIGHT} of shape \(48, 96\) as config.json says, found \(3, 3\), and 0 more that differ",
    ),
    "a vocabulary that the weights have not": (
        config(vocab_size=300),
        r"of shape \(300,?.*\) as config.json says, found \(162",
    ),
    "integer weights": (
        weights(lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(torch.int8)})),
        rf"found model.safetensors as weights in I8 \({WEIGHT}\): take the model before it was quantized",
    ),
    "nan": (weights(lambda tensors: tensors[WEIGHT][0].fill_(float("nan"))), rf"expected finite weights .* nan in {WEIGHT}"),
    "inf": (weights(lambda tensors: tensors[WEIGHT][0].fill_(float("inf"))), "expected finite weights"),
    "no weights in it": (weights(lambda tensors: tensors.clear()), "expected every weight of the bert body"),
    "pickles only": (pickled, "expected the weights of a bert .*no file named model.safetensors"),
    "an index of nothing": (
        shards({"metadata": {}, "weight_map": {}}),
        f"found {folders.INDEX} as an index without a `weight_map`",
    ),
    "an index of numbers": (shards({"weight_map": {"a": 3}}), "as an index without a `weight_map`"),
    "a shard that is missing": (
        shards({"metadata": {"total_size": 1}, "weight_map": {WEIGHT: "model-00002-of-00002.safetensors"}}),
        f"found {folders.INDEX} as an index that names model-00002-of-00002.safetensors, which is not there",
    ),
    "a shard that lies elsewhere": (
        shards({"metadata": {"total_size": 1}, "weight_map": {WEIGHT: "../outside.safetensors"}}),
        f"found {folders.INDEX} as an index that names '../outside.safetensors', which is no file beside it",
    ),
    "json that is too deep": (content("config.json", b"[" * 100_000), "found config.json as no JSON"),
    "an index without metadata": (
        shards({"weight_map": {WEIGHT: "model-00001-of-00002.safetensors"}}),
        f"found {folders.INDEX} as an index without an object `metadata`",
    ),
    "fewer layers than weights": (
        config(num_hidden_layers=1),
        r"expected weights of 1 layers in .*, found 16 that a bert .*, such as bert\.encoder\.layer\.1\.attention",
    ),
    "a weight that no layer takes": (
        weights(lambda tensors: tensors.update({WEIGHT.replace("dense", "lora_A"): torch.zeros(2, 2)})),
        r"found 1 that a bert .*, such as bert\.encoder\.layer\.0\.output\.lora_A\.weight\. Do",
    ),
    **{
        f"a newer {name}": (
            component(name),
            "as tokenizer.json is damaged or of newer tokenizers than .*did not match any variant",
        )
        for name in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    },
    "a newer format": (
        changed("tokenizer.json", lambda d: d.update(version="9.0")),
        "newer tokenizers than .*version '9.0'",
    ),
    "no words": (without_words, "expected a tokenizer with words in .*, found special tokens only. Is its tokenizer.json"),
    "an id beyond all": (
        changed("tokenizer.json", lambda d: d["model"]["vocab"].update(the=10**6)),
        "found 1000000 for 'the'",
    ),
    "two tokens more": (
        changed("tokenizer.json", two_tokens_more),
        "expected token ids below 162, the embeddings of the model in .*, found 163 for '<new1>': tokens were added",
    ),
    "a vocabulary that lost its end": (config(vocab_size=100), "expected token ids below 100, .* found 161"),
    **{
        f"no {role}": (
            changed("tokenizer_config.json", lambda document, role=role: document.update({f"{role}_token": None})),
            f"expected a tokenizer with mask, cls, sep and pad token in .*, found BertTokenizer without {role}",
        )
        for role in ("mask", "cls", "sep", "pad")
    },
    "no post-processor": (
        without_post_processor,
        r"writes cls before and sep after .*, \[2, (\d+), 3\] for a text, found \[\1\]",
    ),
    **{
        f"a template {name}": (any_class(template(single, pair, **other)), message)
        for name, single, pair, other, message in (
            ("of texts only", [TEXT], [TEXT, TWICE], {}, r"\[2, (\d+), 3\] for a text, found \[\1\]"),
            ("with cls only", [CLS, TEXT], [CLS, TEXT, TWICE], {}, r"for a text, found \[2, \d+\]"),
            ("of foreign ids", [CLS, TEXT, SEP], [CLS, TEXT, SEP, TWICE, SEP], {"SEP": 999999}, r"found \[2, \d+, 999999\]"),
            (
                "without sep between",
                [CLS, TEXT, SEP],
                [CLS, TEXT, TWICE, SEP],
                {},
                r"\[2, (\d+), 3, \1, 3\] for a pair, found",
            ),
            (
                "with sep at the end",
                [CLS, TEXT, SEP],
                [CLS, TEXT, TWICE, SEP, SEP],
                {},
                r"for a pair, found \[2, (\d+), \1, 3, 3\]",
            ),
        )
    },
    **{
        f"{role} as {other}": (
            changed("tokenizer_config.json", lambda d, role=role, token=token: d.update({f"{role}_token": token})),
            rf"a token of its own for mask, .*, found token \d as ({role} and as {other}|{other} and as {role})\.",
        )
        for role, other, token in (
            *(("mask", other, f"[{other.upper()}]") for other in ("unk", "pad", "cls", "sep")),
            *(("pad", other, f"[{other.upper()}]") for other in ("unk", "mask", "cls", "sep")),
            ("cls", "sep", "[SEP]"),
            ("sep", "cls", "[CLS]"),
            ("sep", "unk", "[UNK]"),
        )
    },
    "positions by another padding": (
        config(model_type="roberta", pad_token_id=1),
        r"expected 1 for padding in .* by which a roberta numbers its positions, found 0, the tokenizer's '\[PAD\]'",
    ),
    "a number for a token": (
        changed("tokenizer_config.json", lambda d: d.update(mask_token=3)),
        "has to be either str or AddedToken",
    ),
    "text for a length": (
        changed("tokenizer_config.json", lambda d: d.update(model_max_length="x")),
        "expected a tokenizer .*TypeError",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_or_foreign_folder_is_one_error_that_says_what_is_wrong(folder, case):
    damage, message = BAD[case]
    load(folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_another_padding_is_fine_where_positions_do_not_hang_on_it(folder):
    config(pad_token_id=1)(folder)
    load(folder)


@pytest.mark.parametrize("gone", [FILES, []], ids=["an empty folder", "no folder"])
def test_a_folder_of_nothing(folder, gone):
    for name in gone or FILES:
        (folder / name).unlink()
    if not gone:
        folder.rmdir()
    with pytest.raises(ModelError, match="expected a tokenizer in" if not gone else "expected a t"):
        checkpoint.load_tokenizer(folder)
    with pytest.raises(ModelError, match="expected a transformers model in"):
        checkpoint.load_masked_lm(folder, attention="eager")


def test_names_of_pruned_layers_that_are_none(folder):
    for pruned in ("encoder", [1], {"a": 1}):
        config(pruned=pruned)(folder)
        with pytest.raises(ModelError, match="expected the names of the pruned layers"):
            checkpoint.load_pruned(folder, nn.Module())


def test_a_student_of_other_sizes_than_its_teacher(folder, classifier):
    config(hidden_size=24)(folder)
    (folder / "model.safetensors").unlink()
    checkpoint.save(checkpoint.random_masked_lm(folder, attention="eager"), checkpoint.load_tokenizer(folder), folder)
    with pytest.raises(ModelError, match=r"expected a model of the teacher's sizes in .*word_embeddings"):
        checkpoint.load_sparse_task_model(folder, classifier, attention="eager", dropout=0.0)


def test_weights_in_several_files_are_whole(folder, masked_lm):
    (folder / "model.safetensors").unlink()
    masked_lm.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / folders.INDEX).exists()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    load(folder)


LAYERS = {"distilbert": "n_layers"}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "mpnet", "modernbert"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_no_layer_is_dropped_without_a_word(tmp_path, kind, auto):
    """Whatever head the folder has or lacks; all of it loads where config.json tells the truth."""
    small = {"vocab_size": 20, "hidden_size": 8, "dim": 8, "intermediate_size": 8, "hidden_dim": 8, "embedding_size": 8}
    heads = {"num_attention_heads": 2, "n_heads": 2, LAYERS.get(kind, "num_hidden_layers"): 2}
    own = {k: v for k, v in (small | heads).items() if k in AutoConfig.for_model(kind).to_dict()}
    auto.from_config(AutoConfig.for_model(kind, **own, pad_token_id=0)).save_pretrained(tmp_path)
    checkpoint.load_masked_lm(tmp_path, attention="eager")
    changed("config.json", lambda d: d.pop("layer_types", None))(tmp_path)  # ModernBERT's, another number of layers
    config(**{LAYERS.get(kind, "num_hidden_layers"): 1})(tmp_path)
    with pytest.raises(ModelError, match=rf"expected weights of 1 layers .* a {kind} .*layers?\.1\."):
        checkpoint.load_masked_lm(tmp_path, attention="eager")


def test_what_is_no_weight_of_a_layer_may_be_left(folder):
    names = ("embeddings.position_ids", "encoder.layer.0.attention.rotary.inv_freq", "pooler.dense.weight")
    weights(lambda tensors: tensors.update({f"bert.{name}": torch.zeros(48) for name in names}))(folder)
    weights(lambda tensors: tensors.update({"classifier.layers.0.weight": torch.zeros(2, 2)}))(folder)
    load(folder)


def test_an_index_beside_the_whole_weights_is_not_read(folder):
    (folder / folders.INDEX).write_text(json.dumps({"weight_map": {WEIGHT: "model-00001-of-00002.safetensors"}}))
    load(folder)


def test_what_a_configuration_says_of_outputs_is_not_asked_for(folder):
    config(return_dict=False)(folder)
    model = checkpoint.load_masked_lm(folder, attention="eager")
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, 162)


def test_a_vocabulary_that_is_padded_to_more_rows_is_fine(whole, tmp_path):
    model = random_masked_lm()
    model.resize_token_embeddings(168)
    checkpoint.save(model, checkpoint.load_tokenizer(whole), tmp_path)
    load(tmp_path)


@given(
    name=st.sampled_from(FILES),
    place=st.floats(0, 1, exclude_max=True),
    value=st.integers(1, 255),
    how=st.sampled_from(["flip", "blank", "cut", "put"]),
)
def test_no_damage_ends_in_a_traceback(whole, tmp_path_factory, name, place, value, how):
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("spoilt") / "model"))
    old = (folder / name).read_bytes()
    at = int(place * min(len(old), 4000))  # of weights the header
    new = {
        "flip": old[:at] + bytes([old[at] ^ value]) + old[at + 1 :],
        "blank": old[:at] + bytes(len(old[at : at + value])) + old[at + value :],
        "cut": old[:at],
        "put": old[:at] + bytes([value]) + old[at:],
    }[how]
    (folder / name).write_bytes(new)
    with contextlib.suppress(PruneOnceError):
        load(folder)


CODE = "import pathlib\npathlib.Path({touched!r}).write_text('it ran')\nclass C: pass\nclass M: pass\nclass T: pass\n"
NAMES = {"AutoConfig": "hostile.C", "AutoModel": "hostile.M", "AutoModelForMaskedLM": "hostile.M"}


@pytest.mark.parametrize("model_type", ["bert", "hostile"])
def test_code_of_a_folder_never_runs_and_nobody_is_asked(folder, tmp_path, model_type):
    """A model that transformers knows loads as itself; another one is an error. `y` on standard input changes nothing."""
    touched = tmp_path / "touched"
    (folder / "hostile.py").write_text(CODE.format(touched=str(touched)))
    config(auto_map=NAMES, model_type=model_type)(folder)
    map_of = {"auto_map": {"AutoTokenizer": ["hostile.T", "hostile.T"]}, "tokenizer_class": "T"}
    changed("tokenizer_config.json", lambda document: document.update(map_of))(folder)
    words = "from tests.unit.test_bad_models import load, Path; import sys; load(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", words, str(folder)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not touched.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    if model_type == "bert":
        assert done.returncode == 0, done.stderr
    else:
        assert "ModelError: expected a t" in done.stderr


def test_a_folder_with_code_is_saved_without_its_name(folder, tmp_path):
    config(auto_map=NAMES)(folder)
    model = checkpoint.load_masked_lm(folder, attention="eager")
    changed("tokenizer_config.json", lambda d: d.update(auto_map={"AutoTokenizer": ["hostile.T", None]}))(folder)
    checkpoint.save(model, checkpoint.load_tokenizer(folder), tmp_path / "saved")
    assert not [path.name for path in (tmp_path / "saved").iterdir() if b"hostile" in path.read_bytes()]


LOADS = ("from_pretrained", "from_config", "_from_config", "load_dataset")
PICKLES = ("pickle", "joblib", "dill", "cloudpickle")


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split() if not name.startswith("tests/") and (ROOT / name).exists()]


def calls(path: Path) -> list[tuple[ast.Call, str]]:
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(c, c.func.attr if isinstance(c.func, ast.Attribute) else getattr(c.func, "id", "")) for c in found]


def test_every_load_in_the_repository_says_that_no_remote_code_runs():
    seen, wrong = 0, []
    for path in sources():
        for call, name in calls(path):
            if name in LOADS and "ScriptDirectory" not in ast.unparse(call):  # alembic's, of the same name
                seen += 1
                said = [
                    k.value.value
                    for k in call.keywords
                    if k.arg == "trust_remote_code" and isinstance(k.value, ast.Constant)
                ]
                if said != [False]:
                    wrong.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert wrong == []
    assert seen >= 11


def test_no_pickle_is_read():
    seen = 0
    for path in sources():
        seen += 1
        text = path.read_text()
        names = [alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names]
        assert not set(names) & set(PICKLES), path
        assert "torch.load(" not in text, path
    assert seen > 60
