"""Models in and out of plain Hugging Face folders: safetensors, config, tokenizer; no pickles, no remote code.

A folder may be damaged, or of another library: its files are looked at before a library reads them, and whatever a library
says then is one ModelError, raised before anything is computed.
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pruneonce.engine import is_first_process
from pruneonce.errors import ConfigError, ModelError, PruneOnceError
from pruneonce.sparsity.masks import Selection, body, prunable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", INDEX)
WORDS = ("vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
LFS = b"version https://git-lfs"
FLOATS = ("F64", "F32", "F16", "BF16")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder`. Raises ModelError if there is none that makes rows for the model beside it."""
    with _reading("a tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if lacking := [role for role in ("mask", "cls", "sep", "pad") if getattr(tokenizer, f"{role}_token_id") is None]:
        raise ModelError(
            f"expected a tokenizer with mask, cls, sep and pad token in {folder}, found {type(tokenizer).__name__} without "
            f"{', '.join(lacking)}. Name them in its tokenizer_config.json, or choose another `common.model`."
        )
    _check_roles(tokenizer, folder)
    tokenizer.init_kwargs.pop("auto_map", None)  # names code that nobody ran
    types = "token_type_ids" in tokenizer.model_input_names
    if types or (folder / "config.json").exists():
        config = _config(folder, None)
        check_vocabulary(tokenizer, getattr(config, "vocab_size", 0), folder)
        _check_padding(tokenizer, config, folder)
        if types and getattr(config, "type_vocab_size", 0) < 2:
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    _check_rows(tokenizer, folder)
    return tokenizer


def _check_roles(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises ModelError if one token has two roles: rows are masked, cut and padded by the ids of the roles."""
    first: dict[int, str] = {}
    for role in ("mask", "cls", "sep", "pad", "unk"):
        token = getattr(tokenizer, f"{role}_token_id")
        if token is not None and (other := first.setdefault(token, role)) != role:
            raise ModelError(
                f"expected a tokenizer with a token of its own for mask, cls, sep, pad and unk in {folder}, found token "
                f"{token} as {other} and as {role}. Name another in its tokenizer_config.json, or choose another "
                "`common.model`."
            )


def _check_padding(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path) -> None:
    """Raises ModelError if the model numbers positions by its own padding token, and the tokenizer pads with another."""
    own, pads = getattr(config, "pad_token_id", None), tokenizer.pad_token_id
    if own != pads and _behind(_skeleton(config, folder)):
        raise ModelError(
            f"expected {own} for padding in {folder}, the `pad_token_id` of config.json by which a {config.model_type} "
            f"numbers its positions, found {pads}, the tokenizer's {tokenizer.pad_token!r}. Do the files belong together?"
        )


def _check_rows(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises ModelError unless rows are cls, text, sep and, of pairs, cls, text, one sep or more, text, sep."""
    with _reading("a tokenizer", folder):
        copy = deepcopy(tokenizer)  # for a call changes what is saved: how it truncates
        text = copy("a", add_special_tokens=False, verbose=False)["input_ids"]
        one, two = copy("a", verbose=False)["input_ids"], copy("a", "a", verbose=False)["input_ids"]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    seps = [sep] * max(len(two) - 2 - 2 * len(text), 1)  # RoBERTa writes two of them between texts
    for kind, row, due in (("a text", one, [cls, *text, sep]), ("a pair", two, [cls, *text, *seps, *text, sep])):
        if row != due:
            raise ModelError(
                f"expected a tokenizer that writes cls before and sep after each text in {folder}, {due} for {kind}, found "
                f"{row}. Put the model's own `post_processor` into its tokenizer.json, or choose another `common.model`."
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    """Raises ModelError if the tokenizer has no word, or one for which the embeddings of the model have no row."""
    ids = tokenizer.get_vocab()
    if not ids.keys() - set(tokenizer.all_special_tokens):
        raise ModelError(
            f"expected a tokenizer with words in {folder}, found special tokens only. Is its tokenizer.json (or "
            f"{', '.join(WORDS[:4])}) there, and whole?"
        )
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= rows:
        raise ModelError(
            f"expected token ids below {rows}, the embeddings of the model in {folder}, found {ids[last]} for {last!r}: "
            "tokens were added and the embeddings not resized, or the two are not of one model. Call "
            "`model.resize_token_embeddings(len(tokenizer))` and save both, or take the tokenizer of the model."
        )


def load_masked_lm(
    folder: Path, *, attention: str, dropout: float | None = None, columns: Collection[str] = ("tokens",)
) -> PreTrainedModel:
    """A masked LM in fp32. A missing MLM head is new (drawn from torch's seed); a missing body is an error.

    dropout: replaces every dropout rate of the configuration; None keeps them.
    columns: of the corpus. Where there are more than tokens the model has every head it was pre-trained with, and a
    ModelError says if one of the columns is none that it takes.
    """
    return that_takes(_load(_lm_class(columns), folder, attention, dropout), columns)


def random_masked_lm(
    folder: Path, *, attention: str, dropout: float | None = None, columns: Collection[str] = ("tokens",)
) -> PreTrainedModel:
    """A masked LM of the folder's configuration with random weights (drawn from torch's seed)."""
    config = _config(folder, dropout)
    with _reading(f"a {config.model_type} with `common.attention` {attention}", folder):  # DeBERTa and MPNet have no sdpa
        settings = {"dtype": torch.float32, "attn_implementation": attention}
        model = _lm_class(columns).from_config(config, trust_remote_code=False, **settings)
    return that_takes(model, columns)


def _lm_class(columns: Collection[str]):
    return AutoModelForMaskedLM if set(columns) == {"tokens"} else AutoModelForPreTraining


def that_takes(model: PreTrainedModel, columns: Collection[str]) -> PreTrainedModel:
    """The model itself, if its forward has a parameter for each column of the corpus."""
    missing = sorted(set(columns) - {"tokens"} - set(signature(model.forward).parameters))
    if missing:
        raise ModelError(
            f"expected a model that takes what the corpus holds, {', '.join(sorted(columns))}, found {type(model).__name__} "
            f"without {', '.join(missing)}: it has no next-sentence head. Set prepare_corpus.next_sentence to false, or "
            "choose another `common.model`."
        )
    return model


def load_task_model(
    architecture, folder: Path, *, attention: str, dropout: float | None = None, **config
) -> PreTrainedModel:
    """A task model in fp32, out of a task model's folder or, with its `config`, out of a masked LM's: a new head.

    architecture: transformers' Auto class of the task's kind; config: fields of the configuration, such as id2label.
    """
    return _load(architecture, folder, attention, dropout, **config)


def load_sparse_task_model(sparse: Path, teacher: PreTrainedModel, *, attention: str, dropout: float | None):
    """The sparse LM as a student of `teacher`: its body as it is, its head (pooler, classifier) a copy of the teacher's."""
    fields = {name: getattr(teacher.config, name) for name in ("id2label", "label2id", "problem_type")}
    student, info = _load_with_info(type(teacher), sparse, attention, dropout, **fields)
    source = {name: p.cpu() for name, p in teacher.named_parameters()}
    if other := [name for name, p in student.named_parameters() if p.shape != source[name].shape]:
        raise ModelError(f"expected a model of the teacher's sizes in {sparse}, found others, such as those of {other[0]}.")
    inside = {id(p) for p in body(student).parameters()}  # a head that the LM has too (ModernBERT's) learned another task
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in info["missing_keys"] or id(parameter) not in inside:
                parameter.copy_(source[name])
    return student


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A plain folder; the same model gives the same bytes wherever it came from. Of several processes the first writes."""
    if not is_first_process():
        return
    logging.disable_progress_bar()
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prunable_in(folder: Path, model: PreTrainedModel, selection: Selection) -> list[str]:
    """Of the prunable linears of a task model those that the language model in `folder` has, too, by name.

    What `load_pruned` says of a language model that was pruned, for one that was not.
    """
    with _reading("weights", folder), safe_open(folder / "model.safetensors", "pt") as file:
        stored = {f".{key}" for key in file.keys()}  # noqa: SIM118, no dict
    return [name for name in prunable(model, selection) if any(key.endswith(f".{name}.weight") for key in stored)]


def load_pruned(folder: Path) -> list[str]:
    """Names in the body of the linears that were pruned, which every model keeps that was made of a sparse one.

    A later model may have more: a pooler that the language model did without belongs to the task's head.
    Raises ModelError if the model was not pruned.
    """
    names = getattr(_config(folder, None), "pruned", None)
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"expected the names of the pruned layers in {folder / 'config.json'}, found none: this model did not go "
            "through `sparsify`."
        )
    return names


def longest(model: nn.Module) -> int | None:
    """The most tokens that the model has positions for; None where its configuration says nothing.

    RoBERTa and MPNet number positions behind that of padding, which has a row of the table as well.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions and positions - _behind(model)


def _behind(model: nn.Module) -> int:
    """How many rows of the table of positions no token has; 0 where positions do not hang on padding."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    return max((t.padding_idx + 1 for t in tables if t.padding_idx is not None), default=0)


def _skeleton(config: PretrainedConfig, folder: Path) -> nn.Module:
    """The body that the configuration in `folder` describes, without memory for weights."""
    with _reading(f"a {config.model_type}", folder), torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False)


def check_tokens(folder: Path, tokens: int, *, setting: str) -> None:
    """Raises ConfigError, naming the setting, if the model in `folder` has no positions for rows of so many tokens."""
    most = longest(_skeleton(_config(folder, None), folder))
    if most and tokens > most:
        raise ConfigError(
            f"expected rows of at most {most} tokens, the positions of the model in {folder}, found {tokens}: "
            f"lower {setting}."
        )


@contextmanager
def _reading(what: str, folder: Path) -> Iterator[None]:
    """Whatever a library says of the folder of a model is one ModelError."""
    if not folder.is_dir():
        raise ModelError(f"expected {what} in {folder}, found no such folder.")
    for path in sorted(folder.iterdir()):
        wrong = _wrong_with(path) if path.name in (*OBJECTS, *WORDS) or path.match("model*.safetensors") else ""
        if wrong:
            raise ModelError(f"expected {what} in {folder}, found {path.name} as {wrong}.")
    try:
        yield
    except (PruneOnceError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # each library has errors of its own; those of Rust that panics are no Exception
        raise ModelError(f"expected {what} in {folder}, found none that loads{_newer(folder)}: {_said(error)}") from None


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {error}"


def _newer(folder: Path) -> str:
    """Whether it is the tokenizer's own file that cannot be read, and why that may be."""
    path = folder / "tokenizer.json"
    try:
        tokenizers.Tokenizer.from_file(str(path))
    except BaseException:
        return f", as {path.name} is damaged or of newer tokenizers than {tokenizers.__version__}" if path.exists() else ""
    return ""


def _wrong_with(path: Path) -> str:
    """What a model's file is instead, and what to do; nothing if a library may read it."""
    if not path.is_file():
        return "a folder" if path.is_dir() else f"a link to {path.readlink()}, where nothing is: copy the file itself"
    with path.open("rb") as file:
        head = file.read(len(LFS))
    if head == LFS:
        return "a pointer of git-LFS, not the file itself: run `git lfs pull` where it was cloned"
    if not head:
        return "an empty file: fetch it again"
    if path.name in OBJECTS:
        return _wrong_with_object(path)
    return _wrong_with_weights(path) if path.suffix == ".safetensors" else ""


def _wrong_with_object(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"no JSON ({error}): it is damaged or cut short, fetch it again"
    if not isinstance(found, dict):
        return f"a JSON {type(found).__name__}, not an object: fetch it again"
    parts = found.get("weight_map", {})
    if path.name == INDEX and not (isinstance(parts, dict) and parts and all(isinstance(v, str) for v in parts.values())):
        return "an index without a `weight_map` of names to files: fetch it again"
    if path.name == INDEX and not path.with_name(WEIGHTS).exists():  # else no library reads the index
        if not isinstance(found.get("metadata"), dict):
            return "an index without an object `metadata`: fetch it again"
        if lost := sorted(part for part in set(parts.values()) if not path.parent.joinpath(part).is_file()):
            return f"an index that names {lost[0]}, which is not there: fetch all files of the model again"
    return ""


def _wrong_with_weights(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, no dict
    except Exception as error:
        return f"no safetensors ({error}): it is damaged or cut short, fetch it again"
    whole = [key for key, kind in kinds.items() if key.endswith((".weight", ".bias")) and kind not in FLOATS]
    return f"weights in {kinds[whole[0]]} ({whole[0]}): take the model before it was quantized" if whole else ""


def _config(folder: Path, dropout: float | None, **changes):
    with _reading("a transformers model", folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **changes)
    if hasattr(config, "auto_map"):
        del config.auto_map  # names code that nobody ran
    if hasattr(config, "quantization_config"):
        raise ModelError(f"expected weights in floating point in {folder}, found `quantization_config` in its config.json.")
    check_sizes(config, folder / "config.json")
    config.return_dict = True  # outputs have names
    if dropout is not None:
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):  # ALBERT's are written as 0
                setattr(config, key, dropout)
    return config


def check_sizes(config: PretrainedConfig, where: object) -> None:
    """Raises ModelError for a configuration of no layers, no units, no heads or no vocabulary."""
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if isinstance(value := getattr(config, name, 1), int) and value < 1:
            raise ModelError(f"expected `{name}` of at least 1 in {where}, found {value}.")


def _load(auto, folder: Path, attention: str, dropout: float | None, **changes) -> PreTrainedModel:
    return _load_with_info(auto, folder, attention, dropout, **changes)[0]


def _load_with_info(auto, folder: Path, attention: str, dropout: float | None, **changes) -> tuple[PreTrainedModel, dict]:
    config = _config(folder, dropout, **changes)
    logging.set_verbosity_error()  # a report of what a new head lacks: checked below, and an error where it matters
    logging.disable_progress_bar()
    with _reading(f"the weights of a {config.model_type}", folder):
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # an error below, which names them
            use_safetensors=True,
            trust_remote_code=False,
        )
    _check_weights(model, info, folder)
    return model, info


def _check_weights(model: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    """Raises ModelError unless the body has every weight, in its shape, its layers no other, and all weights are finite."""
    kind = model.config.model_type
    if other := sorted(info["mismatched_keys"]):
        name, found, expected = other[0]
        raise ModelError(
            f"expected the weights of a {kind} in {folder}, {name} of shape {tuple(expected)} as config.json says, found "
            f"{tuple(found)}, and {len(other) - 1} more that differ. Do the two files belong together?"
        )
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in body(model).named_parameters()}
    missing = sorted(k for k in info["missing_keys"] if k in inside and ".pooler." not in k)
    if missing:
        raise ModelError(
            f"expected every weight of the {kind} body in {folder}, found {len(missing)} missing: "
            f"{', '.join(missing[:4])}. Is this folder a {kind} checkpoint?"
        )
    if left := _left_over(model, info["unexpected_keys"]):
        raise ModelError(
            f"expected weights of {model.config.num_hidden_layers} layers in {folder}, `num_hidden_layers` of config.json, "
            f"found {len(left)} that a {kind} of it has no place for, such as {left[0]}. Do the two files belong together?"
        )
    if bad := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ModelError(f"expected finite weights in {folder}, found inf or nan in {bad[0]}: fetch the model again.")


def _left_over(model: PreTrainedModel, keys: Collection[str]) -> list[str]:
    """Of the keys that the model did not take those of weights in layers of its body: no head's, no buffer's."""
    names = [name for name, _ in body(model).named_parameters()]
    layers = {found[1] for name in names if (found := re.match(r"(.*?\.)\d+\.", name))}
    inside = {
        key: re.match(r"(.*?\.)\d+\..*(weight|bias)$", key.removeprefix(f"{model.base_model_prefix}.")) for key in keys
    }
    return sorted(key for key, found in inside.items() if found and found[1] in layers)
