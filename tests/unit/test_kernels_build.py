"""How the library of the kernels is built: which compiler is taken, what it is told, what is said where it fails."""

import platform
import shlex
import sys
from pathlib import Path

import pytest

from kernels import build
from pruneonce.errors import KernelsError
from tests.conftest import ROOT

MACHINE = platform.machine()
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]
# Writes down its words, and refuses a flag as an old compiler does.
COMPILER = """
import pathlib, shlex, sys
here = pathlib.Path(__file__).parent
with (here / "log").open("a") as log:
    log.write(shlex.join(sys.argv[1:]) + "\\n")
if (here / "refused").exists() and (refused := (here / "refused").read_text()) in sys.argv:
    sys.exit(f"cc: error: unrecognized option '{refused}'\\ncompilation terminated.")
pathlib.Path(sys.argv[-1]).write_text("library")
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(programs on PATH, distributions of Python) -> a machine that has these and no others."""

    def make(*programs: str, distributions: tuple[str, ...] = ()) -> None:
        for name in programs:
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o755)
        for name in distributions:
            (tmp_path / f"{name}-1.dist-info").mkdir()
            (tmp_path / f"{name}-1.dist-info/METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delenv("CC", raising=False)

    return make


@pytest.mark.parametrize(
    ("programs", "target", "found"),
    [
        (["clang", "gcc", "cc"], MACHINE, ["cc"]),
        (["clang", "gcc"], MACHINE, ["gcc"]),
        (["clang"], MACHINE, ["clang"]),
        ([f"{OTHER}-linux-gnu-gcc"], MACHINE, build.ZIG),
        (["cc", f"{OTHER}-linux-gnu-gcc"], OTHER, [f"{OTHER}-linux-gnu-gcc"]),
        (["cc", "gcc", "clang"], OTHER, build.ZIG),
    ],
)
def test_the_compiler_is_the_machines_and_ziglangs_where_it_has_none(machine, programs, target, found):
    machine(*programs, distributions=("ziglang",))
    assert build.find_compiler(target) == found


def test_the_variable_cc_names_the_compiler_of_this_machine(machine, monkeypatch):
    machine("cc", f"{OTHER}-linux-gnu-gcc")
    monkeypatch.setenv("CC", "ccache 'gcc 12' -m64")
    assert build.find_compiler(MACHINE) == ["ccache", "gcc 12", "-m64"]
    assert build.find_compiler(OTHER) == [f"{OTHER}-linux-gnu-gcc"]


def test_no_compiler_is_one_error(machine):
    machine()
    with pytest.raises(KernelsError, match=r"^expected a C compiler \(cc, gcc, clang\) or ziglang, found neither\. Ins"):
        build.find_compiler(MACHINE)


def fake(folder: Path, name: str) -> list[str]:
    """The words that start a compiler that compiles nothing, and writes to a file `log` beside it."""
    (folder / name).write_text(COMPILER)
    return [sys.executable, str(folder / name)]


def told(folder: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("name", ["cc", "zig"])
@pytest.mark.parametrize(
    ("target", "paths"),
    [("x86_64", ["avx2", "avx512vnni", "avxvnni", "portable"]), ("aarch64", ["portable"]), ("riscv64", ["portable"])],
)
def test_one_file_is_compiled_for_each_path_and_the_others_once(tmp_path, name, target, paths):
    build.build(tmp_path / "kernels.so", compiler=fake(tmp_path, name), target=target)
    *compiled, linked = told(tmp_path)
    by_path = {word[7:]: words for words in compiled for word in words if word.startswith("-DPATH=")}
    assert sorted(by_path) == paths
    machine_flags = {path: {word for word in words if word.startswith("-m")} for path, words in by_path.items()}
    assert machine_flags["portable"] == set()
    assert all(f"-m{path}" in machine_flags[path] for path in paths if path != "portable")
    assert all("kernels/path.c" in words for words in by_path.values())
    once = [words for words in compiled if "kernels/path.c" not in words]
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").glob("*.c")}
    assert len(once) == len(sources) - 1
    assert {word for words in compiled for word in words if word.endswith(".c")} == sources
    assert not any(word.startswith("-m") for words in once for word in words)
    assert all("-ffp-contract=off" in words for words in compiled), "all paths round alike"
    assert {word for word in linked if word.endswith(".o")} == {words[-1] for words in compiled}
    for words in (*compiled, linked):
        assert ("-target" in words) == (words[:2] == ["-target", f"{target}-linux-gnu.2.17"]) == (name == "zig")
        assert not any(word.startswith("-march") for word in words)


def test_a_compiler_that_is_too_old_is_one_error_with_its_own_words(tmp_path):
    compiler, output = fake(tmp_path, "cc"), tmp_path / "kernels.so"
    build.build(output, compiler=compiler, target="x86_64")
    assert output.read_text() == "library"
    (tmp_path / "refused").write_text("-mavxvnni")
    with pytest.raises(KernelsError) as raised:
        build.build(output, compiler=compiler, target="x86_64")
    said = str(raised.value)
    assert "found: cc: error: unrecognized option '-mavxvnni' compilation terminated." in said
    assert "Install gcc 11, clang 12 or a newer one" in said
    assert "\n" not in said
    assert not output.exists(), "a library of other sources is worse than none"


def test_a_compiler_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(KernelsError, match=r"^expected a C compiler, found: .*/no-such-cc'\. Install"):
        build.build(tmp_path / "kernels.so", compiler=[str(tmp_path / "no-such-cc")], target=MACHINE)


@pytest.mark.parametrize("words", [["--sanitize"], ["--target", OTHER]])
def test_only_the_library_of_this_machine_goes_into_the_package(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build", *words])
    with pytest.raises(SystemExit):
        build.main()
    assert "--output is needed" in capsys.readouterr().err
