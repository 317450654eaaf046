"""Fault 6 of the reference: a typo in the configuration is an error that names it."""

import copy
from pathlib import Path

import pytest

from pipeline import params
from pruneonce.errors import ConfigError

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.yaml"))


@pytest.fixture
def document():
    return params.read_yaml(next(p for p in PROFILES if p.name == "tiny.yaml"))


def test_every_profile_is_valid():
    assert PROFILES
    for path in PROFILES:
        assert params.load(path).tasks


@pytest.mark.parametrize("section", ["sparsify", "quantize", "common"])
def test_fault_6_a_typo_is_an_error(document, section):
    document[section]["sparsityy"] = 0.9
    with pytest.raises(ConfigError, match=rf"{section}.*sparsityy"):
        params.parse(document, "params.yaml")


def test_fault_6_a_typo_in_one_task_is_an_error(document):
    document["tasks"]["topic"]["finetune"] = {"learning_rat": 1e-4}
    with pytest.raises(ConfigError, match=r"tasks\.topic\.finetune.*learning_rat"):
        params.parse(document, "params.yaml")


def test_fault_6_every_key_must_be_there(document):
    for section in ("common", "sparsify", "prepare_corpus", "export", "evaluate"):
        for key in document[section]:
            changed = copy.deepcopy(document)
            del changed[section][key]
            with pytest.raises(ConfigError, match=rf"{section}\.{key}: Field required"):
                params.parse(changed, "params.yaml")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("sparsify", {"sparsity": 90}, "less than 1"),
        ("sparsify", {"sparsity": "0.9"}, "valid number"),
        ("sparsify", {"prune_begin_steps": 25}, "prune_begin_steps <= prune_end_steps"),
        ("sparsify", {"initial_sparsity": 0.9}, "initial_sparsity <= sparsity"),
        ("sparsify", {"temperature": 0.0}, "greater than 0"),
        ("sparsify", {"batch_size": 8, "micro_batches": 3}, "multiple of micro_batches"),
        ("common", {"prunable": "("}, "regular expression"),
    ],
)
def test_what_is_out_of_range_or_order_is_an_error(document, section, changes, message):
    document[section] |= changes
    with pytest.raises(ConfigError, match=message):
        params.parse(document, "params.yaml")
