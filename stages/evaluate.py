"""Every variant of a task through ONNX Runtime on the whole test split: what really ships.

reads   dense_onnx, sparse_onnx, int8_onnx   the files                export
        splits     the test split; nothing else ever reads it        prepare_task
        tokenizer  the task model's folder, for padding               teach_task
writes  latency    median and p95 at batch 1, and the time by operator. Not a function of deps and params, hence apart
"""

import json

from pipeline.params import Common, Evaluate
from pipeline.stage import Dep, Item, Log, Metrics, Record, main
from pruneonce import checkpoint, exporting, packing, runtime, scores, tasks

PROFILED_RUNS = 15  # calls with a clock on every operator: for shares, which need fewer than a percentile does


def run(
    item: Item,
    dense_onnx: Dep,
    sparse_onnx: Dep,
    int8_onnx: Dep,
    splits: Dep,
    tokenizer: Dep,
    latency: Record,
    *,
    common: Common,
    evaluate: Evaluate,
    log: Log,
) -> Metrics:
    p = evaluate
    words = checkpoint.load_tokenizer(tokenizer)
    test = tasks.read_split(splits / "test.arrow")
    metrics, times = {}, {}
    for variant, path in (("dense", dense_onnx), ("sparse", sparse_onnx), ("int8", int8_onnx)):
        running = runtime.session(path, threads=p.threads)
        batches = tasks.evaluation_batches(test, words, batch_size=p.batch_size)
        right, rows = runtime.count_right(running, batches, name=f"evaluate {item} {variant}")
        low, high = scores.wilson_interval(right, rows)
        matrices = exporting.matrix_zeros(path)
        metrics[variant] = {
            "accuracy": right / rows,
            "accuracy_low": low,
            "accuracy_high": high,
            "rows": rows,
            "file_bytes": path.stat().st_size,
            "packed_bytes": packing.packed_bytes(path),
            "sparsity": sum(zeros for zeros, _ in matrices.values()) / sum(size for _, size in matrices.values()),
            "sparsity_of": {name: zeros / size for name, (zeros, size) in matrices.items()},
        }
        one = tasks.one_text(test, words, tokens=p.latency_tokens)
        found = runtime.latency_ms(running, one, warmup_runs=p.warmup_runs, runs=p.latency_runs)
        spent = runtime.operator_times(path, one, threads=p.threads, runs=PROFILED_RUNS)
        asked = {"tokens": p.latency_tokens, "threads": p.threads, "runs": p.latency_runs}
        times[variant] = {**found, **asked, "operators_ms": spent}
    latency.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
    return metrics


if __name__ == "__main__":
    main(run)
