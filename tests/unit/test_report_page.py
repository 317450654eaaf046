"""The report's page and cards: what they say is what was measured, and no text of a user's is markup."""

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import vl_convert
from huggingface_hub import ModelCard

from pipeline.params.metrics import METRICS
from pipeline.report import task_rows
from pipeline.reporting import card, charts, curves, lineage, matrices, origins, page, pareto, timing, training, words
from tests import report_facts as made
from tests.conftest import ROOT
from tests.report_facts import ATTACK

PAGE_CSS = (ROOT / "pipeline/reporting/page.css").read_text()


class Read(HTMLParser):
    """What a browser sees: tags, the text of each script, and each <data> with its row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attrs = Counter[str](), list[tuple[str, dict]]()
        self.scripts, self.numbers = list[str](), list[tuple[dict, dict, str]]()
        self._row: dict = {}
        self._inside, self._text = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags[tag] += 1
        self.attrs.append((tag, found))
        if tag == "tr":
            self._row = found
        if tag in ("script", "data"):
            self._inside, self._text, self._own = tag, "", found

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag == self._inside:
            if tag == "script":
                self.scripts.append(self._text)
            else:
                self.numbers.append((self._row, self._own, self._text))
            self._inside = ""


KINDS = [made.measured(kind.replace("_", "-"), kind) for kind in METRICS]


@pytest.fixture(scope="module")
def known():
    """A task of each kind; the last one without the sparse kernels."""
    last = made.measured("no-kernels", "regression", variants=("dense", "sparse", "int8"))
    return made.facts(*KINDS, last, title=f"Title {ATTACK}")


@pytest.fixture(scope="module")
def text(known) -> str:
    return page.render(known, made.curves(*(task.name for task in known.tasks)))


@pytest.fixture(scope="module")
def read(text) -> Read:
    return Read(text)


@pytest.fixture(scope="module")
def data(read) -> dict:
    return json.loads(read.scripts[0])


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_that_of_a_sweep(seed):
    """Independent: sorted by cost, a row is on the front if no cheaper one reaches its score, and none as cheap beats it."""
    draw = random.Random(seed)
    rows = [{"variant": i, "cost": draw.randrange(6), "score": draw.randrange(6)} for i in range(draw.randrange(1, 12))]
    best, front = -math.inf, set()
    for cost in sorted({row["cost"] for row in rows}):
        same = [row for row in rows if row["cost"] == cost]
        highest = max(row["score"] for row in same)
        if highest > best:
            front |= {row["variant"] for row in same if row["score"] == highest}
            best = highest
    found = pareto.dominated(rows, "cost")
    assert {row["variant"] for row, names in zip(rows, found, strict=True) if not names} == front
    for row, names in zip(rows, found, strict=True):
        for name in names:
            other = rows[name]
            assert (other["cost"], -other["score"]) != (row["cost"], -row["score"])
            assert other["cost"] <= row["cost"]
            assert other["score"] >= row["score"]


def test_two_ways_to_run_one_file_do_not_dominate_each_other():
    rows = [{"variant": name, "cost": 1, "score": 1} for name in "ab"]
    assert pareto.dominated(rows, "cost") == [[], []]


def test_a_dominated_point_names_what_dominates_it():
    task = made.measured("r8")
    rows = task_rows("r8", task.scores, task.latencies)
    chart = charts.trade_off("r8", rows, "packed_bytes", "packed megabytes")
    expected = [", ".join(charts.VARIANTS[n] for n in names) for names in pareto.dominated(rows, "packed_bytes")]
    assert [point["dominated"] for point in chart.rows] == [names or "nothing: it is on the front" for names in expected]
    assert any(expected)


def test_every_number_of_the_table_is_that_of_the_json(known, read, data):
    rows = {(row["task"], row["variant"]): row for task in known.tasks for row in task.rows}
    assert data["rows"] == list(rows.values())
    assert len(read.numbers) == len(rows) * len(page.COLUMNS)
    shows = {column.field: column.shows for column in page.COLUMNS}
    for row, attrs, shown in read.numbers:
        value = rows[row["data-task"], row["data-variant"]][attrs["data-field"]]
        assert float(attrs["value"]) == value
        assert shown == shows[attrs["data-field"]](value)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("score", 0.97123, "97.12"),
        ("score_change", -0.0078, "\u22120.78"),
        ("score_low", 0.9634, "96.3"),
        ("score_high", 0.9771, "97.7"),
        ("sparsity", 0.85004, "85.00"),
        ("file_bytes", 24_140_497, "24.1"),
        ("packed_bytes", 13_310_582, "13.3"),
        ("times_smaller", 6.87, "6.9"),
        ("median_ms", 5.96, "6.0"),
        ("p90_ms", 7.04, "7.0"),
        ("p99_ms", 9.5, "9.5"),
        ("times_faster", 3.256, "3.26"),
        ("resident_bytes", 52_400_000, "52"),
    ],
)
def test_a_cell_is_in_the_unit_of_its_column(field, value, shown):
    (column,) = (column for column in page.COLUMNS if column.field == field)
    assert column.shows(value) == shown
    assert len(page.COLUMNS) == 13, "a line above for each"


def test_the_line_of_a_plot_runs_along_what_nothing_dominates():
    task = made.measured("r8")
    rows = task_rows("r8", task.scores, task.latencies)
    chart = charts.trade_off("r8", rows, "packed_bytes", "packed megabytes")
    best = {row["variant"] for row, names in zip(rows, pareto.dominated(rows, "packed_bytes"), strict=True) if not names}
    assert {point["variant"] for point in chart.rows if point["front"]} == best
    assert [point["cost"] for point in chart.rows] == pytest.approx([row["packed_bytes"] / 1e6 for row in rows])


def test_percentiles_of_a_call_are_those_of_its_row(known):
    rows = known.tasks[0].rows
    found = {(point["variant"], point["what"]): point["ms"] for point in timing.percentiles("r8", rows).rows}
    wanted = {(r["variant"], n): r[f"{'median' if n == 'p50' else n}_ms"] for r in rows for n in ("p50", "p90", "p99")}
    assert found == wanted
    assert len(set(wanted.values())) > len(rows), "the three of a row differ"


def test_differences_have_a_sign_and_zero_has_none():
    assert [page.signed(value) for value in (0.0018, -0.0078, 0.0, -0.00001)] == ["+0.18", "\u22120.78", "0.00", "0.00"]


def test_no_text_of_a_user_is_markup(read, text):
    assert len(read.scripts) == 3, "the data, Vega, and the page's own"
    assert read.tags["img"] == read.tags["b"] == 0
    assert "<script>window.hurt" not in text
    assert "&lt;script&gt;window.hurt" in text
    assert json.loads(read.scripts[0])["rows"]
    assert "<" not in read.scripts[0]
    assert not [attrs for _, attrs in read.attrs if any(name.startswith("on") for name in attrs)]


def test_the_page_names_nothing_outside_of_it(read, text):
    links = [attrs[name] for tag, attrs in read.attrs for name in ("src", "href") if name in attrs]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:", "cards/"))] == []
    policy = next(a["content"] for tag, a in read.attrs if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "url(" not in PAGE_CSS
    assert "secret.csv" not in text


def test_the_same_inputs_give_the_same_bytes(known, text):
    names = [task.name for task in known.tasks]
    assert page.render(known, made.curves(*names)) == text


def test_every_plot_is_vega_lite_and_has_a_place_and_words(read, data):
    places = [attrs for _, attrs in read.attrs if attrs.get("class") == "plot"]
    assert sorted(place["data-chart"] for place in places) == sorted(data["charts"])
    assert len(places) >= 40
    assert all(place["aria-label"] and place["role"] == "img" for place in places)
    for name, chart in data["charts"].items():
        assert chart["rows"], name
        spec = {**chart["spec"], "width": 300, "data": {"name": "rows", "values": chart["rows"]}}
        assert vl_convert.vegalite_to_vega(spec, vl_version="6.4")["marks"], name


def test_each_kind_has_its_plots_and_only_classes_have_matrices(data):
    for kind in METRICS:
        own = [name for name in data["charts"] if name.endswith(f"-{kind.replace('_', '-')}")]
        matrices_of = [name for name in own if name.startswith("confusion-")]
        assert len(matrices_of) == (4 if kind == "classification" else 0), kind
        assert {name.split("-")[0] for name in own} >= {"trade", "heat", "operators", "percentiles"}, kind
    assert {chart["rows"][0].get("variant") for chart in data["charts"].values()} >= {"dense"}


def test_the_kind_is_told_by_the_answers(known):
    assert [task.kind for task in known.tasks] == [*METRICS, "regression"]


def test_a_number_that_is_none_becomes_null():
    assert json.loads(page.embedded({"a": [math.nan, 1.5], "b": math.inf, "c": "</script>"})) == {
        "a": [None, 1.5],
        "b": None,
        "c": "</script>",
    }


def test_confusion_counts_every_row_once():
    draw = random.Random(1)
    labels, found = ([draw.randrange(4) for _ in range(300)] for _ in range(2))
    count = matrices.confusion(labels, found)
    cells = matrices.confusion_cells(count, "abcd", range(4))
    assert sum(cell["rows"] for cell in cells) == 300
    for cell in cells:
        pairs = [
            (a, b) for a, b in zip(labels, found, strict=True) if ("abcd"[a], "abcd"[b]) == (cell["label"], cell["decided"])
        ]
        assert len(pairs) == cell["rows"]
        assert cell["share"] == pytest.approx(len(pairs) / labels.count("abcd".index(cell["label"])))
    (first, *_) = matrices.class_rows(labels, {"dense": found}, "abcd")
    assert first == {"class": "a", "rows": labels.count(0), "right": {"dense": count[0, 0]}}


def test_of_very_many_classes_the_most_confused_are_drawn():
    names = [f"c{i}" for i in range(60)]
    count = Counter({(i, i): 5 for i in range(60)}) + Counter({(50, 51): 9, (3, 50): 2})
    shown = matrices.shown_classes(names, [count])
    assert len(shown) == matrices.MOST_CLASSES
    assert {3, 50, 51} < set(shown)
    assert shown == sorted(shown)


def test_a_matrix_stands_in_the_row_of_its_layer():
    cells = matrices.sparsity_cells({"encoder.layer.10.attention.output.dense": 0.5, "pooler.dense": 0.25})
    assert [(c["layer"], c["matrix"], c["sparsity"]) for c in cells] == [
        ("10", "attention.output", 0.5),
        ("-", "pooler", 0.25),
    ]


def test_curves_are_those_of_the_file(tmp_path):
    rows = [
        {"step": 0, "loss": 2.5, "soft": 1.5, "learning_rate": 1e-4},
        {"step": 5, "loss": 2, "soft": 1, "learning_rate": 0},
    ]
    (tmp_path / "finetune").mkdir()
    path = tmp_path / "finetune/r8.csv"
    path.write_text("step,loss,soft,learning_rate\n0,2.5,1.5,0.0001\n5,2,1,0\n")
    (curve,) = curves.read_all(tmp_path, ["r8"])
    assert (curve.stage, curve.task, curve.losses) == ("finetune", "r8", ["loss", "soft"])
    drawn = training.plots(curve)
    assert [chart.id for chart in drawn] == ["curve-finetune-r8-loss", "curve-finetune-r8-learning-rate"]
    points = {(point["step"], point["part"]): point["value"] for chart in drawn for point in chart.rows}
    assert points == {(row["step"], key): value for row in rows for key, value in row.items() if key != "step"}
    path.write_text("step,loss\n")
    assert list(curves.read_all(tmp_path, ["r8"])) == [], "post-training quantization takes no step"


def test_a_sparse_model_that_was_imported_is_called_so():
    stages = made.stages(["r8"])
    stages["import_sparse"] = made.Stage("import_sparse", {}, {"data/sparsify/model": "i.dir"}, {})
    stages["finetune@r8"].deps["data/sparsify/model"] = "i.dir"
    known = made.facts(made.measured("r8"), locked=stages)
    assert "a sparse checkpoint was imported" in words.pruning(known)
    known = made.facts(made.measured("r8"))
    assert "pattern unstructured" in words.pruning(known)
    jump = known.sparsify.model_copy(update={"first_criterion": "least_squares", "criterion": "magnitude"})
    said = words.pruning(replace(known, sparsify=jump))
    assert f"magnitude (the first jump, to {100 * jump.initial_sparsity:g} %: least squares), " in said


def test_lineage_is_that_of_the_lock():
    stages = made.stages(["a", "b"])
    drawing = lineage.draw(stages, ["a"])
    assert {node.stage.name for node in drawing.nodes} == {
        *("fetch@tiny-bert", "fetch_local@a", "prepare_task@a", "finetune@a", "export@a", "evaluate@a")
    }
    # A chain but for the two sources: the arrows past a stage are implied.
    assert len(drawing.edges) == 5
    both = lineage.draw(stages, ["a", "b"])
    assert len(both.nodes) == 11
    boxes = [(node.x, node.y) for node in both.nodes]
    assert len(set(boxes)) == 11
    for node in both.nodes:
        assert 0 <= node.x <= both.width - lineage.WIDTH
        assert 0 <= node.y <= both.height - lineage.HEIGHT
    assert all(y1 < y2 for _, y1, _, y2 in both.edges), "arrows point down"
    assert lineage.draw(stages, ["c"]).nodes == []


def test_without_a_lock_the_page_and_the_card_say_less():
    bare = made.facts(made.measured("r8"), locked={})
    assert "dvc.lock names no stage of these tasks" in page.render(bare, [])
    assert "epochs" not in card.render(bare, bare.tasks[0])


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.task)
def test_a_card_is_read_by_the_hubs_own_reader(task):
    known = made.facts(task)
    row = known.tasks[0].ships
    written = card.render(known, known.tasks[0])
    found = ModelCard(written)
    data = found.data
    assert data.license == "unknown"
    assert "  # FILL IN" in written.splitlines()[1]
    assert (data.base_model, data.datasets) == ("a-model", [task.task])
    assert {(r.metric_name, r.metric_value) for r in data.eval_results} == set(row["metrics"].items())
    assert {r.dataset_split for r in data.eval_results} == {"test"}
    assert {r.dataset_name for r in data.eval_results} == {task.task}
    assert "secret.csv" not in found.content
    for heading in ("Intended use", "What does not hold", "How it was made", "Scores", "How to reproduce"):
        assert f"\n## {heading}\n" in found.text
    assert f"{100 * row['score']:.2f} %" in found.text
    assert "zeros locked: 3 epochs" in found.text


def test_sources_are_named_as_they_were_published():
    hub = {"repository": "google-bert/bert", "kind": "model", "revision": "f" * 40}
    stages = {"fetch@bert": made.Stage("fetch@bert", {}, {}, {"fetch.bert": hub})}
    found = origins.source("bert", stages)
    assert (found.id, found.published, found.shown) == ("google-bert/bert", True, f"google-bert/bert at {'f' * 12}")
    package = origins.source("tiny-bert", made.stages([]))
    assert package.shown == f"a-model 1.2 (sha256 {'a' * 12})"
    assert origins.source("r8", made.stages(["r8"])).shown == "r8 (files of the user)"


def test_commands_are_those_of_a_clone_or_of_a_project_of_ones_own():
    stages = made.stages(["r8"])
    clone = made.facts(made.measured("r8"), locked=stages)
    assert words.commands(clone, "r8").splitlines()[0].startswith("make install")
    stages["evaluate@r8"].params["pruneonce"] = "0.2.0"
    own = made.facts(made.measured("r8"), locked=stages)
    assert 'pip install "pruneonce[pipeline]==0.2.0"' in card.render(own, own.tasks[0])
    assert "make install" not in page.render(own, [])


def test_limits_name_short_tests_and_differences_that_may_be_noise():
    known = made.facts(made.measured("short", rows=200), made.measured("long", rows=4000))
    said = "\n".join(words.limits(known, known.tasks))
    assert "short (200 rows)" in said
    assert "long (" not in said
    assert "cut after 64 tokens" in said


def test_an_encoder_has_the_length_and_the_weights_of_its_dense_model():
    known = made.facts(made.measured("vectors", "embedding"))
    assert "cut after" not in "\n".join(words.limits(known, known.tasks))
    assert "cuts a text where its dense model does" in "\n".join(words.limits(known, known.tasks))
    shown = card.render(known, known.tasks[0])
    assert "The dense model is the sentence encoder as it is." in shown
    assert "The dense model learned the task" not in shown


def test_machines_are_named_once_each():
    known = made.facts(made.measured("a"), made.measured("b"))
    assert words.machines(known) == [(made.MACHINE, ["a", "b"])]


def test_a_gate_that_fails_is_counted_and_named():
    task = made.measured("r8")
    task.scores["int8"]["sparsity"] = 0.5
    known = made.facts(task)
    shown = page.render(known, [])
    assert "1 gate fails." in words.lead(known)
    assert f"1 of {len(known.tasks[0].verdicts)} gates fail" in shown
    assert "FAILS: sparsity: expected at least" in card.render(known, known.tasks[0])


def luminance(colour: str) -> float:
    """Relative, of sRGB. Source: WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", PAGE_CSS)
    colours = {name: luminance(both[scheme]) for name, *both in pairs}

    def contrast(one: str, other: str) -> float:
        low, high = sorted((colours[one], colours[other]))
        return (high + 0.05) / (low + 0.05)

    for back in ("page", "raised"):
        assert {name for name in ("ink", "muted", "accent", "good", "bad") if contrast(name, back) < 4.5} == set()
        marks = [name for name in colours if name.startswith(("series", "dense", "sparse", "int8")) or name == "ramp-1"]
        assert len(marks) >= 13
        assert {name for name in marks if contrast(name, back) < 3} == set()
    texts = (("good", "good-back"), ("bad", "bad-back"))
    assert {pair for pair in texts if contrast(*pair) < 4.5} == set()


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_number_in_a_cell_is_read_on_every_colour_of_the_ramp(scheme):
    found = {
        name: both[scheme] for name, *both in re.findall(r"--([\w-]*ramp-\d): light-dark\((#\w{6}), (#\w{6})\)", PAGE_CSS)
    }
    low, high = ([int(found[f"ramp-{end}"][i : i + 2], 16) for i in (1, 3, 5)] for end in (0, 1))
    for share in range(101):
        mixed = [round(a + (b - a) * share / 100) for a, b in zip(low, high, strict=True)]
        back = luminance("#{:02x}{:02x}{:02x}".format(*mixed))
        text = luminance(found["on-ramp-1" if share / 100 > charts.TURN else "on-ramp-0"])
        assert (max(back, text) + 0.05) / (min(back, text) + 0.05) >= 4.5, share
