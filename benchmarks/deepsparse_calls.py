"""Run by the Python of an environment with DeepSparse: a call of a model for each line that is read, in milliseconds.

python deepsparse_calls.py FILE THREADS BATCH TOKENS
"""

import sys
import time

import numpy as np
from deepsparse import Engine


def main() -> None:
    file, *sizes = sys.argv[1:]
    threads, batch, tokens = map(int, sizes)
    shape = [batch, tokens]
    engine = Engine(model=file, batch_size=batch, num_cores=threads, input_shapes=[shape, shape])
    ids = np.random.default_rng(1).integers(1000, 30000, shape)
    inputs = [ids, np.ones_like(ids)]
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        engine.run(inputs)
        print(1e3 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
