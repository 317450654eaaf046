"""Models in and out of plain Hugging Face folders: safetensors, config, tokenizer; no pickles, no remote code.

An error of a folder is one ModelError, raised before anything is computed.
"""

import re
from collections.abc import Collection
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pruneonce.engine import is_first_process
from pruneonce.errors import ModelError
from pruneonce.models.configuration import load_config, set_dropout
from pruneonce.models.folders import WEIGHTS, reading
from pruneonce.models.tokenizers import check_padding, check_rows, check_special_tokens, check_vocabulary
from pruneonce.sparsity.masks import Layers, body, prunable


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved in `folder`. Raises ModelError unless it makes rows for the model in the same folder."""
    with reading("a tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_special_tokens(tokenizer, folder)
    tokenizer.init_kwargs.pop("auto_map", None)  # it names code that is never run
    types = "token_type_ids" in tokenizer.model_input_names
    if types or (folder / "config.json").exists():
        config = load_config(folder)
        check_vocabulary(tokenizer, getattr(config, "vocab_size", 0), folder)
        check_padding(tokenizer, config, folder)
        if types and getattr(config, "type_vocab_size", 0) < 2:
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    check_rows(tokenizer, folder)
    return tokenizer


def load_masked_lm(
    folder: Path, *, attention: str, dropout: float | None = None, columns: Collection[str] = ("tokens",)
) -> PreTrainedModel:
    """Return a masked LM in fp32. A missing MLM head is new, drawn from torch's seed. A missing body is an error.

    dropout: replaces every dropout rate of the configuration; None keeps them.
    columns: of the corpus. With more than tokens, the model has every head that it was pre-trained with.
    Raises ModelError if the model does not take one of the columns.
    """
    model, _ = _load(_lm_class(columns), folder, load_config(folder), attention=attention, dropout=dropout)
    check_columns(model, columns)
    return model


def random_masked_lm(
    folder: Path, *, attention: str, dropout: float | None = None, columns: Collection[str] = ("tokens",)
) -> PreTrainedModel:
    """Return a masked LM of the folder's configuration with random weights (drawn from torch's seed)."""
    config = load_config(folder)
    if dropout is not None:
        set_dropout(config, dropout)
    settings = {"dtype": torch.float32, "attn_implementation": attention}
    with reading(f"a {config.model_type} with `common.attention` {attention}", folder):  # DeBERTa and MPNet have no sdpa
        model = _lm_class(columns).from_config(config, trust_remote_code=False, **settings)
    check_columns(model, columns)
    return model


def _lm_class(columns: Collection[str]):
    return AutoModelForMaskedLM if set(columns) == {"tokens"} else AutoModelForPreTraining


def check_columns(model: PreTrainedModel, columns: Collection[str]) -> None:
    """Raise ModelError unless the model's forward has a parameter for each column of the corpus."""
    missing = sorted(set(columns) - {"tokens"} - set(signature(model.forward).parameters))
    if missing:
        raise ModelError(
            f"expected a model that takes what the corpus holds, {', '.join(sorted(columns))}, found {type(model).__name__} "
            f"without {', '.join(missing)}: it has no next-sentence head. Set prepare_corpus.next_sentence to false, or "
            "choose another `common.model`."
        )


def load_task_model(
    architecture, folder: Path, *, attention: str, dropout: float | None = None, **changes
) -> PreTrainedModel:
    """Return a task model in fp32, from the folder of a task model or of a masked LM. A masked LM gets a new head.

    architecture: transformers' Auto class of the task's kind.
    changes: fields of the configuration that a new head needs, such as id2label.
    """
    return _load(architecture, folder, load_config(folder, **changes), attention=attention, dropout=dropout)[0]


def load_sparse_task_model(
    sparse_folder: Path, teacher: PreTrainedModel, *, attention: str, dropout: float | None
) -> PreTrainedModel:
    """Return the student of `teacher`: the body of the sparse LM, and a copy of the teacher's head (pooler, classifier)."""
    fields = {name: getattr(teacher.config, name) for name in ("id2label", "label2id", "problem_type")}
    config = load_config(sparse_folder, **fields)
    student, info = _load(type(teacher), sparse_folder, config, attention=attention, dropout=dropout)
    source = {name: p.cpu() for name, p in teacher.named_parameters()}
    if other := [name for name, p in student.named_parameters() if p.shape != source[name].shape]:
        raise ModelError(
            f"expected a model of the teacher's sizes in {sparse_folder}, found others, such as those of {other[0]}."
        )
    inside = {id(p) for p in body(student).parameters()}  # ModernBERT's LM has this head too, trained for another task
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in info["missing_keys"] or id(parameter) not in inside:
                parameter.copy_(source[name])
    return student


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain folder. The same model gives the same bytes. Of several processes only the first writes."""
    if not is_first_process():
        return
    logging.disable_progress_bar()
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prunable_in(folder: Path, model: PreTrainedModel, layers: Layers) -> list[str]:
    """Return the names of the prunable linears of a task model that the language model in `folder` has as well.

    For a language model that was not pruned; of one that was pruned, `load_pruned` returns them.
    """
    with reading("weights", folder), safe_open(folder / WEIGHTS, "pt") as file:
        stored = {f".{key}" for key in file.keys()}  # noqa: SIM118, no dict
    return [name for name in prunable(model, layers) if any(key.endswith(f".{name}.weight") for key in stored)]


def load_pruned(folder: Path, model: PreTrainedModel) -> list[str]:
    """Return the names, in the body, of the linears of `model` that `sparsify` pruned. folder: of any model after it.

    Only a pooler may differ. A task model has no use for it where it reads every token: it then has none. One that the
    language model lacks is part of the task's head, and is not pruned.
    Raises ModelError if the model in `folder` was not pruned.
    """
    names = getattr(load_config(folder), "pruned", None)
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"expected the names of the pruned layers in {folder / 'config.json'}, found none: this model did not go "
            "through `sparsify`."
        )
    has_pooler = any(name.startswith("pooler.") for name, _ in body(model).named_modules())
    return [name for name in names if has_pooler or not name.startswith("pooler.")]


def _load(
    architecture, folder: Path, config: PretrainedConfig, *, attention: str, dropout: float | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model in fp32, its weights checked, and what transformers reports of the loading."""
    if dropout is not None:
        set_dropout(config, dropout)
    logging.set_verbosity_error()  # a report of what a new head lacks; `_check_weights` raises where it matters
    logging.disable_progress_bar()
    with reading(f"the weights of a {config.model_type}", folder):
        model, info = architecture.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_weights` names them
            use_safetensors=True,
            trust_remote_code=False,
        )
    _check_weights(model, info, folder)
    return model, info


def _check_weights(model: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    """Raise ModelError unless all weights fit: each one of the body in its shape, no other in its layers, all finite."""
    kind = model.config.model_type
    if mismatched := sorted(info["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise ModelError(
            f"expected the weights of a {kind} in {folder}, {name} of shape {tuple(expected)} as config.json says, found "
            f"{tuple(shape)}, and {len(mismatched) - 1} more that differ. Do the two files belong together?"
        )
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in body(model).named_parameters()}
    missing = sorted(k for k in info["missing_keys"] if k in inside and ".pooler." not in k)
    if missing:
        raise ModelError(
            f"expected every weight of the {kind} body in {folder}, found {len(missing)} missing: "
            f"{', '.join(missing[:4])}. Is this folder a {kind} checkpoint?"
        )
    if unused := _unused_weights(model, info["unexpected_keys"]):
        raise ModelError(
            f"expected weights of {model.config.num_hidden_layers} layers in {folder}, `num_hidden_layers` of config.json, "
            f"found {len(unused)} that a {kind} of it has no place for, such as {unused[0]}. Do the files belong together?"
        )
    if bad := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ModelError(f"expected finite weights in {folder}, found inf or nan in {bad[0]}: fetch the model again.")


def _unused_weights(model: PreTrainedModel, keys: Collection[str]) -> list[str]:
    """Return those of the unused keys that name a weight in a layer of the body, not of a head and no buffer."""
    names = [name for name, _ in body(model).named_parameters()]
    layers = {match[1] for name in names if (match := re.match(r"(.*?\.)\d+\.", name))}
    inside = {
        key: re.match(r"(.*?\.)\d+\..*(weight|bias)$", key.removeprefix(f"{model.base_model_prefix}.")) for key in keys
    }
    return sorted(key for key, match in inside.items() if match and match[1] in layers)
