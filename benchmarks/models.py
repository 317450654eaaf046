"""The models that are measured: two shapes of BERT, with random weights unless a folder has trained ones."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from pruneonce.models import checkpoint
from pruneonce.sparsity import masks

SHAPES: dict[str, dict[str, Any]] = {  # name -> fields of BertConfig that are not BERT-Base's
    "BERT-Base": {},
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
PRUNABLE, SPARSITY = r"^encoder\.", 0.85


def config(shape: str, *, dropout: float, attention: str, classes: int = 2) -> BertConfig:
    """The configuration of one of SHAPES."""
    made = BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **SHAPES[shape])
    made.num_labels, made._attn_implementation = classes, attention
    return made


def language_model(folder: Path | None, *, dropout: float, attention: str) -> nn.Module:
    """The masked LM of the folder; without one, MiniLM-L6 with random weights."""
    if folder:
        return checkpoint.load_masked_lm(folder, attention=attention, dropout=dropout)
    torch.manual_seed(0)
    return BertForMaskedLM(config("MiniLM-L6", dropout=dropout, attention=attention))


def classifier(*, dropout: float, attention: str) -> nn.Module:
    """MiniLM-L6 with random weights and eight classes."""
    torch.manual_seed(0)
    return BertForSequenceClassification(config("MiniLM-L6", dropout=dropout, attention=attention, classes=8))


def teacher(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def prune(model: nn.Module) -> None:
    """Prune the masked linears by magnitude to SPARSITY."""
    masks.prune(model, SPARSITY)
