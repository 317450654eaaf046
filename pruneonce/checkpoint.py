"""Models in and out of plain Hugging Face folders: safetensors, config, tokenizer; no pickles, no remote code."""

import json
from collections.abc import Collection
from inspect import signature
from pathlib import Path

import torch
from safetensors import safe_open
from torch import distributed, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pruneonce.errors import ConfigError, ModelError
from pruneonce.pruning import Selection, body, prunable

RANGES = "ranges.json"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder`. Raises ModelError if there is none, or it cannot mask."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a tokenizer in {folder}, found none that loads: {error}") from None
    if tokenizer.mask_token_id is None:
        raise ModelError(f"expected a tokenizer with a [MASK] token in {folder}, found {type(tokenizer).__name__}.")
    if "token_type_ids" in tokenizer.model_input_names and getattr(_config(folder, None), "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


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
    try:
        model = _lm_class(columns).from_config(config, dtype=torch.float32, attn_implementation=attention)
    except ValueError as error:  # DeBERTa and MPNet have no fused attention
        raise ModelError(
            f"expected a {config.model_type} with `common.attention` {attention}, found none that can be built: {error}"
        ) from None
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
    inside = {id(p) for p in body(student).parameters()}  # a head that the LM has too (ModernBERT's) learned another task
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in info["missing_keys"] or id(parameter) not in inside:
                parameter.copy_(source[name])
    return student


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A plain folder; the same model gives the same bytes wherever it came from. Of several processes the first writes."""
    if _is_another():
        return
    logging.disable_progress_bar()
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prunable_in(folder: Path, model: PreTrainedModel, selection: Selection) -> list[str]:
    """Of the prunable linears of a task model those that the language model in `folder` has, too, by name.

    What `load_pruned` says of a language model that was pruned, for one that was not.
    """
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {f".{key}" for key in file.keys()}  # noqa: SIM118, no dict
    return [name for name in prunable(model, selection) if any(key.endswith(f".{name}.weight") for key in stored)]


def load_pruned(folder: Path) -> list[str]:
    """Names in the body of the linears that were pruned, which every model keeps that was made of a sparse one.

    A later model may have more: a pooler that the language model did without belongs to the task's head.
    Raises ModelError if the model was not pruned.
    """
    names = getattr(_config(folder, None), "pruned", None)
    if not names:
        raise ModelError(
            f"expected the names of the pruned layers in {folder / 'config.json'}, found none: this model did not go "
            "through `sparsify`."
        )
    return names


def longest(model: nn.Module) -> int | None:
    """The most tokens that the model has positions for; None where its configuration says nothing.

    RoBERTa and MPNet number positions behind that of padding, which has a row of the table as well.
    """
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    behind = max((t.padding_idx + 1 for t in tables if t.padding_idx is not None), default=0)
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions and positions - behind


def check_tokens(folder: Path, tokens: int, *, setting: str) -> None:
    """Raises ConfigError, naming the setting, if the model in `folder` has no positions for rows of so many tokens."""
    with torch.device("meta"):
        most = longest(AutoModel.from_config(_config(folder, None)))
    if most and tokens > most:
        raise ConfigError(
            f"expected rows of at most {most} tokens, the positions of the model in {folder}, found {tokens}: "
            f"lower {setting}."
        )


def save_ranges(ranges: dict[str, tuple[float, float]], folder: Path) -> None:
    """Activation ranges beside the weights: transformers would drop them silently from the weights' own file."""
    if _is_another():
        return
    (folder / RANGES).write_text(json.dumps(ranges, indent=1, sort_keys=True) + "\n")


def load_ranges(folder: Path) -> dict[str, tuple[float, float]]:
    """The saved ranges by layer name. Raises ModelError if the model was not quantized."""
    if not (folder / RANGES).exists():
        raise ModelError(f"expected {RANGES} in {folder}, found none: this model did not go through `quantize`.")
    return {name: (low, high) for name, (low, high) in json.loads((folder / RANGES).read_text()).items()}


def _is_another() -> bool:
    """Whether this process is one of several, and not the one that writes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0


def _config(folder: Path, dropout: float | None, **changes):
    try:
        config = AutoConfig.from_pretrained(folder, **changes)
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a transformers model in {folder}, found none that loads: {error}") from None
    if dropout is not None:
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):  # ALBERT's are written as 0
                setattr(config, key, dropout)
    return config


def _load(auto, folder: Path, attention: str, dropout: float | None, **changes) -> PreTrainedModel:
    return _load_with_info(auto, folder, attention, dropout, **changes)[0]


def _load_with_info(auto, folder: Path, attention: str, dropout: float | None, **changes) -> tuple[PreTrainedModel, dict]:
    config = _config(folder, dropout, **changes)
    logging.set_verbosity_error()  # a report of what a new head lacks: checked below, and an error where it matters
    logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"expected the weights of a {config.model_type} in {folder}, found: {error}") from None
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in body(model).named_parameters()}
    missing = sorted(k for k in info["missing_keys"] if k in inside and ".pooler." not in k)
    if missing:
        raise ModelError(
            f"expected every weight of the {config.model_type} body in {folder}, found {len(missing)} missing: "
            f"{', '.join(missing[:4])}. Is this folder a {config.model_type} checkpoint?"
        )
    return model, info
