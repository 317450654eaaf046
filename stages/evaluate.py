"""Every variant of a task through ONNX Runtime on the whole test split: score, sparsity, size, latency.

reads   dense_onnx, sparse_onnx, int8_onnx   the files                export
        splits     the test splits; no training reads them            prepare_task
        tokenizer_folder   a task model, for padding                  teach_task
writes  latency    median and p95 at batch 1, and the time by operator; in its own file, because it differs between runs
"""

import json
from functools import partial

from pipeline.params.sections import Common, Evaluate
from pipeline.stage import Dep, Item, Metrics, Record, main
from pruneonce.deployment import inspect, measurements, packing, runtime
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
    latency: Record,
    *,
    common: Common,
    evaluate: Evaluate,
) -> Metrics:
    p, kind, tokenizer = evaluate, kinds.load(splits), checkpoint.load_tokenizer(tokenizer_folder)
    files = {"dense": dense_onnx, "sparse": sparse_onnx, "int8": int8_onnx}
    sessions = {variant: runtime.session(path, threads=p.threads) for variant, path in files.items()}
    tests = {path.stem: read_split(path) for path in sorted(splits.glob("test*.arrow"))}

    def score(variant: str, test: str) -> Metrics:
        batches = evaluation_batches(tests[test], kind, tokenizer, batch_size=p.batch_size)
        answers = measurements.answers(sessions[variant], batches, name=f"evaluate {item} {variant} {test}")
        total, scorers = kind.scorers(tests[test], in_split_order(answers))
        return scores.summary(scorers, kind.metric, total, resamples=p.resamples, seed=common.seed)

    metrics = {
        variant: {
            **score(variant, "test"),
            "more_tests": {name.removeprefix("test-"): score(variant, name) for name in tests if name != "test"},
            "file_bytes": path.stat().st_size,
            "packed_bytes": packing.packed_bytes(path),
            **inspect.sparsity(path),
        }
        for variant, path in files.items()
    }

    text = latency_batch(tests["test"], tokenizer, tokens=p.latency_tokens)
    calls = measurements.latencies_ms(sessions, text, warmup_runs=p.warmup_runs, runs=p.latency_runs)
    settings = {"tokens": p.latency_tokens, "threads": p.threads, "runs": p.latency_runs}
    operator_times = partial(measurements.operator_times, batch=text, threads=p.threads, runs=p.operator_runs)
    times = {v: {**calls[v], **settings, "operators_ms": operator_times(path)} for v, path in files.items()}
    latency.write_text(json.dumps(times, indent=2, sort_keys=True) + "\n")
    return metrics


if __name__ == "__main__":
    main(run)
