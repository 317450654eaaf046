"""Fault 6 of the reference: a typo in the configuration is an error that names it."""

import copy
import functools
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.params import profiles
from pipeline.params.document import override, parse
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.params.sources import LocalSource
from pruneonce.errors import ConfigError

ROOT = Path(__file__).parents[2]
VARIANTS = {"dense", "one_shot", "gradual", "once_hard", "once"}  # of study/dvc.yaml
WEIGHTS = {"temperature": 2.0, "hard_weight": 0.0, "soft_weight": 1.0, "hidden_weight": 0.0, "attention_weight": 0.0}
ATTENTION = {"distillation": WEIGHTS | {"attention_weight": 1.0}}


@pytest.fixture
def document():
    return read_yaml(ROOT / "profiles/tiny.yaml")


def test_every_profile_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in profiles.names():
        params = parse(parse_yaml(profiles.read(name), name), name)
        params.check_study(VARIANTS)
        params.check_patterns()
    assert len(profiles.names()) == 11


@pytest.mark.parametrize("section", ["sparsify", "quantize", "common"])
def test_fault_6_a_typo_is_an_error(document, section):
    document[section]["sparsityy"] = 0.9
    with pytest.raises(ConfigError, match=rf"{section}.*sparsityy"):
        parse(document, "params.yaml")


def test_fault_6_a_typo_in_one_task_is_an_error(document):
    document["tasks"]["topic"]["finetune"] = {"learning_rat": 1e-4}
    with pytest.raises(ConfigError, match=r"tasks\.topic\.finetune.*learning_rat"):
        parse(document, "params.yaml")


def test_fault_6_every_key_must_be_there(document):
    for section in ("common", "sparsify", "prepare_corpus", "export", "evaluate"):
        for key in document[section]:
            changed = copy.deepcopy(document)
            del changed[section][key]
            with pytest.raises(ConfigError, match=rf"{section}\.{key}: Field required"):
                parse(changed, "params.yaml")


def test_a_task_changes_single_weights_of_the_recipe(document):
    document["tasks"]["topic"]["finetune"] = {"distillation": {"soft_weight": 0.5}}
    p = parse(document, "params.yaml")
    assert p.section("finetune", "topic").distillation.model_dump() == WEIGHTS | {"soft_weight": 0.5}
    assert p.section("quantize", "topic").distillation.model_dump() == WEIGHTS


@pytest.mark.parametrize("block", ["finetune", "tasks.topic.finetune"])
def test_an_override_reaches_into_the_section_distillation(document, block):
    override(document, f"{block}.distillation.hidden_weight=0.5")
    found = parse(document, "params.yaml").section("finetune", "topic").distillation
    assert found.model_dump() == WEIGHTS | {"hidden_weight": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune.distilation.hidden_weight=0.5", "found 'distilation' in override"),
        ("tasks.topic.finetune.distilation.hidden_weight=0.5", "finetune.*distilation: Extra inputs are not permitted"),
        ("tasks.topic.finetun.epochs=1", "found 'finetun' in override"),
    ],
)
def test_an_override_of_a_key_that_is_not_there_is_an_error(document, change, message):
    def changed():
        override(document, change)
        return parse(document, "params.yaml")

    with pytest.raises(ConfigError, match=message):
        changed()


def test_a_task_changes_single_gates(document):
    override(document, "tasks.topic.gates.least_sparsity=0.5")
    p = parse(document, "params.yaml")
    assert p.gates_of("topic") == p.gates.model_copy(update={"least_sparsity": 0.5})
    assert p.section("tasks").gates == {"topic": {"least_sparsity": 0.5}}
    assert p.section("tasks").names == ["topic"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks.topic.gates.leastsparsity=0.5", r"gates with tasks\.topic\.gates: leastsparsity: Extra inputs"),
        ("tasks.topic.gates.least_sparsity=1.0", "least_sparsity: Input should be less than 1, found 1.0"),
        ("gates.most_packed_bytes=0", r"gates\.most_packed_bytes: Input should be greater than 0"),
        ("gates.most_score_drop=0.0", r"gates\.most_score_drop: Input should be greater than 0"),
        ("tasks.topic.gate.least_sparsity=0.5", "found 'gate' in override"),
    ],
)
def test_a_gate_that_cannot_be_is_an_error(document, change, message):
    def changed():
        override(document, change)
        return parse(document, "params.yaml")

    with pytest.raises(ConfigError, match=message):
        changed()


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": "2:4", "sparsity": 0.5, "initial_sparsity": 0.0},
        {"pattern": "4:8", "sparsity": 0.5, "criterion": "magnitude"},
        {"pattern": "1x4", "scope": "global", "first_criterion": "magnitude", "criterion": "movement"},
        {"pattern": "4x1"},
    ],
)
def test_patterns_scopes_and_criteria_that_agree(document, changes):
    document["sparsify"] |= changes
    found = parse(document, "params.yaml").sparsify
    assert {key: getattr(found, key) for key in changes} == changes


def test_a_pattern_is_no_sexagesimal_number():
    """YAML 1.1 reads 2:4 as 124."""
    assert parse_yaml("pattern: 2:4", "here") == {"pattern": "2:4"}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("sparsify", {"sparsity": 90}, "less than 1"),
        ("sparsify", {"sparsity": "0.9"}, "valid number"),
        ("sparsify", {"prune_begin_steps": 25}, "prune_begin_steps <= prune_end_steps"),
        ("sparsify", {"initial_sparsity": 0.9}, "initial_sparsity <= sparsity"),
        ("sparsify.distillation", {"temperature": 0.0}, "greater than 0"),
        ("sparsify", {"pattern": "2:4"}, r"pattern 2:4 is sparsity 0\.5, found 0\.85"),
        ("sparsify", {"pattern": "4:8", "sparsity": 0.5, "scope": "global"}, "need scope uniform with pattern 4:8"),
        ("sparsify", {"pattern": "3:8"}, "'unstructured', '1x4', '4x1', '2:4' or '4:8'"),
        ("sparsify", {"scope": "global"}, "need scope uniform with second_order"),
        ("sparsify", {"scope": "global", "first_criterion": "magnitude"}, "need scope uniform with second_order"),
        ("sparsify", {"criterion": "movement"}, "need first_criterion magnitude with movement"),
        ("sparsify", {"first_criterion": "movement"}, "'magnitude', 'second_order' or 'least_squares'"),
        ("sparsify", {"first_criterion": "least_squares", "pattern": "1x4"}, "need pattern unstructured with least_squares"),
        (
            "sparsify",
            {"first_criterion": "least_squares", "criterion": "movement"},
            "need first_criterion magnitude with movement: what least_squares prunes",
        ),
        ("sparsify", {"batch_size": 8, "micro_batches": 3}, "multiple of micro_batches"),
        ("sparsify.distillation", {"hard_weight": 0.0, "hidden_weight": 0.0}, "hidden_weight, attention_weight above 0"),
        ("finetune.distillation", {"soft_weight": 0.0}, "hidden_weight, attention_weight above 0"),
        ("quantize.distillation", {"soft_weight": 0.0}, "hidden_weight, attention_weight above 0"),
        ("study.variants.dense", {"hard_weight": 0.0}, "need one of hard_weight, soft_weight above 0"),
        ("study.variants.dense", {"hard_weight": 0.5}, "need hard_weight 1 where soft_weight is 0, found 0.5"),
        ("sparsify", {"dropout": None} | ATTENTION, "in sparsify needs .* dropout 0.0, found eager and None"),
        ("quantize", {"dropout": 0.1} | ATTENTION, "in quantize of topic needs .* dropout 0.0"),
        ("quantize", {"begin_ratio": 0.6}, "need begin_ratio <= freeze_ranges_ratio, found 0.6 and 0.5"),
        ("quantize", {"epochs": -1}, "greater than or equal to 0"),
        ("finetune", {"epochs": 0}, "greater than 0"),
        ("prepare_corpus", {"short_ratio": 1.5}, "less than or equal to 1"),
        ("prepare_teacher", {"masking_probability": 0.0}, "need masking_probability above 0"),
        ("prepare_task", {"validation_ratio": 0.5, "test_ratio": 0.5}, r"need validation_ratio \+ test_ratio < 1"),
        ("tasks.topic.prepare_task", {"label": None}, "classification needs `label`, the column of the label"),
        (
            "tasks.topic.prepare_task",
            {"kind": "embedding", "metric": "spearman", "pair": "other"},
            "embedding reads `label`, the column of a class, or `pair`",
        ),
        ("sparsify", {"prunable": "("}, "regular expression"),
        ("study", {"steps": {"other": 3}}, "exactly the tasks"),
        ("study.claims", {"when": [["once", "twice"]]}, r"claims, baselines and longer name variants \['twice'\]"),
        ("study.longer", {"variants": ["twice"]}, r"claims, baselines and longer name variants \['twice'\]"),
        ("study.claims", {"how": [["magnitude", "movement"]]}, "'magnitude', 'second_order' or 'least_squares'"),
        ("study.claims", {"smaller": [[0.9]]}, "at least 2 items"),
        ("study.recipe", {"learning_rates": [2e-3, 1e-3]}, r"learning_rates must rise, found \[0\.002, 0\.001\]"),
        ("study.recipe", {"first_learning_rate": 0.5}, "first_learning_rate must be of learning_rates, found 0.5"),
        ("study.longer", {"steps": 40}, "longer.steps must be more than those of steps, found 40"),
        ("study", {"sparsities": [1.0]}, "less than 1"),
        ("study.claims", {"when": [["dense", "once"]]}, "name variants with a sparsity, found dense, which has none"),
        ("patterns", {"patterns": ["1x4", "1x4"]}, r"patterns must differ, found \['1x4', '1x4'\]"),
        ("patterns", {"seeds": [3]}, "at least 2 items"),
        ("patterns", {"more_tasks": ["topic"]}, r"each task once in tasks and more_tasks, found \['topic'\] twice"),
        (
            "sparsify",
            {"schedule": "rewound", "prune_end_steps": 29, "freeze_masks_steps": 29},
            "found 11 and 4: a rewind",
        ),
    ],
)
def test_what_is_out_of_range_or_order_is_an_error(document, section, changes, message):
    block = functools.reduce(dict.__getitem__, section.split("."), document)
    block |= changes
    with pytest.raises(ConfigError, match=message):
        parse(document, "params.yaml")


@pytest.mark.parametrize(
    ("seeds", "message"), [([1], "at least 2 items"), ([1, 1], r"recipe: seeds must differ, found \[1, 1\]")]
)
def test_a_spread_needs_two_seeds(document, seeds, message):
    document["study"]["recipe"]["seeds"] = seeds
    with pytest.raises(ConfigError, match=message):
        parse(document, "params.yaml")


def test_a_study_needs_one_dense_variant(document):
    del document["study"]["variants"]["dense"]
    with pytest.raises(ConfigError, match=r"need one variant with pruning none, .* found \[\]"):
        parse(document, "params.yaml")


@pytest.mark.parametrize("section", ["sparsify", "finetune", "quantize"])
def test_attention_is_read_from_the_eager_implementation_alone(document, section):
    document[section]["distillation"]["attention_weight"] = 0.5
    parse(document, "params.yaml")
    document["common"]["attention"] = "sdpa"
    with pytest.raises(ConfigError, match=rf"attention_weight 0\.5 in {section}.* needs common\.attention eager .*sdpa"):
        parse(document, "params.yaml")


def test_a_study_of_tasks_that_are_not_there_is_an_error_where_it_runs(document):
    document["study"].update(tasks=["other"], steps={"other": 3})
    with pytest.raises(ConfigError, match=r"expected study\.tasks among the tasks \['topic'\], found \['other'\]"):
        parse(document, "tiny").check_study(VARIANTS)


@pytest.mark.parametrize(
    ("changes", "sparsities", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.5}, [0.5, 0.9], r"found 0\.9: sparsify: pattern 2:4 is sparsity 0\.5, found 0\.9"),
        ({"initial_sparsity": 0.7}, [0.6], r"found 0\.6: sparsify: need initial_sparsity <= sparsity, found 0\.7 and 0\.6"),
    ],
)
def test_a_study_at_a_sparsity_that_cannot_be_reached_is_an_error_where_it_runs(document, changes, sparsities, message):
    document["sparsify"] |= changes
    document["study"]["sparsities"] = sparsities
    with pytest.raises(ConfigError, match=rf"expected study\.sparsities that sparsify can reach, {message}"):
        parse(document, "tiny").check_study(VARIANTS)


@pytest.mark.parametrize(
    ("longer", "found"),
    [
        ({"task": "other"}, "task other"),
        ({"sparsity": 0.3}, "gradual by second_order at 0.3, once by second_order at 0.3, once_hard by second_order at 0.3"),
        ({"criterion": "least_squares", "variants": ["once"]}, "once by least_squares at 0.9"),
    ],
)
def test_longer_cells_that_the_study_does_not_have_are_an_error_where_it_runs(document, longer, found):
    """Else it would run without them, and say nothing."""
    parse(document, "tiny").check_study(VARIANTS)
    document["study"]["longer"] |= longer
    with pytest.raises(ConfigError, match=f"expected cells of the study in study.longer, found {re.escape(found)}, which"):
        parse(document, "tiny").check_study(VARIANTS)


def test_patterns_that_cannot_be_compared_are_an_error_where_they_run(document):
    document["patterns"]["sparsities"] = [0.4]
    with pytest.raises(ConfigError, match=r"expected patterns\.sparsities that sparsify can reach, found 0\.4: .*initial"):
        parse(document, "tiny").check_patterns()
    document["patterns"]["tasks"] = ["other"]
    with pytest.raises(ConfigError, match=r"expected patterns\.tasks among the tasks \['topic'\], found \['other'\]"):
        parse(document, "tiny").check_patterns()


@pytest.mark.parametrize("wired", [VARIANTS - {"once"}, VARIANTS | {"twice"}])
def test_a_study_of_variants_that_are_not_wired_or_not_described_is_an_error_where_it_runs(document, wired):
    parse(document, "tiny").check_study(VARIANTS)
    with pytest.raises(
        ConfigError, match=r"expected study\.variants to be those of study/dvc\.yaml, .*, found .*'once_hard'"
    ):
        parse(document, "tiny").check_study(wired)


@pytest.mark.parametrize("name", ["", "a" * 101, "a\0b", "../a", "a b", "-a", "a\n"])
def test_a_name_is_a_part_of_a_file_s_name(document, name):
    document["tasks"] = {name: document["tasks"]["topic"]}
    with pytest.raises(ConfigError, match=r"tasks\..*: String should (match pattern|have at most 100 characters)"):
        parse(document, "params.yaml")


@pytest.mark.parametrize(
    ("stage", "expected"), [("finetune", "a task of params"), ("fetch_local", "a source below fetch_local")]
)
def test_a_task_or_a_source_that_is_not_there_is_an_error(document, stage, expected):
    for name in ("nowhere", "", None):
        with pytest.raises(ConfigError, match=rf"expected {expected}.*, found {name!r}\. There is: .*topic"):
            parse(document, "params.yaml").section(stage, name)


def test_a_pipe_in_the_place_of_a_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "part.yaml")
    for path in (tmp_path / "part.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"expected a file at .*, found a device or a pipe\. It is not read"):
            read_yaml(path)


def test_a_merge_conflict_is_called_one():
    text = "a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> other\n"
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "params.yaml")
    assert str(caught.value) == (
        "A merge conflict stands in params.yaml: take a side of it, e.g. git checkout --ours -- params.yaml"
    )
    assert parse_yaml("a: |\n  <<<<<<< is no conflict", "params.yaml") == {"a": "<<<<<<< is no conflict"}


def test_a_local_source_has_a_path():
    with pytest.raises(ValidationError, match="at least 1 character"):
        LocalSource(path="", members={"a": "."}, sha256=None)
