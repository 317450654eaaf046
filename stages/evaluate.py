"""Every variant of a task through ONNX Runtime on the whole test split: score, sparsity, size, latency, memory.

reads   dense_onnx, sparse_onnx, int8_onnx   the files                export
        splits     the test splits; no training reads them            prepare_task
        tokenizer_folder   a task model, for padding                  teach_task
writes  answers    what every variant answers to each row of the test split
        latency    median and percentiles at batch 1, time by operator, memory, and the machine; these differ between runs

The variant int8_sparse is the int8 file on the sparse kernels. It is left out where their library is missing.
After a kill, the answers and the scores of finished variants are not computed again. Latencies are: to compare, they are
measured in turns, within one process.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.hashing import file_md5
from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sections import Common, Evaluate
from pipeline.stage import Dep, Item, Metrics, Out, Record, main
from pruneonce.answers import compared
from pruneonce.deployment import answer_files, execution, inspect, measurements, memory, packing, parity, runtime
from pruneonce.models import checkpoint
from pruneonce.tasks import kinds, scores
from pruneonce.tasks.batches import evaluation_batches, in_split_order, latency_batch
from pruneonce.tasks.splits import read_split


def run(
    item: Item,
    dense_onnx: Dep,
    sparse_onnx: Dep,
    int8_onnx: Dep,
    splits: Dep,
    tokenizer_folder: Dep,
    answers: Out,
    latency: Record,
    *,
    common: Common,
    evaluate: Evaluate,
    log: Log,
) -> Metrics:
    p, kind, tokenizer = evaluate, kinds.load(splits), checkpoint.load_tokenizer(tokenizer_folder)
    variants = {"dense": (dense_onnx, "stock"), "sparse": (sparse_onnx, "stock"), "int8": (int8_onnx, "stock")}
    if execution.processor() is None:
        missing = f"their library is not at {execution.LIBRARY}. {execution.BUILD}"
        print(f"\nevaluate {item}: no row for the sparse kernels: {missing}", file=sys.stderr)
    else:
        variants["int8_sparse"] = int8_onnx, "sparse"
    load = {v: partial(execution.session, path, threads=p.threads, execution=how) for v, (path, how) in variants.items()}
    sessions = {variant: load[variant]() for variant in variants}
    tests = {path.stem: read_split(path) for path in sorted(splits.glob("test*.arrow"))}
    batches = {name: list(evaluation_batches(tests[name], kind, tokenizer, batch_size=p.batch_size)) for name in tests}
    kept = Kept(log.scratch, file_md5(execution.LIBRARY) if execution.LIBRARY.exists() else None)

    def answer(variant: str, test: str) -> list[measurements.Answer]:
        running = measurements.answers(sessions[variant], batches[test], name=f"evaluate {item} {variant} {test}")
        path = kept(f"{variant}-{test}.safetensors", partial(answer_files.write_logits, running))
        return list(zip(batches[test], answer_files.read_logits(path), strict=True))

    def score(variant: str, test: str, answered: list[measurements.Answer]) -> Metrics:
        def write(path: Path) -> None:
            total, scorers = kind.scorers(tests[test], in_split_order(answered))
            found = scores.summary(scorers, kind.metric, total, resamples=p.resamples, seed=common.seed)
            path.write_text(json.dumps(found))

        return json.loads(kept(f"{variant}-{test}.json", write).read_text())

    answered = {variant: answer(variant, "test") for variant in variants}
    logits = {variant: in_split_order(batches) for variant, batches in answered.items()}
    md5 = file_md5(splits / "test.arrow")
    seed = int(md5[:8], 16)  # of this split, whatever trained the model: all models draw the same rows
    table = compared(kind, tests["test"], logits, pair=("dense", "int8"), resamples=p.resamples, seed=seed)
    answers.write_text(json.dumps({"task": item, "test_md5": md5, **table}, sort_keys=True) + "\n")
    more = [name for name in tests if name != "test"]
    files = {path: _measured(path) for path in {path for path, _ in variants.values()}}  # two variants are of one file
    metrics = {
        variant: {
            **score(variant, "test", answered[variant]),
            "more_tests": {name.removeprefix("test-"): score(variant, name, answer(variant, name)) for name in more},
            **files[path],
        }
        for variant, (path, _) in variants.items()
    }
    if "int8_sparse" in variants:
        texts = parity.Texts(batches["test"], kind.outputs, kind.decisions, kind.compared)
        stock, sparse = ([logits for _, logits in answered[variant]] for variant in ("int8", "int8_sparse"))
        found = parity.differences(parity.Reference(texts, stock), sparse)
        least = p.sparse_same_decision_ratio
        parity.check_sparse_kernels(found, relative_error=p.sparse_tolerance, same_decision=least)
        metrics["int8_sparse"]["parity"] = found

    text = latency_batch(tests["test"], tokenizer, tokens=p.latency_tokens)
    calls = measurements.latencies_ms(sessions, text, warmup_runs=p.warmup_runs, runs=p.latency_runs)
    times: dict[str, Any] = {
        variant: {
            **calls[variant],
            **{"tokens": p.latency_tokens, "threads": p.threads, "runs": p.latency_runs},
            "operators_ms": measurements.operator_times(load[variant], text, runs=p.operator_runs),
            "resident_bytes": memory.resident_bytes(
                path, runtime.feeds(sessions[variant], text), threads=p.threads, execution=how
            ),
        }
        for variant, (path, how) in variants.items()
    }
    here = {"processor": machine.processor(), "cores": machine.cores(), "kernels": execution.processor()}
    times["machine"] = {**here, "versions": machine.versions()}
    latency.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
    return metrics


def _measured(path: Path) -> Metrics:
    """Bytes of a file as it is and packed, and its zeros."""
    return {
        "file_bytes": path.stat().st_size,
        "packed_bytes": packing.packed_bytes(path),
        **inspect.sparsity(path),
    }


if __name__ == "__main__":
    main(run)
