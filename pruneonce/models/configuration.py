"""The configuration of a model: read and checked; the number of positions that it gives a row of tokens."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from pruneonce.errors import ConfigError, ModelError
from pruneonce.models.folders import reading


def load_config(folder: Path, **changes: Any) -> PretrainedConfig:
    """Return the configuration in `folder` with these fields changed.

    Raises ModelError for one that transformers does not know, of a quantized model, or with a size below 1.
    """
    with reading("a transformers model", folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **changes)
    if hasattr(config, "auto_map"):
        del config.auto_map  # it names code that is never run
    if hasattr(config, "quantization_config"):
        raise ModelError(f"expected weights in floating point in {folder}, found `quantization_config` in its config.json.")
    check_sizes(config, folder / "config.json")
    config.return_dict = True  # outputs have names
    return config


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Replace every dropout rate of the configuration."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):  # ALBERT's are written as 0
            setattr(config, key, dropout)


def check_sizes(config: PretrainedConfig, place: object) -> None:
    """Raise ModelError for a configuration of no layers, no units, no heads or no vocabulary."""
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if isinstance(value := getattr(config, name, 1), int) and value < 1:
            raise ModelError(f"expected `{name}` of at least 1 in {place}, found {value}.")


def longest(model: nn.Module) -> int | None:
    """Return the most tokens that a row of the model may have; None if its configuration sets no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions and positions - position_offset(model)


def position_offset(model: nn.Module) -> int:
    """Return the number of rows of the table of positions that no token uses.

    RoBERTa and MPNet number positions from the padding token's id on; the offset is 0 for most other models.
    """
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    return max((t.padding_idx + 1 for t in tables if t.padding_idx is not None), default=0)


def build_body(config: PretrainedConfig, folder: Path) -> nn.Module:
    """Return the body of the configuration in `folder`, on the meta device: without memory for weights."""
    with reading(f"a {config.model_type}", folder), torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False)


def check_tokens(folder: Path, tokens: int, *, setting: str) -> None:
    """Raise ConfigError, which names the setting, if the model in `folder` takes no rows of this many tokens."""
    most = longest(build_body(load_config(folder), folder))
    if most and tokens > most:
        raise ConfigError(
            f"expected rows of at most {most} tokens, the positions of the model in {folder}, found {tokens}: "
            f"lower {setting}."
        )
