"""The corpus is a function of what params.yaml names: other folders that lie beside it change no byte."""

import copy
import shutil
from pathlib import Path

import pytest
from datasets.arrow_writer import ArrowWriter

from pipeline.hashing import file_md5
from tests.integration import tiny

STAGES = ("fetch_local", "prepare_task", "list_tasks", "prepare_corpus")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project in which everything up to the corpus has run, with a stray task whose test texts are lines of the corpus."""
    run(tmp_path, tiny.document(), STAGES)
    stray = tmp_path / "data/tasks/stray"
    shutil.copytree(tmp_path / "data/tasks" / tiny.TASK, stray)
    lines = (tmp_path / "data/raw/corpus/train.txt").read_text().splitlines()
    with ArrowWriter(path=str(stray / "test.arrow")) as writer:
        for line in lines[: len(lines) // 2]:
            writer.write({"text": line})
        writer.finalize()
    shutil.copytree(tmp_path / "data/raw/corpus", tmp_path / "data/raw/stray")
    (tmp_path / "data/tasks/a-file").touch()
    return tmp_path


def run(folder: Path, document: dict, stages: tuple[str, ...]) -> None:
    for command in tiny.commands(document):
        if command.stage in stages:
            tiny.run(command, folder, document)


def test_a_stray_folder_changes_no_byte_of_the_corpus(folder):
    tokens = folder / "data/prepare_corpus/tokens"
    before = file_md5(tokens)
    run(folder, tiny.document(), ("prepare_corpus",))
    assert file_md5(tokens) == before
    document = tiny.document()
    document["tasks"]["stray"] = copy.deepcopy(document["tasks"][tiny.TASK])
    run(folder, document, ("list_tasks", "prepare_corpus"))
    assert file_md5(tokens) != before, "the stray task's texts are in the corpus: nothing was tested"


def test_a_number_of_a_task_is_no_reason_to_make_the_corpus_again(folder):
    names = folder / "data/task_names.json"
    before = names.read_bytes()
    document = tiny.document()
    document["tasks"][tiny.TASK]["finetune"]["epochs"] = 9.0
    run(folder, document, ("list_tasks",))
    assert names.read_bytes() == before
    assert "tasks" not in tiny.stages()["prepare_corpus"]["params"]
