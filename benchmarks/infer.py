"""Run time of every exported variant in ONNX Runtime, as ratios to the dense fp32 model as its user would export it.

`python -m benchmarks.infer` prints a Markdown table: two shapes, batch 1 and 8, 16 to 384 tokens, 1 and 2 threads.
`--quick` measures batch 1 x 128 tokens on 2 threads only, `--operators` says where the time goes, `--json FILE` writes rows.
Models are built of their configurations with random weights, pruned to 85 %, calibrated on random tokens.
Variants take turns in rounds, so that a busy machine slows all alike. A turn is as many calls as the slowest variant makes
in 0.1 s, from 1 to 10, and counts as its fastest; a cell is the median over rounds (10th - 90th percentile). Ratios are of
medians; all sessions have the same options.
"""

import contextlib
import io
import itertools
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from benchmarks.measuring import Compute, arguments
from pruneonce import exporting, pruning, quantization, runtime, training

SHAPES = {
    "BERT-Base": BertConfig(),
    "MiniLM-L6": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
}
PRUNABLE, SPARSITY, SEED = r"^encoder\.", 0.85, 1
INPUTS = ["input_ids", "attention_mask"]
QUIET = {"session.force_spinning_stop": "1"}  # or the threads of a session that waits for its turn spin on
PLAIN = "plain fp32"
PUBLIC = ("transformers' exporter fp32", "onnxruntime optimizer fp32")  # in the quick cell only


@dataclass(frozen=True)
class Cell:
    """What is asked of every variant."""

    batch: int
    tokens: int
    threads: int


QUICK = [Cell(1, 128, 2)]
GRID = [Cell(*sizes) for sizes in itertools.product((1, 8), (16, 64, 128, 384), (1, 2))]


def batch_of(rows: int, length: int, seed: int = SEED) -> dict[str, torch.Tensor]:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30000, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def classifier(config: BertConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()


def plain(config: BertConfig, path: Path) -> None:
    """torch.onnx.export with dynamic axes, all else as it comes."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=config.max_position_embeddings)}
    example = batch_of(2, 16)
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
        exported = OnnxExporter().export(classifier(config), dict(batch_of(2, 16)), config=options)
    onnx_ir.save(exported.program, str(path))


def by_optimizer(config: BertConfig, path: Path) -> None:
    """onnxruntime.transformers.optimizer on the plain export, which lies beside `path`."""
    source, heads = path.with_name(f"{plain.__name__}.onnx"), config.num_attention_heads
    fused = optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=config.hidden_size, opt_level=1)
    fused.save_model_to_file(str(path))


def dense(config: BertConfig, path: Path) -> None:
    model = classifier(config, "eager")
    _write(model, {name: m.weight.detach().numpy() for name, m in pruning.prunable(model, PRUNABLE).items()}, path)


def _pruned(config: BertConfig, wrap: Callable[[nn.Linear], pruning.MaskedLinear]) -> nn.Module:
    model = classifier(config, "eager")
    pruning.mask_linears(model, PRUNABLE, wrap)
    pruning.prune(model, SPARSITY)
    return model


def sparse(config: BertConfig, path: Path) -> None:
    model = _pruned(config, pruning.MaskedLinear)
    pruning.bake(model)
    _write(model, {name: m.weight.detach().numpy() for name, m in pruning.prunable(model, PRUNABLE).items()}, path)


def int8(config: BertConfig, path: Path) -> None:
    model = _pruned(config, quantization.FakeQuantLinear)
    quantization.calibrate(
        model,
        [batch_of(2, 64, seed) for seed in range(4)],
        engine=training.accelerator(Compute(seed=SEED, precision="fp32", threads=2)),
    )
    quantization.observe(model, False)
    weights = {name: m.weight.numpy().T for name, m in quantization.to_int8(model).items()}
    _write(model, weights, path)
    exporting.check_integer(exporting.Audit(path).kernels(weights))


def _write(model: nn.Module, weights: dict[str, np.ndarray], path: Path) -> None:
    exporting.export(model, path)
    exporting.name_weights(path, weights)


VARIANTS: dict[str, Callable[[BertConfig, Path], None]] = {  # plain first: another reads its file
    PLAIN: plain,
    "transformers' exporter fp32": by_transformers,
    "onnxruntime optimizer fp32": by_optimizer,
    "dense fp32": dense,
    "sparse fp32": sparse,
    "int8": int8,
}


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int, most: int
) -> dict[str, list[float]]:
    """Milliseconds by name and round. As many rounds as fit into `seconds`, from `least` to `most`."""
    slowest = max(_milliseconds(call) for call in calls.values())  # warms up, too
    repeats = int(min(max(100 / slowest, 1), 10))
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - began > seconds:
            break
        for name, call in calls.items():
            times[name].append(min(_milliseconds(call) for _ in range(repeats)))
    return times


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measure(files: dict[str, Path], cells: list[Cell], *, seconds: float) -> Iterator[dict[str, object]]:
    """One row for each cell and variant."""
    for threads in sorted({cell.threads for cell in cells}):
        sessions = {name: runtime.session(path, threads=threads, entries=QUIET) for name, path in files.items()}
        for cell in [cell for cell in cells if cell.threads == threads]:
            batch = batch_of(cell.batch, cell.tokens)
            asked = {name: s for name, s in sessions.items() if cell in QUICK or name not in PUBLIC}
            calls = {name: lambda s=s, b=batch: runtime.logits(s, b) for name, s in asked.items()}
            times = take_turns(calls, seconds=seconds, least=3, most=60)
            base = float(np.median(times[PLAIN]))
            for name, found in times.items():
                low, median, high = (float(v) for v in np.percentile(found, [10, 50, 90]))
                yield {
                    "variant": name,
                    **vars(cell),
                    "median_ms": median,
                    "p10_ms": low,
                    "p90_ms": high,
                    "rounds": len(found),
                    "times_faster": base / median,
                }


def line(row: dict) -> str:
    """A row of the table."""
    spread = f"{row['median_ms']:.2f} ({row['p10_ms']:.2f} - {row['p90_ms']:.2f})"
    sizes = f"{row['batch']} x {row['tokens']} | {row['threads']}"
    return f"| {row['shape']} | {sizes} | {row['variant']} | {spread} | {row['times_faster']:.2f} x |"


def print_operators(files: dict[str, Path], cell: Cell) -> None:
    """Where the time of one call goes, by operator."""
    for name, path in files.items():
        found = runtime.operator_times(path, batch_of(cell.batch, cell.tokens), threads=cell.threads, runs=20)
        print(f"\n{name}: " + ", ".join(f"{op} {ms:.2f} ms" for op, ms in found.items() if ms >= 0.01), flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 1 x 128 tokens on 2 threads only")
    parser.add_argument("--operators", action="store_true", help="where the time goes, by operator")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # the exporters' own
    logging.disable(logging.WARNING)
    rows: list[dict] = []
    print("| shape | batch x tokens | threads | variant | ms (p10 - p90) | speed |\n|---|---|---|---|---|---|", flush=True)
    for shape in chosen.shapes:
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{make.__name__}.onnx" for name, make in VARIANTS.items()}
            for name, path in files.items():
                VARIANTS[name](SHAPES[shape], path)
            for row in measure(files, QUICK if chosen.quick else GRID, seconds=15 if chosen.quick else 4):
                rows.append({"shape": shape, **row})
                print(line(rows[-1]), flush=True)
            if chosen.operators:
                print_operators(files, QUICK[0])
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
