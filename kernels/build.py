"""Build the library of the sparse kernels with a C compiler of this machine, or with that of the ziglang wheel.

    python -m kernels.build [--output FILE] [--compiler "WORDS"] [--target ARCHITECTURE] [--sanitize] [--install-zig]

The same sources and the same compiler give the same bytes, in every folder.
There is no __init__.py beside this file: transformers would take a package `kernels` for that of Hugging Face.
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pruneonce.errors import KernelsError
from pruneonce.terminal import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "pruneonce/deployment/kernels.so"
ZIGLANG = "ziglang==0.17.0"  # unpacks to 411 MB: only where there is no other compiler
ZIG = [sys.executable, "-m", "ziglang", "cc"]
GLIBC = "2.17"  # the oldest that runs what ziglang builds: that of manylinux2014
ADVICE = (
    f"Install gcc 11, clang 12 or a newer one, or `pip install {ZIGLANG}` and set CC='python -m ziglang cc'. Then run "
    "`python -m kernels.build`. Until then everything works without the sparse kernels."
)

# path.c is compiled once for each path: architecture -> path -> flags of the machine.
PORTABLE: dict[str, tuple[str, ...]] = {"portable": ()}
PATHS = {
    "x86_64": {
        **PORTABLE,
        "avx2": ("-mavx2", "-mfma"),
        "avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
        "avx512vnni": (
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
            "-mprefer-vector-width=512",
        ),
    },
}
# Without contraction all paths and compilers round alike; math functions set no errno, so a square root is one instruction.
ARITHMETIC = ("-ffp-contract=off", "-fno-math-errno")
COMPILE = ("-std=c11", "-Wall", "-Wextra", *ARITHMETIC, "-fPIC", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}=.")
LINK = ("-shared", "-Wl,--as-needed", "-Wl,--build-id=none", "-Wl,-z,defs")


class Flags(NamedTuple):
    compile: tuple[str, ...]
    link: tuple[str, ...]


RELEASE = Flags(("-O3",), ("-s",))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SANITIZED = Flags(("-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS), SANITIZERS)


def find_compiler(target: str) -> list[str]:
    """The words that start a C compiler for an architecture.

    They are those of $CC, else `cc`, `gcc` or `clang`, else ziglang's. For another architecture than this machine's they are
    `<architecture>-linux-gnu-gcc`, else ziglang's.
    Raises KernelsError where there is none.
    """
    native = target == platform.machine()
    if native and (words := shlex.split(os.environ.get("CC", ""))):
        return words
    names = ("cc", "gcc", "clang") if native else (f"{target}-linux-gnu-gcc",)
    for name in filter(shutil.which, names):
        return [name]
    try:
        metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        raise KernelsError(f"expected a C compiler ({', '.join(names)}) or ziglang, found neither. {ADVICE}") from None
    return ZIG


def find_or_install_compiler(target: str) -> list[str]:
    """As `find_compiler`, but where there is none ziglang is installed beside this Python.

    Raises KernelsError with pip's last line.
    """
    try:
        return find_compiler(target)
    except KernelsError:
        print(f"There is no C compiler: pip installs {ZIGLANG}, a download of 100 MB.", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ZIGLANG]
    done = subprocess.run(pip, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise KernelsError(f"expected a C compiler, or {ZIGLANG} on the package index, found neither: {said}. {ADVICE}")
    return ZIG


def is_zig(compiler: Iterable[str]) -> bool:
    """Whether these words start zig's compiler, which builds for any architecture and for an older glibc."""
    return any("zig" in Path(word).name for word in compiler)


def run(words: list[str]) -> None:
    """Run a compiler in the project's folder and show its warnings. Raises KernelsError with its message."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise KernelsError(f"expected a C compiler, found: {error}. {ADVICE}") from None
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise KernelsError(f"expected that this compiles: {shlex.join(words)}, found: {said}. {ADVICE}")
    sys.stderr.write(done.stderr)


def build(output: Path, *, compiler: list[str], target: str, flags: Flags = RELEASE) -> None:
    """Write the library for an architecture. A file that is there is replaced, and removed if this fails.

    Raises KernelsError if the compiler cannot be started, or does not take the sources or the flags, and outside of Linux.
    """
    if sys.platform != "linux":
        raise KernelsError(f"expected Linux, found {sys.platform}. Everything works without the sparse kernels.")
    output.unlink(missing_ok=True)
    if flags is SANITIZED and is_zig(compiler):
        raise KernelsError("expected gcc for the sanitizers, found ziglang, which drops that of addresses. Install gcc.")
    words = [*compiler, *(("-target", f"{target}-linux-gnu.{GLIBC}") if is_zig(compiler) else ())]
    once = [path for path in sorted((ROOT / "kernels").glob("*.c")) if path.stem != "path"]
    units = [(path.stem, path, ()) for path in once] + [
        (name, ROOT / "kernels/path.c", (f"-DPATH={name}", *machine))
        for name, machine in PATHS.get(target, PORTABLE).items()
    ]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [f"{scratch}/{name}.o" for name, _, _ in units]
        commands = [
            [*words, *COMPILE, *flags.compile, *extra, "-c", str(source.relative_to(ROOT)), "-o", made]
            for (_, source, extra), made in zip(units, objects, strict=True)
        ]
        list(pool.map(run, commands))
        made = f"{scratch}/kernels.so"
        run([*words, *LINK, *flags.link, *objects, "-lm", "-o", made])
        output.parent.mkdir(parents=True, exist_ok=True)
        new = output.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, new)
        new.replace(output)  # at once: a process may load it meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.build", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help=f"the library to write, instead of {LIBRARY.relative_to(ROOT)}")
    parser.add_argument("--compiler", type=shlex.split, help="the words that start it, instead of those that are found")
    parser.add_argument("--target", default=platform.machine(), help="an architecture: x86_64, aarch64")
    parser.add_argument(
        "--sanitize",
        action="store_const",
        dest="flags",
        const=SANITIZED,
        default=RELEASE,
        help="with checks of memory and of undefined behaviour while it runs",
    )
    parser.add_argument(
        "--install-zig",
        action="store_const",
        dest="find",
        const=find_or_install_compiler,
        default=find_compiler,
        help=f"install {ZIGLANG} if there is no compiler",
    )
    given = parser.parse_args()
    if given.output is None and (given.flags is not RELEASE or given.target != platform.machine()):
        parser.error("--output is needed: this library is not for the package")
    output = given.output or LIBRARY
    with one_line_errors():
        compiler = given.compiler or given.find(given.target)
        build(output, compiler=compiler, target=given.target, flags=given.flags)
        print(f"{output}: {', '.join(PATHS.get(given.target, PORTABLE))}, built by {shlex.join(compiler)}")


if __name__ == "__main__":
    main()
