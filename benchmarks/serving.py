"""What a served model answers: requests a second and their time, for 1, 8 and 32 clients at once, of `mlflow models serve`.

`--export` names a folder with int8.onnx. `--splits` has the texts: one a request, each client its own connection. The server
and the clients share this machine's cores. Settings take turns in rounds; figures are the median over rounds.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from benchmarks.measuring import Row, arguments, publish
from pipeline.tracking import packaging
from pruneonce.tasks.splits import read_split

CLIENTS = (1, 8, 32)
THREADS = (1, 2)  # of a call
START_SECONDS = 120.0


@contextmanager
def served(model: Path, threads: int) -> Iterator[str]:
    """The address of a server of the MLflow model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PRUNEONCE_THREADS": str(threads)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *words], env=env, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while not _answers(address):
            if time.monotonic() > end:
                raise TimeoutError(f"no server after {START_SECONDS:.0f} s")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ping").status_code == 200
    except httpx.HTTPError:
        return False


def load(address: str, texts: list[str], *, clients: int, requests: int) -> tuple[float, list[float]]:
    """(requests a second, ms of each). Raises where one is refused."""

    def one_client(share: list[str]) -> list[float]:
        times = []
        with httpx.Client(timeout=60) as client:
            for text in share:
                began = time.perf_counter()
                client.post(f"{address}/invocations", json={"dataframe_records": [{"text": text}]}).raise_for_status()
                times.append(1e3 * (time.perf_counter() - began))
        return times

    asked = list(islice(cycle(texts), requests))
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [ms for client in pool.map(one_client, [asked[i::clients] for i in range(clients)]) for ms in client]
    return requests / (time.perf_counter() - began), times


def measure(model: Path, texts: list[str], *, requests: int, rounds: int) -> list[Row]:
    """A row for each number of threads and clients."""
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for threads in THREADS:
        with served(model, threads) as address:
            load(address, texts, clients=8, requests=40)  # warm
            for _ in range(rounds):
                for clients in CLIENTS:
                    rate, times = load(address, texts, clients=clients, requests=requests)
                    found.setdefault((threads, clients), []).append((rate, *np.percentile(times, (50, 99))))
    return [
        {
            "threads of a call": threads,
            "clients": clients,
            "requests a second": round(median(rate for rate, _, _ in rows)),
            "p50 ms": median(p50 for _, p50, _ in rows),
            "p99 ms": median(p99 for _, _, p99 in rows),
        }
        for (threads, clients), rows in found.items()
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--export", type=Path, default=Path("data/export/r8"), help="default: %(default)s")
    parser.add_argument("--splits", type=Path, default=Path("data/tasks/r8"), help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=320, help="of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    texts = read_split(args.splits / "test.arrow")["text"][:]
    with tempfile.TemporaryDirectory() as folder:
        packaging.save(args.export / "int8.onnx", Path(folder) / "model")
        rows = measure(Path(folder) / "model", texts, requests=args.requests, rounds=args.rounds)
    publish("Serving", rows, file=args.json)


if __name__ == "__main__":
    main()
