"""Model folders: configuration, tokenizer and weights, damaged, loaded as each stage loads them."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from pruneonce import quantization, sparse_import
from pruneonce.errors import ConfigError
from pruneonce.models import checkpoint, configuration
from tests.conftest import TINY
from tests.fuzz import answering, damage
from tests.fuzz.case import Files

OUTS = ("out",)
SECONDS = 30.0
SHARE = 8

CONFIG = {
    **json.loads((TINY / "model/config.json").read_text()),
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 32,
}
PARTS = ("config.json", "tokenizer_config.json", "vocab.txt", "model.safetensors", "quantization.json", "tokenizer.json")
INDEX = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "model.safetensors"}}
_made: dict[str, bytes] = {}


def start() -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**{k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures")}))
    tensors = {k: v for k, v in model.state_dict().items() if "decoder" not in k}
    layer = "encoder.layer.0.attention.self.query"
    _made.update(
        {
            "config.json": json.dumps({**CONFIG, "pruned": [layer]}).encode(),
            "tokenizer_config.json": (TINY / "model/tokenizer_config.json").read_bytes(),
            "vocab.txt": (TINY / "model/vocab.txt").read_bytes(),
            "model.safetensors": save({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt"}),
            "tokenizer.json": answering.tokenizer().encode(),
            "quantization.json": json.dumps({"weight_bits": 8, "ranges": {layer: [-1.0, 1.0]}}).encode(),
        }
    )


def make(draw: Random) -> Files:
    """Of the folder the files that are changed; an empty one is taken away."""
    files = {}
    for name in draw.sample(PARTS, draw.choice((1, 1, 2))):
        whole = _made[name]
        if draw.random() < 0.1:
            files[name] = b""
        elif name.endswith(".json") and draw.random() < 0.7:
            files[name] = damage.dumped(damage.document(json.loads(whole), draw))
        elif name == "model.safetensors" and draw.random() < 0.6:
            size = int.from_bytes(whole[:8], "little")
            header = damage.dumped(damage.document(json.loads(whole[8 : 8 + size]), draw))
            files[name] = len(header).to_bytes(8, "little") + header + whole[8 + size :]
        else:
            files[name] = damage.data(whole, draw)
    if draw.random() < 0.1:
        files["model.safetensors.index.json"] = damage.dumped(damage.document(INDEX, draw))
        files["model.safetensors"] = b""
    files["which.json"] = json.dumps(draw.randrange(5)).encode()
    return files


def run(folder: Path) -> None:
    for name, whole in _made.items():
        if not (folder / name).exists() and name != "tokenizer.json":  # which comes before the vocabulary
            (folder / name).write_bytes(whole)
    if (index := folder / "model.safetensors.index.json").exists():
        (folder / "model.safetensors").unlink()
        assert index.stat().st_size
    which = json.loads(Path("which.json").read_text())
    if which == 0:
        checkpoint.load_tokenizer(folder)
    elif which == 1:
        checkpoint.load_masked_lm(folder, attention="eager", dropout=0.0)
    elif which == 2:
        checkpoint.load_pruned(folder, nn.Module())
        try:
            configuration.check_tokens(folder, 16, setting="here")
        except ConfigError:
            return
        quantization.load(checkpoint.random_masked_lm(folder, attention="eager"), folder)
    elif which == 3:
        found = sparse_import.inspect(folder)
        sparse_import.write(folder, folder, found, folder / "out")
    else:
        checkpoint.load_task_model(AutoModelForSequenceClassification, folder, attention="eager", num_labels=2)
