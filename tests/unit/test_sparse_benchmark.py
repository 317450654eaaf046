"""The benchmark of the sparse kernels: bars, turns, other processors, DeepSparse's process, the rate of the inner loop."""

import platform
import shutil
import subprocess
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import infer, rate, seeming, sparse
from pruneonce.deployment import execution
from pruneonce.deployment.sparse_form import SparseForm, sparse_form
from pruneonce.errors import KernelsError

PROCESSOR = execution.processor()
COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))


def test_a_row_of_the_bars_has_ratios_within_a_round_and_its_bars():
    wanted = sparse.Bars("BERT-Base", "90 % anywhere", (sparse.TWO,), stock=2.0, dense=5.0)
    found = {"stock int8": [4.0, 40.0, 4.0], "auto int8": [2.0, 20.0, 2.0], "dense fp32": [8.0, 80.0, 8.0]}
    row = sparse.bars_row(wanted, sparse.TWO, found)
    assert row["auto int8, ms"] == 2.0
    assert (row["times stock int8"], row["bar, stock int8"]) == (2.0, ">= 2.0 x, met")
    assert (row["times dense fp32"], row["bar, dense fp32"]) == (4.0, ">= 5.0 x, missed")
    assert "of DeepSparse's time" not in row
    row = sparse.bars_row(wanted, sparse.TWO, {**found, "DeepSparse fp32": [2.5, 25.0, 2.5]})
    assert (row["of DeepSparse's time"], row["bar, DeepSparse"]) == (0.8, "<= 0.6, missed")


def test_weights_without_a_bar_have_none():
    row = sparse.bars_row(
        sparse.Bars("BERT-Base", "85 % in 1x4", (sparse.ONE,)), sparse.ONE, {n: [1.0] for n in sparse.KINDS}
    )
    assert (row["bar, stock int8"], row["bar, dense fp32"]) == ("", "")


def test_a_turn_is_the_fastest_of_up_to_three_calls():
    called: list[str] = []

    def side(name: str, values: list[float]):
        again = iter(values)
        return lambda: called.append(name) or next(again)

    sides = {"slow": side("s", [900.0, 300.0, 301.0, 302.0]), "fast": side("f", [9.0, 8.0, 3.0, 1.0, 2.0, 6.0, 5.0, 4.0])}
    found = sparse.take_turns(sides, seconds=0.0, least=2, most=9)
    assert found == {"slow": [301.0, 302.0], "fast": [1.0, 4.0]}
    assert "".join(called) == "ssff" + "sfff" * 2


def test_the_lowest_of_the_grid_is_named():
    row = {"batch x tokens": "1 x 16", "threads": 2, **dict.fromkeys(sparse.GRID_WEIGHTS, 1.2)}
    assert "Lowest: 1.200" in sparse.lowest([row])
    said = sparse.lowest([row, {**row, "batch x tokens": "8 x 16", "80 % anywhere": 0.9}])
    assert said.endswith("Lowest: 0.900 (8 x 16, 2 threads, 80 % anywhere); >= 0.97 x, missed.")


def test_where_no_matrix_is_sparse_the_grid_is_one_and_opens_no_session(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse.Files, "int8", lambda files, shape, weights: tmp_path / weights)
    monkeypatch.setattr(execution, "matrices", lambda path, **how: [Namespace(kernel="stock")])
    monkeypatch.setattr(execution, "session", None)
    rows = list(sparse.grid(sparse.Files(tmp_path, None), "MiniLM-L6"))
    assert len(rows) == len(infer.GRID)
    assert {row[name] for row in rows for name in sparse.GRID_WEIGHTS} == {1.0}


def test_a_file_is_made_once(tmp_path, monkeypatch):
    made: list[str] = []
    monkeypatch.setattr(infer, "plain", lambda config, path: made.append(path.name) or path.touch())
    files = sparse.Files(tmp_path, tmp_path / "real.onnx")
    assert files.dense("MiniLM-L6") == files.dense("MiniLM-L6")
    assert made == ["MiniLM-L6-dense.onnx"]
    assert files.int8("MiniLM-L6", sparse.REAL) == tmp_path / "real.onnx"


def test_deepsparse_answers_one_call_for_each_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho a banner\necho ready\nwhile read line; do echo 1.5; done\n")
    python.chmod(0o755)
    with sparse.DeepSparse(python, tmp_path / "model.onnx", sparse.TWO) as call:
        assert [call(), call()] == [1.5, 1.5]
    python.write_text("#!/bin/sh\necho a banner\nexit 3\n")
    with pytest.raises(RuntimeError, match="exit code 3"):
        sparse.DeepSparse(python, tmp_path / "model.onnx", sparse.TWO).__enter__()


@pytest.mark.parametrize(
    ("own", "hidden", "measured", "named"),
    [
        ("avx512vnni amx", ["avx512vnni", "avx2"], ["amx"], []),
        ("avx512vnni", ["avx2"], ["avx512vnni"], ["AMX"]),
        ("avx2", [], ["avx2"], ["AVX-512 VNNI", "AMX"]),
    ],
)
def test_each_kind_of_processor_is_measured_or_named(monkeypatch, capfd, own, hidden, measured, named):
    asked = {"hidden": list[str](), "measured": list[str](), "quick": list[bool]()}

    def note(where: str, words: list[str]) -> int:
        asked[where].append(words[words.index("--processor") + 1])
        asked["quick"].append("--quick" in words)
        return 0

    monkeypatch.setattr(execution, "processor", lambda: own)
    monkeypatch.setattr(rate, "rates", lambda: [{"measured": "the linears alone"}])
    monkeypatch.setattr(seeming, "run", lambda kind, words: note("hidden", words))
    monkeypatch.setattr(subprocess, "run", lambda words: Namespace(returncode=note("measured", words)))
    kinds = ["avx512vnni", "amx", "avx2"]
    sparse.every_processor(Namespace(processor=kinds, quick=False, export=None, deepsparse=None, json=None))
    assert (asked["hidden"], asked["measured"]) == (hidden, measured)
    assert asked["quick"] == [kind != "avx512vnni" for kind in kinds if kind in hidden + measured]
    lines = capfd.readouterr().out.splitlines()
    assert ("| the linears alone |" in lines) == (own != "avx2")  # its loop is that of AVX-512 VNNI
    assert [line for line in lines if line.startswith("Nothing")] == [
        f"Nothing was measured on {name}: this processor does not have it." for name in named
    ]


def test_without_the_library_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(execution, "processor", lambda: None)
    with pytest.raises(KernelsError, match="kernels"):
        sparse.every_processor(Namespace())


def test_kinds_are_newest_first():
    assert seeming.newer("amx") == ()
    assert seeming.newer("avxvnni") == ("amx", "avx512vnni")


@pytest.mark.skipif(not COMPILER or PROCESSOR is None, reason="needs a compiler and the library")
@pytest.mark.parametrize("kind", seeming.KINDS[1:])
def test_a_processor_seems_to_be_an_older_one(kind, capfd):
    if "cpuid_fault" not in seeming.CPUINFO.read_text() or str(PROCESSOR).split()[-1] not in seeming.newer(kind):
        pytest.skip("this processor cannot")
    code = seeming.run(kind, ["-c", "from pruneonce.deployment import execution; print(execution.processor())"])
    assert (code, capfd.readouterr().out.strip()) == (0, kind)
    assert seeming.run(kind, ["-c", "import ctypes; ctypes.string_at(0)"]) < 0  # another fault still ends the process


def test_a_processor_that_cannot_seem_to_be_another_is_named(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2\n")
    monkeypatch.setattr(seeming, "CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(KernelsError, match="expected a processor whose cpuid can fault"):
        seeming.run("avx2", [])


def test_the_loads_of_the_inner_loop_are_counted():
    assert rate.roofline(128) == pytest.approx(1.6)  # 8 of activations, a word, an index: 10 loads in 5 cycles
    assert rate.roofline(16) == pytest.approx(2 / 3)


def test_zeros_lie_in_runs():
    weight = rate.weight(64, 128, 4, 0.9)
    groups = (weight != 0).reshape(64, 32, 4)
    assert (groups.all(2) == groups.any(2)).all()
    assert np.mean(weight == 0) == pytest.approx(0.9, abs=0.02)


@pytest.mark.skipif(not COMPILER or platform.machine() != "x86_64", reason="needs a compiler")
def test_products_take_time_and_a_damaged_weight_none(tmp_path):
    loops, form = rate.library("portable", tmp_path), sparse_form(rate.weight(40, 400, 1, 0.5))
    assert 1e8 < loops.hertz() < 1e10
    assert 0 < rate.seconds(loops, form, 40, 400, 32) < 1
    damaged = SparseForm(form.words[:-1], form.index[:-1], form.counts, form.rows)
    assert rate.seconds(loops, damaged, 40, 400, 32) < 0
