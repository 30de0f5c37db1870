"""commands.toml: each of its tables is a command, and each command is one of its tables."""

from __future__ import annotations

import click
import pytest

from loraforge.cli import options
from loraforge.cli.app import main
from loraforge.tables import package_table


def typed(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command by the words that are typed."""
    found = dict[str, click.Command]()
    for name, command in group.commands.items():
        found[f"{before}{name}"] = command
        found |= typed(command, f"{before}{name} ") if isinstance(command, click.Group) else {}
    return found


def test_tables_and_commands_are_the_same() -> None:
    table = package_table("cli/commands")
    assert {*table} - {"shared"} == {"loraforge", *typed(main)}
    used = {word for entry in table.values() for word in entry.get("options", ()) if not word.startswith("-")}
    assert used == {*table["shared"]}


def test_a_group_of_options_stands_where_it_is_named() -> None:
    names = [param.opts[0] for param in typed(main)["stamp"].params]
    assert names[:2] == ["source", "--alpha"]
    assert names.index("--override-scale") < names.index("--architecture") < names.index("-o")


@pytest.mark.parametrize("how", [{"is": "nothing"}, {"one_of": ["a"], "colour": "red"}])
def test_an_entry_that_says_nothing_to_click_is_no_option(how: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError)):
        [*options._options({"--word": how})]


def test_a_switch_that_is_not_given_says_neither() -> None:
    switch = {param.name: param for param in typed(main)["run"].params}["tiling"]
    seen = list[object]()
    command = click.Command("run", params=[switch], callback=lambda tiling: seen.append(tiling))
    for words in ([], ["--tiling"], ["--no-tiling"]):
        command.main(words, standalone_mode=False)
    assert seen == [None, True, False]
