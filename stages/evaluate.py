"""Every variant of a task through ONNX Runtime on the whole test split: what really ships.

reads   dense_onnx, sparse_onnx, int8_onnx   the files                export
        splits     the test splits; nothing else ever reads them     prepare_task
        tokenizer  the task model's folder, for padding               teach_task
writes  latency    median and p95 at batch 1, and the time by operator. Not a function of deps and params, hence apart
"""

import json

from pipeline.params.sections import Common, Evaluate
from pipeline.stage import Dep, Item, Log, Metrics, Record, main
from pruneonce.deployment import inspect, packing, runtime
from pruneonce.models import checkpoint
from pruneonce.tasks import kinds, scores
from pruneonce.tasks.batches import evaluation_batches, in_order, one_text
from pruneonce.tasks.splits import read_split

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
    p, kind, words = evaluate, kinds.load(splits), checkpoint.load_tokenizer(tokenizer)
    files = {"dense": dense_onnx, "sparse": sparse_onnx, "int8": int8_onnx}
    sessions = {variant: runtime.session(path, threads=p.threads) for variant, path in files.items()}
    tests = {path.stem: read_split(path) for path in sorted(splits.glob("test*.arrow"))}

    def scored(variant: str, test: str) -> Metrics:
        batches = evaluation_batches(tests[test], kind, words, batch_size=p.batch_size)
        answers = runtime.answers(sessions[variant], batches, name=f"evaluate {item} {variant} {test}")
        total, scorers = kind.scorers(tests[test], in_order(answers))
        return scores.summary(scorers, kind.metric, total, resamples=p.resamples, seed=common.seed)

    metrics = {}
    for variant, path in files.items():
        matrices = inspect.matrix_zeros(path)
        metrics[variant] = {
            **scored(variant, "test"),
            "more_tests": {name.removeprefix("test-"): scored(variant, name) for name in tests if name != "test"},
            "file_bytes": path.stat().st_size,
            "packed_bytes": packing.packed_bytes(path),
            "sparsity": sum(zeros for zeros, _ in matrices.values()) / sum(size for _, size in matrices.values()),
            "sparsity_of": {name: zeros / size for name, (zeros, size) in matrices.items()},
        }

    one = one_text(tests["test"], words, tokens=p.latency_tokens)
    found = runtime.latencies_ms(sessions, one, warmup_runs=p.warmup_runs, runs=p.latency_runs)
    asked = {"tokens": p.latency_tokens, "threads": p.threads, "runs": p.latency_runs}
    times = {
        variant: {
            **found[variant],
            **asked,
            "operators_ms": runtime.operator_times(path, one, threads=p.threads, runs=PROFILED_RUNS),
        }
        for variant, path in files.items()
    }
    latency.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
    return metrics


if __name__ == "__main__":
    main(run)
