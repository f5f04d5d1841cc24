"""``edgekit recipes``."""

from __future__ import annotations

import click

from edgekit.cli.console import examples, json_option, show
from edgekit.recipe import Recipe, shipped_recipes


@click.command(epilog=examples("edgekit recipes", "edgekit recipes --json"))
@json_option
def recipes(as_json: bool) -> None:
    """List the shipped recipes and what each is for.

    `--json` gives them whole: a starting point for a YAML file of your own.
    """
    found = [Recipe.load(name) for name in shipped_recipes()]
    width = max(len(recipe.name) for recipe in found)
    lines = (f"{recipe.name:<{width}}  {recipe.description}" for recipe in found)
    show(lines, {"recipes": [recipe.to_dict() for recipe in found]}, as_json)
