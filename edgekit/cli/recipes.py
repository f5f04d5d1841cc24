"""``edgekit recipes``."""

from __future__ import annotations

import click

from edgekit.cli import console
from edgekit.recipe import Recipe, shipped_recipes


@click.command(epilog=console.examples("edgekit recipes", "edgekit recipes --json"))
@console.json_option
def recipes(as_json: bool) -> None:
    """List the shipped recipes and what each is for.

    `--json` gives them whole: a starting point for a YAML file of your own.
    """
    shipped = [Recipe.load(name) for name in shipped_recipes()]
    width = max(len(recipe.name) for recipe in shipped)
    lines = (f"{recipe.name:<{width}}  {recipe.description}" for recipe in shipped)
    console.show(lines, {"recipes": [recipe.to_dict() for recipe in shipped]}, as_json)
