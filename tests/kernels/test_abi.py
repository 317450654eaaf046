"""kernels/onnxruntime_abi.h, declared by hand: every slot is called, and each call may fail."""

import ctypes
import platform
import re
import shutil

import numpy as np
import pytest

from kernels import build
from kernels.build import ROOT
from tests.kernels import models, test_operators
from tests.kernels.models import FLOAT, node

HEADER = ROOT / "kernels/onnxruntime_abi.h"
SLOT = re.compile(r"\(\*(\w+)\)\((?:[^()]|\([^()]*\))*\);\s*/\* (\d+) \*/")


class Spy:
    def __init__(self, file):
        self.file, self._c = file, ctypes.CDLL(str(file))

    def _integer(self, name):
        return ctypes.c_int.in_dll(self._c, name)

    def start(self, *, refuse: int = 0) -> None:
        """Count from 0, and refuse call number `refuse`."""
        ctypes.memset(ctypes.addressof(self._counts), 0, ctypes.sizeof(self._counts))
        self._integer("spy_calls").value, self._integer("spy_refuse").value = 0, refuse

    @property
    def _counts(self):
        return (ctypes.c_int * 275).in_dll(self._c, "spy_counts")

    @property
    def called(self) -> set[int]:
        return {slot for slot, count in enumerate(self._counts) if count}

    @property
    def calls(self) -> int:
        return self._integer("spy_calls").value


@pytest.fixture(scope="module")
def spy(library_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spy")
    words = [*build.find_compiler(platform.machine()), *build.COMPILE, "-Ikernels", "-shared", "tests/kernels/spy.c"]
    build.run([*words, "-ldl", "-o", str(folder / "spy.so")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEONCE_SPIED", str(shutil.copy(library_file, folder / "spied.so")))
        yield Spy(folder / "spy.so")


def declared() -> dict[int, str]:
    return {int(slot): name for name, slot in SLOT.findall(HEADER.read_text())}


def test_the_sources_use_each_slot_by_its_own_name():
    union = HEADER.read_text().split("typedef union {")[1].split("} OrtSlot;")[0]
    assert len(declared()) == union.count("(*") - union.count("(*run)") > 10
    sources = "".join(path.read_text() for path in sorted((ROOT / "kernels").glob("*.c")))
    used = {int(slot): name for slot, name in re.findall(r"CALL\([^,]+, (\d+), (\w+)\)", sources)}
    assert used == declared()


def run(spy: Spy) -> np.ndarray:
    """A session of every operator, and its answer."""
    return models.session(test_operators.block(), spy.file).run(None, {"x": test_operators.numbers(2, 9, 32)})[0]


def test_every_slot_is_called(spy):
    """One model of every operator calls all of them but CreateStatus, which an error calls."""
    spy.start()
    expected = run(spy)
    assert np.isfinite(expected).all()
    assert spy.called == set(declared()) - {0}
    made = models.model([node("Tile", ["x"], ["y"])], {"x": FLOAT}, {"y": FLOAT})
    session = models.session(made, spy.file)
    with pytest.raises(Exception, match=r"pruneonce\.Tile: expected x as float\[\.\.\., channels\], found \[\]\. .+\."):
        session.run(None, {"x": np.array(1, np.float32)})
    assert spy.called == set(declared())


def test_any_call_may_fail(spy):
    """Each one in turn: the caller sees that failure, and the next session works."""
    spy.start()
    expected = run(spy)
    for call in range(1, spy.calls + 1):
        spy.start(refuse=call)
        with pytest.raises(Exception, match="refused by the spy"):
            run(spy)
    assert call > 100
    spy.start()
    np.testing.assert_array_equal(run(spy), expected)
