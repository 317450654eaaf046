"""A sentence encoder: the body of a language model, and one vector for each text, pooled from the states of its tokens.

Its folder is plain: the body's weights, and how to pool in the files of sentence-transformers. So it loads there too.
"""

import json
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from pruneonce.errors import ModelError

OUTPUT = "embedding"
Mode = Literal["mean", "cls", "max"]
MODULES = "modules.json"
POOLING = "1_Pooling"
TRANSFORMER = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
KEYS: dict[Mode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
}


@dataclass(frozen=True)
class Pooling:
    """How the states of the tokens become one vector.

    mode: the mean over the tokens, the state of the first one, or the largest value of each unit over the tokens.
    normalize: whether the vector is scaled to length 1.
    """

    mode: Mode
    normalize: bool

    def __call__(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """float[batch, hidden] of the states, float[batch, length, hidden], without those at padding."""
        inside = attention_mask.unsqueeze(-1).to(states.dtype)
        if self.mode == "cls":
            vector = states[:, 0]
        elif self.mode == "mean":
            vector = (states * inside).sum(1) / inside.sum(1).clamp(min=1e-9)
        else:
            vector = (states + (1.0 - inside) * torch.finfo(states.dtype).min).amax(1)
        return F.normalize(vector, dim=-1) if self.normalize else vector


@dataclass(frozen=True)
class Stated:
    """What a model's folder says of itself as a sentence encoder."""

    pooling: Pooling
    max_tokens: int | None  # longer texts are cut


def stated(folder: Path) -> Stated | None:
    """Read the files of sentence-transformers in a model's folder; None if it has none.

    Raises ModelError if they ask for more than pooling and normalization, such as a prompt, or cannot be read.
    """
    if not (folder / MODULES).exists():
        return None
    try:
        names = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in _read(folder / MODULES)]
        kinds = [name for name, _ in names]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise ValueError(f"the modules {', '.join(kinds) or 'none'}")
        chosen = [key for key, on in _read(folder / names[1][1] / "config.json").items() if on is True and "_mode_" in key]
        mode = next(mode for mode, key in KEYS.items() if [key] == chosen)
        settings, prompts = (_read(path) if (path := folder / name).exists() else {} for name in (TRANSFORMER, PROMPTS))
        if settings.get("do_lower_case"):  # a tokenizer has its own rule for cases; this one is for texts before it
            raise ValueError(f"do_lower_case in {TRANSFORMER}")
        if prompt := (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")):
            raise ValueError(f"the prompt {prompt!r} before every text in {PROMPTS}")
        most = settings.get("max_seq_length")
        if not (most is None or (isinstance(most, int) and most > 2)):
            raise ValueError(f"max_seq_length {most}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ModelError(
            f"expected a sentence encoder with the mean, the first token or the largest values as pooling in {folder}, "
            f"found {error or 'another pooling'}. Take another model for this task, or remove {MODULES}: then "
            "prepare_task.pooling is used."
        ) from None
    return Stated(Pooling(mode, "Normalize" in kinds), most)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class SentenceEncoder(nn.Module):
    """A body and a pooling: input_ids, attention_mask, ... -> `embedding`, float[batch, hidden], beside the body's outputs.

    Of a class of transformers it has what this library uses. `with_pooling` makes a class that pools in one way.
    """

    base_model_prefix = "body"
    pooling: ClassVar[Pooling]

    def __init__(self, body: PreTrainedModel):
        super().__init__()
        self.body, self.config = body, body.config

    @classmethod
    def from_pretrained(
        cls, folder: Path, *, config: PretrainedConfig, trust_remote_code: Literal[False], **options: Any
    ) -> tuple[Self, dict[str, Any]]:
        """The encoder of a folder, and what transformers reports of the loading."""
        kind: Any = MODEL_MAPPING[type(config)]
        pooler = {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}
        body, info = kind.from_pretrained(folder, config=config, trust_remote_code=False, **pooler, **options)
        named = {
            "missing_keys": {f"body.{name}" for name in info["missing_keys"]},
            "mismatched_keys": [(f"body.{name}", *shapes) for name, *shapes in info["mismatched_keys"]],
        }
        return cls(body), {**info, **named}

    @property
    def base_model(self) -> PreTrainedModel:
        return self.body

    @property
    def device(self) -> torch.device:
        return self.body.device

    def get_input_embeddings(self) -> nn.Module:
        return self.body.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> ModelOutput:
        out = self.body(input_ids=input_ids, attention_mask=attention_mask, **options)
        rows = attention_mask if attention_mask.ndim == 2 else (attention_mask[:, 0, 0] >= 0).long()  # an additive mask
        out[OUTPUT] = type(self).pooling(out.last_hidden_state, rows)
        return out

    def save_pretrained(self, folder: Path) -> None:
        self.body.save_pretrained(folder)


@cache
def with_pooling(pooling: Pooling) -> type[SentenceEncoder]:
    """The class of the encoders that pool like this."""
    return type(SentenceEncoder.__name__, (SentenceEncoder,), {"pooling": pooling})
