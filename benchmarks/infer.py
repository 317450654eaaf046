"""Run time of every exported variant in ONNX Runtime, as ratios to the dense fp32 model of a plain torch.onnx.export.

Two shapes, batch 1 and 8, 16 to 384 tokens, 1 and 2 threads. `--quick`: batch 1 x 128 tokens on 2 threads alone, the one
cell with bars. `--operators`: time by operator. Models have random weights, are pruned to 85 % and calibrated on random
tokens.
Variants take turns in rounds, so that a busy machine slows all alike. A turn is as many calls as the slowest variant makes
in 0.1 s, from 1 to 10. Its time is that of the fastest call. ms is the median over rounds. A ratio is the median of the
ratios within a round. All sessions have the same options.
"""

import contextlib
import io
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from benchmarks import models
from benchmarks.batches import random_tokens
from benchmarks.measuring import Compute, Row, arguments, bar, in_turn, publish, ratio
from pruneonce import engine, quantization
from pruneonce.deployment import audit, export, measurements, runtime
from pruneonce.deployment.weight_names import name_weights
from pruneonce.sparsity import masks

SEED = 1
INPUTS = ["input_ids", "attention_mask"]
QUIET = {"session.force_spinning_stop": "1"}  # else the threads of a session that waits for its turn spin on
PLAIN = "plain fp32"
ONCE = ("transformers' exporter fp32", "onnxruntime optimizer fp32", "sparse fp32")  # in the quick cell only
BARS = {"BERT-Base": 2.6, "MiniLM-L6": 2.2}  # of int8 in the quick cell, on a processor with VNNI


Prune = Callable[[nn.Module], None]  # sets the masks of the masked linears


@dataclass(frozen=True)
class Cell:
    """Sizes at which every variant is measured."""

    batch: int
    tokens: int
    threads: int


QUICK = [Cell(1, 128, 2)]
GRID = [Cell(*sizes) for sizes in itertools.product((1, 8), (16, 64, 128, 384), (1, 2))]


def classifier(config: BertConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_config(
        config, attn_implementation=attention, trust_remote_code=False
    ).eval()


def plain(config: BertConfig, path: Path) -> None:
    """torch.onnx.export with dynamic axes and no other option."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=config.max_position_embeddings)}
    example = random_tokens(2, 16, seed=SEED)
    program = torch.onnx.export(
        classifier(config),
        (example["input_ids"], example["attention_mask"]),
        dynamo=True,
        input_names=INPUTS,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(INPUTS, axes),
        verbose=False,
    )
    assert program is not None  # it is where dynamo exports
    program.save(path, external_data=False)


def by_transformers(config: BertConfig, path: Path) -> None:
    """transformers' own exporter with its fusions for ONNX Runtime on CPUs."""
    options = OnnxConfig(dynamic=True, ort_fusions="cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        exported = OnnxExporter().export(classifier(config), dict(random_tokens(2, 16, seed=SEED)), config=options)
    onnx_ir.save(exported.program, str(path))


def by_optimizer(config: BertConfig, path: Path) -> None:
    """onnxruntime.transformers.optimizer on the plain export, which lies beside `path`."""
    source, heads = path.with_name(f"{plain.__name__}.onnx"), config.num_attention_heads
    fused = optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=config.hidden_size, opt_level=1)
    fused.save_model_to_file(str(path))


def dense(config: BertConfig, path: Path) -> None:
    model = classifier(config, "eager")
    _write(model, {name: m.weight.detach().numpy() for name, m in masks.prunable(model, models.PRUNABLE).items()}, path)


def pruned(config: BertConfig, wrap: Callable[[nn.Linear], masks.MaskedLinear], prune: Prune) -> PreTrainedModel:
    model = classifier(config, "eager")
    masks.mask_linears(model, models.PRUNABLE, wrap)
    prune(model)
    return model


def sparse(config: BertConfig, path: Path) -> None:
    pruned_fp32(config, path, models.prune)


def pruned_fp32(config: BertConfig, path: Path, prune: Prune) -> None:
    model = pruned(config, masks.MaskedLinear, prune)
    masks.bake(model)
    _write(model, {name: m.weight.detach().numpy() for name, m in masks.prunable(model, models.PRUNABLE).items()}, path)


def int8(config: BertConfig, path: Path) -> None:
    pruned_int8(config, path, models.prune)


def pruned_int8(config: BertConfig, path: Path, prune: Prune) -> None:
    model = pruned(config, quantization.FakeQuantLinear, prune)
    quantization.calibrate(
        model,
        [random_tokens(2, 64, seed=seed) for seed in range(4)],
        engine=engine.accelerator(Compute(seed=SEED, precision="fp32", threads=2)),
    )
    quantization.freeze(model)
    weights = {name: m.weight.numpy().T for name, m in quantization.to_int8(model).items()}
    _write(model, weights, path)
    audit.check_integer(audit.Audit(path).kernels(weights))


def _write(model: nn.Module, weights: dict[str, np.ndarray], path: Path) -> None:
    export.to_onnx(model, path)
    name_weights(path, weights)


VARIANTS: dict[str, Callable[[BertConfig, Path], None]] = {  # plain first: another reads its file
    PLAIN: plain,
    "transformers' exporter fp32": by_transformers,
    "onnxruntime optimizer fp32": by_optimizer,
    "dense fp32": dense,
    "sparse fp32": sparse,
    "int8": int8,
}


def take_turns(calls: Mapping[str, Callable[[], object]], *, budget: float, least: int, most: int) -> dict[str, list[float]]:
    """Milliseconds by name and round. As many rounds as fit into `budget` seconds, from `least` to `most`."""
    slowest = max(milliseconds(call) for call in calls.values())  # warms up, too
    repeats = int(min(max(100 / slowest, 1), 10))

    def turn(call: Callable[[], object]) -> float:
        return min(milliseconds(call) for _ in range(repeats))

    rounds = 1e3 * budget / (slowest * repeats * len(calls))
    return in_turn({name: partial(turn, call) for name, call in calls.items()}, int(min(max(rounds, least), most)))


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measure(files: Mapping[str, Path], cells: list[Cell], *, budget: float, least: float) -> Iterator[Row]:
    """One row for each cell and variant. budget: seconds for each cell; four times as many where the bar is."""
    for threads in sorted({cell.threads for cell in cells}):
        sessions = {name: runtime.session(path, threads=threads, entries=QUIET) for name, path in files.items()}
        for cell in [cell for cell in cells if cell.threads == threads]:
            batch = random_tokens(cell.batch, cell.tokens, seed=SEED)
            chosen = {name: s for name, s in sessions.items() if cell in QUICK or name not in ONCE}
            calls = {name: partial(runtime.logits, s, batch) for name, s in chosen.items()}
            times = take_turns(calls, budget=4 * budget if cell in QUICK else budget, least=2, most=60)
            for name, found in times.items():
                yield row(cell, name, found, times[PLAIN], least=least if cell in QUICK and name == "int8" else None)


def row(cell: Cell, name: str, found: list[float], base: list[float], *, least: float | None) -> Row:
    """A variant in a cell. found, base: milliseconds by round, of it and of the plain export."""
    low, middle, high = (float(value) for value in np.percentile(found, [10, 50, 90]))
    times = ratio(base, found)
    return {
        "batch x tokens": f"{cell.batch} x {cell.tokens}",
        "threads": cell.threads,
        "variant": name,
        "ms": middle,
        "10 %": low,
        "90 %": high,
        "rounds": len(found),
        "times plain": times,
        "bar": "" if least is None else bar(f">= {least} x", met=times >= least),
    }


def operators(files: Mapping[str, Path], cell: Cell) -> list[Row]:
    """Time of the operators in one call, by variant, the slowest first; none below 1 %."""
    batch = random_tokens(cell.batch, cell.tokens, seed=SEED)
    found = {
        n: measurements.operator_times(partial(runtime.session, path, threads=cell.threads), batch, runs=20)
        for n, path in files.items()
    }
    return [
        {"variant": name, "operator": operator, "ms": ms, "%": 100 * ms / sum(times.values())}
        for name, times in found.items()
        for operator, ms in times.items()
        if ms >= 0.01 * sum(times.values())
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 1 x 128 tokens on 2 threads only")
    parser.add_argument("--operators", action="store_true", help="time by operator")
    parser.add_argument("--shapes", nargs="+", choices=models.SHAPES, default=list(models.SHAPES))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the exporters' own
    logging.disable(logging.WARNING)
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{make.__name__}.onnx" for name, make in VARIANTS.items()}
            for name, path in files.items():
                VARIANTS[name](BertConfig(**models.SHAPES[shape]), path)
            rows = list(measure(files, QUICK if args.quick else GRID, budget=4, least=BARS[shape]))
            publish(f"Run time of {shape}", rows, file=args.json)
            if args.operators:
                publish(f"Operators of {shape}", operators(files, QUICK[0]), file=args.json)


if __name__ == "__main__":
    main()
