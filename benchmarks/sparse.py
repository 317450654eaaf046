"""What zeros save in ONNX Runtime: the sparse kernels (auto) against its own int8 of the same file, and dense fp32.

Random weights are pruned by magnitude and calibrated on random tokens. `--export` names a folder with a real int8.onnx
of MiniLM-L6's shape. `--deepsparse PYTHON`: also DeepSparse, with fp32 weights of 90 % zeros.
`--processor`: kinds of processors. The first one gets all tables, the others that of the bars. AMX, AVX-512 and AVX-VNNI are
hidden from the process as far as the kind does not have them, so both sides run as on such a processor. `--quick`: that
table alone.
Sides take turns in rounds. A turn is up to three calls, of which the fastest counts. ms is the median over rounds; a ratio
is the median of the ratios within a round. Sessions that wait do not spin. All sides have the same threads, each bound to
a core.
"""

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import BertConfig

from benchmarks import infer, models, rate, seeming
from benchmarks.batches import random_tokens
from benchmarks.infer import GRID, QUIET, SEED, Cell, milliseconds
from benchmarks.measuring import Row, arguments, bar, in_turn, publish, ratio
from pruneonce.deployment import execution, runtime
from pruneonce.errors import KernelsError
from pruneonce.sparsity import masks, patterns
from pruneonce.terminal import one_line_errors

ROOT = Path(__file__).parents[1]
ANY, BLOCKS = "unstructured", "1x4"
WEIGHTS = {  # pattern, sparsity
    "no zeros": (ANY, 0.0),
    "80 % anywhere": (ANY, 0.8),
    "85 % anywhere": (ANY, 0.85),
    "90 % anywhere": (ANY, 0.9),
    "85 % in 1x4": (BLOCKS, 0.85),
    "90 % in 1x4": (BLOCKS, 0.9),
}
GRID_WEIGHTS = ("no zeros", "80 % anywhere", "85 % anywhere", "90 % anywhere", "90 % in 1x4")
REAL = "r8's own"
ONE, TWO, EIGHT = Cell(1, 128, 1), Cell(1, 128, 2), Cell(8, 128, 2)
BARRED = "avx512vnni"  # the kind of processor that the bars are for
INTRODUCTION = """\
## Sparse kernels

- stock int8: ONNX Runtime's own operators, from a QDQ file. auto int8: the same file as `pruneonce.load` runs it. It gives a
  matrix to the sparse kernels where they are faster. dense fp32: a plain `torch.onnx.export` without zeros.
- Times are of whole calls, on the same threads and the same inputs. No text is padded.
- Weights are random but for r8's own. Their zeros lie anywhere or in blocks of 1x4: four inputs of one output.
- This processor can seem to be an older one: newer instructions are hidden from the process. ONNX Runtime and the kernels
  then take other code. Caches and clock stay those of this machine.
- Not measured: other machines, ARM, more than two threads, the patterns 4x1 and N:M.
"""
NAMES = {"amx": "AMX", BARRED: "AVX-512 VNNI", "avxvnni": "AVX-VNNI, without AVX-512", "avx2": "AVX2 alone"}
LOWEST = 0.97  # of auto in the grid, times stock
OF_DEEPSPARSE = 0.6  # of its time, at most
CORES = sorted(os.sched_getaffinity(0))
KINDS = {"stock int8": "stock", "auto int8": "auto", "dense fp32": "stock"}  # of sessions -> execution

Side = Callable[[], float]  # one call's milliseconds


@dataclass(frozen=True)
class Bars:
    """Weights that are measured in these cells, and the least times faster than stock int8 and dense fp32, if any."""

    shape: str
    weights: str
    cells: tuple[Cell, ...]
    stock: float | None = None
    dense: float | None = None


BARS = (
    Bars("BERT-Base", "85 % anywhere", (ONE, TWO), 1.25, 4),
    Bars("BERT-Base", "90 % anywhere", (ONE, TWO), 1.7, 5),
    Bars("BERT-Base", "85 % in 1x4", (ONE, TWO)),
    Bars("BERT-Base", "90 % in 1x4", (ONE, TWO), 2.6, 8),
    Bars("BERT-Base", "90 % anywhere", (EIGHT,), 1.5, 4.5),
    Bars("MiniLM-L6", "85 % anywhere", (TWO,)),
    Bars("MiniLM-L6", REAL, (TWO,), 1.7, 3.1),
)


class Files:
    """The files of each shape, made when they are asked for."""

    def __init__(self, folder: Path, real: Path | None):
        self.folder, self.real = folder, real

    def dense(self, shape: str) -> Path:
        """The plain export in fp32."""
        return self._made(f"{shape}-dense", lambda path: infer.plain(_config(shape), path))

    def int8(self, shape: str, weights: str) -> Path:
        if weights == REAL:
            assert self.real is not None
            return self.real
        return self._made(f"{shape}-{weights}", lambda path: infer.pruned_int8(_config(shape), path, _prune(weights)))

    def for_deepsparse(self) -> Path:
        """BERT-Base in fp32 with 90 % zeros, for 1 x 128 tokens, by the older exporter: so DeepSparse is fastest."""
        return self._made("deepsparse", _for_deepsparse)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.folder / f"{name.replace(' ', '-').replace('%', 'percent')}.onnx"
        if not path.exists():
            make(path)
        return path


def _config(shape: str) -> BertConfig:
    return BertConfig(**models.SHAPES[shape])


def _prune(weights: str) -> infer.Prune:
    pattern, sparsity = WEIGHTS[weights]
    return partial(masks.prune, sparsity=sparsity, select=patterns.uniform(patterns.PATTERNS[pattern]))


def _for_deepsparse(path: Path) -> None:
    model = infer.pruned(_config("BERT-Base"), masks.MaskedLinear, _prune("90 % anywhere"))
    masks.bake(model)
    model.config.return_dict = False
    batch = random_tokens(TWO.batch, TWO.tokens, seed=SEED)
    values = tuple(batch[name] for name in infer.INPUTS)
    torch.onnx.export(model, values, path, dynamo=False, opset_version=14, input_names=infer.INPUTS, output_names=["logits"])


def sides(sessions: Mapping[str, runtime.Session], cell: Cell) -> dict[str, Side]:
    batch = random_tokens(cell.batch, cell.tokens, seed=SEED)
    return {name: partial(milliseconds, partial(runtime.logits, running, batch)) for name, running in sessions.items()}


def open_sessions(files: Mapping[str, Path], threads: int) -> dict[str, runtime.Session]:
    """By name of KINDS. Each thread but the caller's is bound to a core."""
    cores = ";".join(str(core + 1) for core in CORES[1:threads])  # ONNX Runtime counts from 1
    entries = {**QUIET, **({"session.intra_op_thread_affinities": cores} if cores else {})}
    return {
        name: execution.session(path, threads=threads, execution=KINDS[name], entries=entries)
        for name, path in files.items()
    }


@contextmanager
def bound() -> Iterator[None]:
    """Bind the calling thread to the first core: else a scheduler may run it and a waking thread on the same one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@bound()
def take_turns(sides: Mapping[str, Side], *, seconds: float, least: int, most: int) -> dict[str, list[float]]:
    """Milliseconds by name and round. As many rounds as fit into `seconds`, from `least` to `most`."""
    once = {name: min(side(), side()) for name, side in sides.items()}  # the first call warms up
    calls = {name: int(min(max(200 / ms, 1), 3)) for name, ms in once.items()}

    def turn(name: str) -> float:
        return min(sides[name]() for _ in range(calls[name]))

    rounds = 1e3 * seconds / sum(calls[name] * once[name] for name in sides)
    return in_turn({name: partial(turn, name) for name in sides}, int(min(max(rounds, least), most)))


def bars(files: Files, *, deepsparse: Path | None) -> Iterator[Row]:
    """One row for each of BARS and cell."""
    for wanted in BARS:
        if wanted.weights == REAL and files.real is None:
            continue
        path = files.int8(wanted.shape, wanted.weights)
        paths = {"stock int8": path, "auto int8": path, "dense fp32": files.dense(wanted.shape)}
        for cell in wanted.cells:
            plan = execution.matrices(path, execution="auto", threads=cell.threads)
            with ExitStack() as ends:
                calls = sides(open_sessions(paths, cell.threads), cell)
                if deepsparse and wanted.shape == "BERT-Base" and wanted.weights == "90 % anywhere" and cell != EIGHT:
                    calls["DeepSparse fp32"] = ends.enter_context(DeepSparse(deepsparse, files.for_deepsparse(), cell))
                found = take_turns(calls, seconds=10, least=7, most=60)
            sparse = sum(matrix.kernel == "sparse" for matrix in plan)
            yield {**bars_row(wanted, cell, found), "matrices by the kernel": f"{sparse} of {len(plan)}"}


def bars_row(wanted: Bars, cell: Cell, found: Mapping[str, list[float]]) -> Row:
    """A line of the bars' table. found: milliseconds by name and round."""
    row: dict[str, object] = {
        "shape": wanted.shape,
        "batch x tokens": f"{cell.batch} x {cell.tokens}",
        "threads": cell.threads,
        "weights": wanted.weights,
        **{f"{name}, ms": median(times) for name, times in found.items()},
    }
    for name, least in (("stock int8", wanted.stock), ("dense fp32", wanted.dense)):
        times = ratio(found[name], found["auto int8"])
        row |= {f"times {name}": times, f"bar, {name}": bar(f">= {least} x", met=times >= least) if least else ""}
    if "DeepSparse fp32" in found:
        share = ratio(found["auto int8"], found["DeepSparse fp32"])
        row |= {"of DeepSparse's time": share, "bar, DeepSparse": bar(f"<= {OF_DEEPSPARSE}", met=share <= OF_DEEPSPARSE)}
    return row


class DeepSparse:
    """A process of another Python that calls DeepSparse; within the context, a `Side`.

    It sees the processor as it is: it handles faults itself, and has no code for AMX.
    """

    def __init__(self, python: Path, file: Path, cell: Cell):
        sizes = map(str, (cell.threads, cell.batch, cell.tokens))
        self.words = [str(python), str(ROOT / "benchmarks/deepsparse_calls.py"), str(file), *sizes]

    def __enter__(self) -> Side:
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        env = {**seeming.plain_environment(), "NM_BIND_THREADS_TO_CORES": "1"}  # as the threads of the other sides
        self.process = subprocess.Popen(self.words, stdin=pipe, stdout=pipe, stderr=quiet, text=True, env=env)
        while (line := self._line()) != "ready\n":
            if not line:
                raise RuntimeError(f"expected that DeepSparse loads the model, found exit code {self.process.wait()}")
        return self._call

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # closes its input, which ends it

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def _call(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())


def grid(files: Files, shape: str) -> Iterator[Row]:
    """For each cell, auto's speed as a multiple of stock's, by weights. Without a sparse matrix auto is stock, and is 1."""
    found: dict[Cell, dict[str, float]] = {cell: {} for cell in GRID}
    stock: dict[Cell, list[float]] = {cell: [] for cell in GRID}
    for weights, threads in itertools.product(GRID_WEIGHTS, sorted({cell.threads for cell in GRID})):
        path = files.int8(shape, weights)
        same = all(matrix.kernel == "stock" for matrix in execution.matrices(path, execution="auto", threads=threads))
        sessions = {} if same else open_sessions({"stock int8": path, "auto int8": path}, threads)
        for cell in (cell for cell in GRID if cell.threads == threads):
            found[cell][weights] = 1.0
            if sessions:
                times = take_turns(sides(sessions, cell), seconds=2, least=5, most=60)
                found[cell][weights] = ratio(times["stock int8"], times["auto int8"])
                stock[cell] += times["stock int8"]
    for cell, times_stock in found.items():
        named = {"batch x tokens": f"{cell.batch} x {cell.tokens}", "threads": cell.threads}
        yield {**named, "stock int8, ms": median(stock[cell]) if stock[cell] else "", **times_stock}


def lowest(rows: list[Row]) -> str:
    """The lowest of the grid's ratios, with its bar."""
    least, where = min(
        (row[name], f"{row['batch x tokens']}, {row['threads']} threads, {name}") for row in rows for name in GRID_WEIGHTS
    )
    reached = bar(f">= {LOWEST} x", met=least >= LOWEST)
    return f"1: no matrix is given to the sparse kernels, so auto is stock. Lowest: {least:.3f} ({where}); {reached}."


def cost_here(path: Path, name: str) -> Row:
    """Seconds to load a session, and MiB that this process has more after it and one call; also at its peak."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    (running,) = open_sessions({name: path}, TWO.threads).values()
    loaded = time.perf_counter() - began
    sides({name: running}, TWO)[name]()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = 1024 * int(status["VmHWM"].split()[0])
    mib = {"resident MiB": process.memory_info().rss - before, "peak MiB": peak - before}
    return {"load, s": loaded, **{key: value / 2**20 for key, value in mib.items()}}


def costs(files: Files) -> Iterator[Row]:
    """`cost_here` of each session, in a process of its own."""
    for shape, weights in itertools.product(models.SHAPES, ("85 % anywhere", "90 % anywhere", "90 % in 1x4")):
        int8 = files.int8(shape, weights)
        for name, path in {"stock int8": int8, "auto int8": int8, "dense fp32": files.dense(shape)}.items():
            if name == "auto int8" or weights == "90 % anywhere":
                words = [sys.executable, "-m", "benchmarks.sparse", "--here", str(path), name]
                done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                of = weights if name == "auto int8" else "any"
                yield {"shape": shape, "session": name, "weights": of, **json.loads(done.stdout.splitlines()[-1])}


def tables(files: Files, kind: str, args: argparse.Namespace) -> None:
    """Print what is measured in this process, whose processor is of that kind."""
    title, rows = f"Sparse kernels on {NAMES[kind]}", list(bars(files, deepsparse=args.deepsparse))
    if kind != BARRED:
        rows = [{name: value for name, value in row.items() if not name.startswith("bar")} for row in rows]
    publish(title, rows, which_processor(kind), file=args.json)
    if args.quick:
        return
    for shape in models.SHAPES:
        rows = list(grid(files, shape))
        publish(f"{title}: auto's speed as a multiple of stock's, {shape}", rows, lowest(rows), file=args.json)
    publish(f"{title}: memory and load time, {TWO.threads} threads", list(costs(files)), file=args.json)


def which_processor(kind: str) -> str:
    """What the figures are of, in a few sentences."""
    if kind == seeming.seems():
        return f"Newer instructions than {NAMES[kind]} were hidden from all sides but DeepSparse."
    return "Nothing of the processor was hidden."


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--processor", nargs="+", choices=seeming.KINDS, default=[BARRED], help=f"default: {BARRED}")
    parser.add_argument("--quick", action="store_true", help="the table of the bars alone")
    parser.add_argument("--export", type=Path, help="a folder with a real int8.onnx of MiniLM-L6: data/export/r8")
    parser.add_argument("--deepsparse", type=Path, metavar="PYTHON", help="of an environment with DeepSparse 1.8")
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)  # measure here, on one kind of processor
    parser.add_argument("--here", nargs=2, metavar=("FILE", "SESSION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the exporters' own
    logging.disable(logging.WARNING)
    if args.here:
        print(json.dumps(cost_here(Path(args.here[0]), args.here[1])))
    elif args.files:
        (kind,) = args.processor
        tables(Files(args.files, args.export / "int8.onnx" if args.export else None), kind, args)
    else:
        with one_line_errors():
            every_processor(args)


def every_processor(args: argparse.Namespace) -> None:
    """Measure in a process for each kind of processor. Raises KernelsError without the library of the kernels."""
    if (found := execution.processor()) is None:
        raise KernelsError(f"expected the library of the sparse kernels, found none. {execution.BUILD}")
    print(INTRODUCTION, flush=True)
    own = found.split()[-1]  # "avx512vnni amx" is of the kind amx
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.processor:
            words = ["-m", "benchmarks.sparse", "--files", folder, "--processor", kind]
            for name in ("export", "deepsparse", "json"):
                words += [f"--{name}", str(value)] if (value := getattr(args, name)) else []
            words += ["--quick"] if args.quick or kind != args.processor[0] else []
            if own in seeming.newer(kind):
                code = seeming.run(kind, words)
            elif own == kind:
                code = subprocess.run([sys.executable, *words]).returncode
            else:
                print(f"Nothing was measured on {NAMES[kind]}: this processor does not have it.\n", flush=True)
                continue
            if code:
                sys.exit(code)
    if not args.quick and own in ("amx", BARRED):
        publish(f"Sparse kernels on {NAMES[BARRED]}: the linears alone", rate.rates(), rate.NOTE, file=args.json)


if __name__ == "__main__":
    main()
