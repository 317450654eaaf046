"""Every architecture through the same code: what is prunable, and whether zeros, parity and integer kernels hold.

Models have random weights. Each is pruned once to 85 %, trained some steps on a task and some more with quantization-aware
training, on random tokens and with its zeros locked, then exported to ONNX. The program ends with an error where zeros
or parity do not hold. Writes docs/architectures.md.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.configurations import CONFIGURATIONS, SIZES
from benchmarks.measuring import Compute, Row, machine, markdown
from pruneonce import quantization
from pruneonce.batch import Batch, inputs
from pruneonce.deployment import audit, embeddings, inspect, packing
from pruneonce.deployment import export as exporter
from pruneonce.deployment.parity import Texts, check_parity, parity, reference
from pruneonce.deployment.weight_names import name_weights
from pruneonce.engine import accelerator
from pruneonce.errors import PatternBroken
from pruneonce.models import configuration
from pruneonce.sparsity import matrices
from pruneonce.sparsity.masks import (
    bake,
    check_pattern,
    lock,
    mask_linears,
    prunable,
    prune,
    pruned_count,
)
from pruneonce.training import loop

PAGE = Path(__file__).parents[1] / "docs/architectures.md"
SPARSITY, STEPS, SEED = 0.85, 4, 1
COLUMNS = """\
Written by `python -m benchmarks.architectures`, which ends with an error where zeros or parity do not hold. It shows that
the code works for an architecture. Only real training shows how good a pruned model is.

The models have random weights, four layers of width 256 and a vocabulary of 8192. They are pruned to 85 % as language
models. They are fine-tuned and trained for quantization for {steps} steps each, on random tokens, with their zeros
locked. Then they are exported.
- prunable: the linears of the layers, found from the structure. A matrix that layers share counts once.
- exact: every matrix has exactly the zeros of 85 %.
- kept: every zero is still there after fine-tuning, after quantization-aware training, and in the sparse and the int8
  file.
- parity: largest difference of a logit between ONNX Runtime and PyTorch, divided by the largest logit. It is measured on
  {rows} texts with padding, from 3 tokens to the most that the model takes. fp32: the larger of dense and sparse. int8:
  before the tables are rounded.
- integer: matrices whose every product runs on integers in ONNX Runtime.
- mask: added: it is prepared in the graph and added to the scores. given: the architecture uses it in other ways too.
- MB: the dense fp32 file. The int8 file, with tables in int8 as well. The int8 file packed by `pruneonce pack`.
"""
NOTES = """\
## What differs
- ALBERT runs the matrices of one layer four times. The file holds each matrix once.
- The queries and keys of DeBERTa also project the table of relative positions, which does not depend on the input. These
  products run on integers too, in every call.
- ALBERT and DeBERTa have weights that several nodes read. ONNX Runtime 1.32 cannot load such a file with
  `session.x64quantprecision`. pruneonce does not need this option; for other programs on processors without VNNI use
  `quantize.weight_bits: 7`.
- ELECTRA and ALBERT project embeddings to the width of the layers. This matrix is not in a layer: it is not pruned and
  stays in float.
- RoBERTa and MPNet number positions from the one after padding: 512 tokens of 514 rows.
- DeBERTa multiplies with the mask, and ModernBERT hides what is outside a layer's window. Their graphs take the mask as
  it is. The graphs of the other architectures have it prepared, so that it only needs to be added. The exporter compares
  both on an example.
- DeBERTa-v3 is the class of v2 with another configuration, the one built here. Published checkpoints have other names for
  their MLM head, so the head is new and teacher preparation trains it. With `legacy: false` in the configuration the head
  does not end in its output embeddings: this is one clear error.
- In transformers, DeBERTa and MPNet have no fused attention (use `common.attention: eager`), and ALBERT and MPNet have no
  gradient checkpointing.
- A pooler is pruned if the language model has one (BERT with next-sentence prediction). If only the task's model has one,
  it is part of the task's head.
"""


@dataclass
class Built:
    """The folders of a dense and a pruned language model, the names of the pruned linears, and their zeros."""

    dense: Path
    sparse: Path
    names: list[str]
    pattern: dict[str, torch.Tensor]


def batch_of(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens, labels of two classes, and a mask by which row i ends i positions early. Padding is token 1."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZES["vocab_size"], (rows, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None] % length).long()
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask, "labels": labels}


def build(kind: str, fields: Mapping[str, Any], folder: Path) -> Built:
    """A random language model, pruned once."""
    torch.manual_seed(SEED)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, **fields), attn_implementation="eager", trust_remote_code=False
    )
    model.save_pretrained(folder / "dense")
    names = list(prunable(model, None))
    mask_linears(model, names)
    prune(model, SPARSITY)
    pattern = bake(model)
    model.save_pretrained(folder / "sparse")
    counts = {name: int(zero.sum()) for name, zero in pattern.items()}
    expected = {name: pruned_count(SPARSITY, zero.numel()) for name, zero in pattern.items()}
    if counts != expected:
        raise PatternBroken(f"expected {expected} zeros, found {counts}.")
    return Built(folder / "dense", folder / "sparse", names, pattern)


def load(folder: Path) -> PreTrainedModel:
    """A classifier of two classes; the same seed gives a new head the same weights."""
    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, attn_implementation="eager", trust_remote_code=False
    ).eval()


def train(model: nn.Module, engine) -> None:
    """A few steps on random labels."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": model(**inputs(batch), labels=batch["labels"]).loss}

    rate = {"learning_rate": lambda step: 1e-3, "steps": STEPS, "weight_decay": 0.01, "clip_norm": 1.0, "seed": SEED}
    loop.fit(model, partial(batch_of, 8, 64), loss, engine=engine, **rate)  # type: ignore[arg-type]


def measure(name: str, folder: Path) -> Row:
    """One architecture's line of the table."""
    engine = accelerator(Compute(seed=SEED, precision="fp32", threads=1))
    built = build(*CONFIGURATIONS[name], folder)
    longest = configuration.longest(load(built.dense)) or 512
    batches = [batch_of(*sizes, seed) for seed, sizes in enumerate([(8, 64), (1, 3), (5, 100), (2, longest)])]
    differences: dict[str, float] = {}

    def export(variant: str, model: nn.Module, weights: dict[str, np.ndarray]) -> Path:
        path = folder / f"{variant}.onnx"
        exporter.to_onnx(model, path)
        name_weights(path, weights)
        found = parity(reference(model, Texts(batches)), path)
        check_parity(found, relative_error=1e-4 if variant != "int8" else 0.05, same_decision=0.9)
        differences[variant] = found["max_difference"] / found["max_logit"]
        return path

    def floats(model: nn.Module) -> dict[str, np.ndarray]:
        return {n: m.weight.detach().numpy() for n, m in prunable(model, built.names).items()}

    dense = load(built.dense)
    dense_path = export("dense", dense, floats(dense))
    model = load(built.sparse)
    mask_linears(model, built.names)
    lock(model)
    train(model, engine)
    check_pattern(built.pattern, bake(model))
    sparse_path = export("sparse", model, floats(model))

    mask_linears(model, built.names, quantization.FakeQuantLinear)
    lock(model)
    quantization.calibrate(model, [batch_of(8, 64, seed) for seed in range(4)], engine=engine)
    train(model, engine)
    quantization.freeze(model)
    masks = {layer: ~linear.mask for layer, linear in quantization.quantized_linears(model).items()}
    check_pattern(built.pattern, masks)
    weights = {layer: linear.weight.numpy().T for layer, linear in quantization.to_int8(model).items()}
    int8_path = export("int8", model, weights)
    for path in (sparse_path, int8_path):
        inspect.check_zeros(path, {layer: zero.numpy() for layer, zero in built.pattern.items()})
    kernels = audit.Audit(int8_path).kernels(weights)
    floating = sorted({f"{layer}: {kernel}" for layer, kernel in kernels.items() if kernel not in audit.INTEGER_KERNELS})
    embeddings.quantize(int8_path)
    return {
        "architecture": name,
        "matrices": len(built.names),
        "weights": f"{sum(z.numel() for z in built.pattern.values()):,}",
        "exact, kept": "yes",  # or an error above
        "parity fp32": f"{max(differences['dense'], differences['sparse']):.0e}",
        "parity int8": f"{differences['int8']:.0e}",
        "integer": f"{len(kernels) - len(floating)} of {len(kernels)}" + "".join(f"; {f}" for f in floating),
        "mask": "added" if exporter.takes_additive_mask(dense) else "given",
        "dense MB": f"{dense_path.stat().st_size / 1e6:.2f}",
        "int8 MB": f"{int8_path.stat().st_size / 1e6:.2f}",
        "packed MB": f"{packing.packed_bytes(int8_path) / 1e6:.2f}",
    }


def example() -> str:
    """The table of matrices that `sparsify` prints of BERT-Base, from a model without memory for its weights."""
    with torch.device("meta"):
        return matrices.table(
            matrices.matrices(AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert"), trust_remote_code=False), None)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries, about themselves
    rows = []
    for name in CONFIGURATIONS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder)))
        print(rows[-1], file=sys.stderr, flush=True)
    note = COLUMNS.format(steps=STEPS, rows=8 + 1 + 5 + 2)
    printed = "## What is prunable\n\n`sparsify` prints it before it begins, of BERT-Base for example:"
    parts = [
        "# Architectures",
        note.strip(),
        markdown(rows),
        NOTES.strip(),
        printed,
        f"```text\n{example()}\n```",
        markdown(machine()),
    ]
    args.page.write_text("\n\n".join(parts) + "\n")
    print(args.page)


if __name__ == "__main__":
    main()
