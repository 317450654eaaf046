"""Every command of `pruneonce` with its text and its examples: `python -m docs.commands`."""

from collections.abc import Iterator
from types import ModuleType

from pipeline import cli
from pruneonce import command, commandline


def lines() -> Iterator[str]:
    """Markdown: the commands of a project, then the library's that it does not have."""
    of_project = {commandline.name_of(module): module for module in cli.COMMANDS}
    library = [module for module in command.COMMANDS if commandline.name_of(module) not in command.WIDER]
    wider = [of_project.pop(name) for name in command.WIDER]
    for title, modules in (
        ("In any folder", library),
        ("In any folder, and more in a project's", wider),
        ("In a project's folder", list(of_project.values())),
    ):
        yield from (f"### {title}", "")
        for module in modules:
            yield from _command(module)


def _command(module: ModuleType) -> Iterator[str]:
    text = (module.__doc__ or "").strip().partition("\n")
    yield from (f"#### {commandline.name_of(module)}", "", f"{text[0][:1].upper()}{text[0][1:]}.", "")
    if rest := text[2].strip():
        yield from (rest, "")
    yield from ("```sh", *(" ".join(example.split()) for example in module.EXAMPLES), "```", "")


if __name__ == "__main__":
    print("\n".join(lines()))
