"""Operators that are given what they do not take: a result or one clear error, and the process lives."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import helper

from pruneonce.deployment.sparse_form import sparse_form
from tests.kernels import models
from tests.kernels.models import FLOAT, GRID, UINT8, node

CASES = 150  # random ones, for each operator
TOKENS = 48


@dataclass
class Case:
    """One operator. fed, constants: its inputs in their order, by name; an array that is None is left out."""

    op_type: str
    inputs: dict[str, np.ndarray | None]
    constants: set[str] = field(default_factory=set)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=lambda: {"y": FLOAT, "q": UINT8})

    def run(self, library_file) -> list[np.ndarray]:
        there = {name: array for name, array in self.inputs.items() if array is not None}
        stored = {name: array for name, array in there.items() if name in self.constants}
        fed = {name: array for name, array in there.items() if name not in self.constants}
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in fed.items()}
        names = [name if name in there else "" for name in self.inputs]
        ours = node(self.op_type, names, [name.strip("-") for name in self.outputs], **self.attributes)
        named = {name: kind for name, kind in self.outputs.items() if not name.startswith("-") and name}
        # A model without an output is none: so another node gives one.
        extra = node("Constant", [], ["there"], domain="", value_float=1.0)
        made = models.model([ours, extra], kinds, {**named, "there": FLOAT}, stored)
        return models.session(made, library_file).run(None, fed)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def good() -> dict[str, Case]:
    form = sparse_form(models.sparse(np.random.default_rng(0), 40, 390))
    weight = {name: getattr(form, name) for name in ("words", "index", "counts", "rows")}
    linear = {"x": np.zeros((TOKENS, 392), np.uint8), **weight, "scale": floats(40), "bias": floats(40)}
    one = {"y": FLOAT}
    return {
        "Tile": Case("Tile", {"x": floats(3, 16, 8)}, outputs=one),
        "Untile": Case("Untile", {"x": floats(TOKENS, 8), "like": floats(3, 16, 5)}, outputs=one),
        "Quantize": Case("Quantize", {"x": floats(TOKENS, 8)}, attributes=dict(GRID), outputs={"q": UINT8}),
        "SparseLinear": Case(
            "SparseLinear", linear, set(linear) - {"x"}, {"inputs": 390, "zero_point": 7, "activation": 2, **GRID}
        ),
        "AddNormalize": Case(
            "AddNormalize",
            {"a": floats(TOKENS, 8), "b": floats(TOKENS, 8), "gain": floats(8), "bias": floats(8)},
            {"gain", "bias"},
            {"epsilon": 1e-5, **GRID},
        ),
        "Attention": Case(
            "Attention",
            {"x": floats(TOKENS, 48), "like": floats(3, 16, 5), "mask": np.zeros((3, 1, 1, 16), np.float32)},
            attributes={"heads": 2, "scale": 0.5, **GRID},
        ),
    }


@pytest.mark.parametrize("op_type", good())
def test_what_they_take(library_file, op_type):
    assert all(np.isfinite(result).all() for result in good()[op_type].run(library_file))


def given(name: str, array) -> Callable[[Case], None]:
    return lambda case: case.inputs.update({name: array})


def changed(name: str, at: int, value: int) -> Callable[[Case], None]:
    """An element of a constant is another."""

    def change(case: Case) -> None:
        case.inputs[name] = case.inputs[name].copy()  # type: ignore[union-attr]
        case.inputs[name].flat[at] = value  # type: ignore[union-attr, index]

    return change


def attribute(**values) -> Callable[[Case], None]:
    return lambda case: case.attributes.update(values)


def without(name: str) -> Callable[[Case], None]:
    return lambda case: case.attributes.pop(name)


def fed(name: str) -> Callable[[Case], None]:
    return lambda case: case.constants.remove(name)


NAN, INF = float("nan"), float("inf")
BAD_GRIDS = [(attribute(output_scale=value), "output_scale") for value in (0.0, -1.0, NAN, INF, 1e-45)] + [
    (attribute(output_zero_point=256), "output_zero_point from 0 to 255"),
    (attribute(output_zero_point=-(2**63)), "output_zero_point from 0 to 255"),
    (attribute(output_zero_point=1.5), "type"),
    (without("output_scale"), "output_scale"),
    (without("output_zero_point"), "output_zero_point"),
]
TILES = r"input 0 in tiles"
WEIGHT = "words, index, counts, rows, scale and bias of one weight"
INSIDE = "words, index, counts and rows that fit together"
BAD: dict[str, list[tuple[Callable[[Case], None], str]]] = {
    "Tile": [
        (given("x", np.array(1, np.float32)), r"x as float\[\.\.\., channels\]"),
        (given("x", floats(3, 0)), r"x as float\[\.\.\., channels\]"),
        (given("x", floats(*[1] * 9)), "at most 8 axes"),
        (given("x", np.zeros((2, 2))), "Type"),
        (given("x", None), "x|input"),
    ],
    "Untile": [
        (given("x", floats(TOKENS)), TILES),
        (given("x", floats(47, 8)), TILES),
        (given("x", floats(TOKENS, 0)), TILES),
        (given("x", floats(3, 16, 8)), TILES),
        (given("x", None), "input"),
        (given("like", None), "input"),
        (given("like", floats(3, 17, 5)), "as many tokens in x as in like"),
        (given("like", floats(3, 15, 0)), r"like as float\[\.\.\., channels\]"),
        (given("like", np.array(3, np.float32)), r"like as float\[\.\.\., channels\]"),
        (given("like", floats(*[1] * 9)), "at most 8 axes"),
    ],
    "Quantize": [
        (given("x", floats(TOKENS)), TILES),
        (given("x", floats(1, 8)), TILES),
        (given("x", np.zeros((TOKENS, 8), np.uint8)), "Type"),
        *BAD_GRIDS,
    ],
    "SparseLinear": [
        (given("x", np.zeros((TOKENS, 390), np.uint8)), TILES),
        (given("x", np.zeros((TOKENS, 396), np.uint8)), TILES),
        (given("x", np.zeros((TOKENS + 1, 392), np.uint8)), TILES),
        (given("x", np.zeros((TOKENS * 392), np.uint8)), TILES),
        (given("x", np.zeros((TOKENS, 392), np.int8)), "Type"),
        *(
            (fed(name), f"input {at} as a constant of . axes, found a value that is no constant")
            for at, name in enumerate(list(good()["SparseLinear"].inputs)[1:], 1)
        ),
        *((given(name, None), "input") for name in good()["SparseLinear"].inputs),
        (given("words", np.zeros((1, 1), np.int32)), "input 1 as a constant of 1 axes"),
        (given("words", np.zeros(1, np.int32)), WEIGHT),
        (given("words", np.zeros(0, np.int32)), WEIGHT),
        (given("words", np.zeros(1, np.int64)), "Type"),
        (given("index", np.zeros(3, np.uint8)), WEIGHT),
        (given("index", np.zeros(3, np.int8)), "Type"),
        (given("counts", np.zeros((1, 40), np.uint8)), WEIGHT),
        (given("counts", np.zeros((2, 39), np.uint8)), WEIGHT),
        (given("counts", np.zeros(80, np.uint8)), "input 3 as a constant of 2 axes"),
        (given("counts", np.full((2, 40), 255, np.uint8)), INSIDE),
        (given("counts", np.zeros((2, 40), np.uint8)), INSIDE),
        (given("rows", np.zeros((2, 40), np.uint16)), INSIDE),
        (given("rows", np.full((2, 40), 65535, np.uint16)), INSIDE),
        (given("rows", np.zeros((40, 2), np.uint16)), WEIGHT),
        (changed("index", 5, 96), INSIDE),
        (changed("index", -1, 2), INSIDE),  # the second block has two groups
        (changed("counts", 0, 0), INSIDE),
        (changed("counts", 79, 90), INSIDE),
        (changed("rows", 0, 32), INSIDE),  # an output of the next chunk
        (changed("rows", 35, 40), INSIDE),  # no such output
        (given("scale", floats(39)), WEIGHT),
        (given("scale", floats(0)), WEIGHT),
        (given("scale", floats(1, 40)), "input 5 as a constant of 1 axes"),
        (given("bias", floats(41)), WEIGHT),
        *((attribute(inputs=value), "inputs from 1 to") for value in (0, -1, 2**31, 2**63 - 1, 2**14 + 1)),
        (attribute(inputs=384), WEIGHT),
        (attribute(inputs=386), INSIDE),
        (attribute(inputs=769), WEIGHT),
        (attribute(zero_point=-1), "zero_point from 0 to 255"),
        (attribute(zero_point=256), "zero_point from 0 to 255"),
        (attribute(activation=4), "activation from 0 to 3"),
        (attribute(activation=-1), "activation from 0 to 3"),
        *((without(name), name) for name in ("inputs", "zero_point", "activation")),
        *BAD_GRIDS,
    ],
    "AddNormalize": [
        (given("a", floats(TOKENS, 9)), TILES),
        (given("a", floats(TOKENS)), TILES),
        (given("a", None), "input"),
        (given("b", floats(TOKENS, 9)), "input 1 in tiles"),
        (given("b", floats(TOKENS + 16, 8)), "as many tokens in a as in b"),
        (given("b", floats(0, 8)), "as many tokens in a as in b"),
        (given("b", np.array(1, np.float32)), "input 1 in tiles"),
        (given("gain", floats(7)), "gain and bias of the same channels"),
        (given("bias", floats(7)), "gain and bias of the same channels"),
        (given("gain", floats(8, 1)), "input 2 as a constant of 1 axes"),
        (given("gain", None), "input"),
        (fed("gain"), "input 2 as a constant of 1 axes"),
        (fed("bias"), "input 3 as a constant of 1 axes"),
        (without("epsilon"), "epsilon"),
        (attribute(epsilon=1), "type"),
        *((attribute(epsilon=value), "epsilon") for value in (-1.0, NAN, INF)),
        *BAD_GRIDS,
    ],
    "Attention": [
        (given("x", floats(TOKENS, 47)), "heads of a multiple of 4 channels in x"),
        (given("x", floats(TOKENS, 36)), "heads of a multiple of 4 channels in x"),
        (given("x", floats(TOKENS)), TILES),
        (given("x", None), "input"),
        (given("like", floats(TOKENS, 5)), r"like as float\[texts, length, channels\]"),
        (given("like", floats(3, 17, 5)), "as many tokens in x as in like"),
        (given("like", None), "input"),
        (given("mask", np.zeros((3, 1, 16, 16), np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.zeros((3, 16), np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.zeros((2, 1, 1, 16), np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.zeros((3, 1, 1, 15), np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.zeros((0, 1, 1, 16), np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.array(0, np.float32)), r"mask as float\[texts, 1, 1, length\]"),
        (given("mask", np.zeros((3, 1, 1, 16), np.int64)), "Type"),
        *((attribute(heads=value), "heads") for value in (0, -1, 3, 7, 2**31, 2**31 - 1, 2**63 - 1)),
        (attribute(scale=1), "type"),
        *((attribute(scale=value), "scale") for value in (NAN, INF, -INF)),
        (without("heads"), "heads"),
        *BAD_GRIDS,
    ],
}
LIST = [(op_type, number) for op_type, cases in BAD.items() for number in range(len(cases))]


def test_the_list_is_long():
    assert set(BAD) == set(good())
    assert len(LIST) > 140


@pytest.mark.parametrize(("op_type", "number"), LIST)
def test_what_they_do_not_take(library_file, op_type, number):
    case, (damage, said) = good()[op_type], BAD[op_type][number]
    damage(case)
    with pytest.raises(Exception, match=said) as caught:
        case.run(library_file)
    message = str(caught.value)
    if found := re.search(r"pruneonce\.(\w+): (.*)", message, re.DOTALL):
        assert found[1] == op_type
        assert re.fullmatch(r"expected .+, found .+\. Write the file again: pruneonce accelerate\.", found[2])


def outcome(case: Case, library_file) -> tuple[str, list[np.ndarray] | None]:
    """(message, None) of an error, ("", results) without one."""
    try:
        return "", case.run(library_file)
    except Exception as error:
        return str(error), None


@pytest.mark.parametrize("op_type", good())
def test_outputs_that_the_model_does_not_name(library_file, op_type):
    """None of them is named: there is nothing to write, or ONNX Runtime says which it needs."""
    case = good()[op_type]
    case.outputs = {f"-{name}": kind for name, kind in case.outputs.items()}
    case.outputs = {"": FLOAT, "-": FLOAT} if len(case.outputs) == 2 else {"": FLOAT}
    said, results = outcome(case, library_file)
    assert results or "output" in said


def damaged(case: Case, generator: np.random.Generator) -> None:
    """One to three things are another, at random."""
    names = list(case.inputs)
    for _ in range(generator.integers(1, 4)):
        name = names[generator.integers(len(names))]
        array = case.inputs[name]
        kind = generator.integers(8)
        if kind == 0:
            case.inputs[name] = None
        elif kind == 1 and array is not None:  # a size
            shape = list(array.shape)
            if shape:
                shape[generator.integers(len(shape))] = int(generator.choice([0, 1, 2, 3, 15, 16, 17, 64, 200]))
            case.inputs[name] = np.resize(array, shape)
        elif kind == 2 and array is not None:  # a rank
            rank = generator.integers(10)
            case.inputs[name] = np.resize(array, [int(n) for n in generator.choice([1, 1, 2, 4, 16], rank)])
        elif kind == 3 and array is not None:
            with np.errstate(invalid="ignore"):
                case.inputs[name] = array.astype(generator.choice(["f4", "u1", "i1", "u2", "i4", "i8", "f8"]))
        elif kind == 4:
            case.constants ^= {name}
        elif kind == 5 and array is not None and array.size:  # values
            array = array.copy()
            at = generator.integers(array.size, size=generator.integers(1, 5))
            extreme = [np.nan, np.inf, -np.inf, 3e38, -3.4e38, 1e-45] if array.dtype.kind == "f" else [0, 1, 95, 96, 127]
            array.flat[at] = generator.choice(extreme)
            case.inputs[name] = array
        elif kind == 6 and case.attributes:
            one = generator.choice(list(case.attributes))
            values = [0, 1, -1, 3, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 0.0, -1.0, 1e-38, 3e38, NAN, INF, "text", [1, 2]]
            case.attributes[one] = values[generator.integers(len(values))]
        elif kind == 7:
            kept = list(case.outputs)[: generator.integers(1, 3)]
            case.outputs = {name: case.outputs[name] for name in kept}


@pytest.mark.parametrize("op_type", good())
def test_anything(library_file, op_type):
    """Random damage. A result has the type that it should have; an error says something."""
    results = errors = 0
    for seed in range(CASES):
        case = copy.deepcopy(good()[op_type])
        damaged(case, np.random.default_rng(seed))
        said, found = outcome(case, library_file)
        if found is None:
            assert len(said) > 20, case
            errors += 1
        else:
            assert [array.dtype for array in found[:-1]] == [
                np.dtype("f4" if kind == FLOAT else "u1") for kind in case.outputs.values()
            ]
            results += 1
    assert results > 5
    assert errors > 5
