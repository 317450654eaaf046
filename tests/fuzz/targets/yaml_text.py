"""params.yaml and overrides of it: hostile YAML, damaged text, damaged values."""

import json
from pathlib import Path
from random import Random

from pipeline.params.document import load
from pipeline.params.reading import read_yaml
from tests.fuzz import damage
from tests.fuzz.case import ROOT, Files

OUTS: tuple[str, ...] = ()
SECONDS = 10.0
SHARE = 30

WHOLE = (ROOT / "profiles/tiny.yaml").read_text()
DOCUMENT = read_yaml(ROOT / "profiles/tiny.yaml")


def bomb(depth: int, width: int) -> str:
    """width ** depth values out of a few lines."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    return "\n".join(lines) + "\n"


HOSTILE = (
    *(bomb(9, 9), bomb(30, 2), bomb(3, 3)),
    *("&a [*a]", "a: &a {b: *a}", "*nowhere", "<<: &a {<<: *a}", "a: &x {b: 1}\nc: {<<: *x, b: 2}", "&a a: &a b\n*a : c"),
    *(
        "[" * 5000,
        "[" * 900 + "]" * 900,
        "{a: " * 3000,
        "- " * 3000,
        "? " * 2000,
        "a:\n" + "".join(" " * n + "a:\n" for n in range(500)),
    ),
    *("!!python/object/apply:os.system [id]", "!!python/name:os.system", "!local x", "!!binary '###'", "!!binary aGVsbG8="),
    *(
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!null x",
        "!!timestamp x",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!map [a]",
    ),
    *(
        "2024-01-01",
        "2024-99-99",
        "2024-02-30T25:61:61Z",
        "2001-12-14t21:59:43.10-05:00",
        "1:2:3",
        "190:20:30",
        "0x",
        "0o9",
        "0b2",
    ),
    *(
        "9" * 5000,
        "0x" + "f" * 9000,
        "1e400",
        "-1e400",
        ".inf",
        "-.inf",
        ".nan",
        "1_000",
        "+1",
        "0o17",
        "017",
        "~",
        "null",
        "yes",
    ),
    *(
        '"\\ud800"',
        '"\\0"',
        '"\\x00"',
        '"\\U00110000"',
        '"\\z"',
        "\0",
        "\ud800",
        "\x07",
        "a\tb",
        "\ta",
        "a:\tb",
        "'",
        '"',
        "`",
        "@x",
    ),
    *(
        "a: 1\na: 2",
        "{a: 1, a: 2}",
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "1: a",
        "true: a",
        "null: a",
        "1.5: a",
        "2024-01-01: a",
    ),
    *("--- a\n--- b", "%YAML 1.1\n---\na: 010", "%YAML 9.9\n--- a", "%TAG ! x\n--- a", "...", "---", "", "#", "\ufeffa: 1"),
    *(
        "|\n a",
        ">\n a",
        "|9\n a",
        "|+\n",
        "- a\n b: c",
        "a: b: c",
        "a\nb: c",
        "[a, b",
        "{a: b",
        "]",
        "}",
        "a: [b\nc: d]",
        "x" * 70000,
    ),
)


def make(draw: Random) -> Files:
    kind = draw.randrange(5)
    if kind == 0:
        content = draw.choice(HOSTILE).encode("utf-8", "surrogatepass")
    elif kind == 1:
        content = damage.dumped(damage.document(DOCUMENT, draw))
    elif kind == 2:
        lines = WHOLE.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        head = lines[at].partition(":")[0]
        value = draw.choice(HOSTILE)
        lines[at] = f"{head}: {value}\n" if draw.random() < 0.7 else f"{value}\n"
        content = "".join(lines).encode("utf-8", "surrogatepass")
    elif kind == 3:
        content = damage.text(WHOLE, draw)
    else:
        content = WHOLE.encode(draw.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-16-le")))
    changes = [_change(draw) for _ in range(draw.randrange(3) if kind != 4 else draw.randint(1, 3))]
    return {"params.yaml": content, "changes.json": json.dumps(changes).encode()}


def _change(draw: Random) -> str:
    holder, path = DOCUMENT, []
    while isinstance(holder, dict) and holder:
        path.append(draw.choice(list(holder)))
        holder = holder[path[-1]]
    key = ".".join(path)
    if draw.random() < 0.3:
        key = draw.choice(
            (*damage.WORDS, f"{key}.x", f"{key}.", f".{key}", key.replace(".", ".."), "tasks", "tasks.topic.x", "a" * 5000)
        )
    value = draw.choice((*HOSTILE, *map(str, damage.EXTREMES[:-2]), "1", "0.5"))
    return draw.choice((f"{key}={value}",) * 6 + (key, f"={value}", f"{key}=={value}", "="))


def run(folder: Path) -> None:
    load(Path("params.yaml"), json.loads(Path("changes.json").read_text()))
