"""Recipes: what is shipped, what is refused and with which words, who wins."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import edgekit.recipe as recipe_module
from edgekit.errors import RecipeError
from edgekit.recipe import Limits, Recipe, Rule, StaticQuantization, shipped_recipes
from edgekit.spec.formats import FORMATS
from tests.support.tooling import ROOT

SHIPPED = shipped_recipes()
LEAST = {"version": 1, "name": "mine", "rules": [{"match": "*", "format": "int8"}]}


def test_shipped() -> None:
    assert set(SHIPPED) >= {"fp16", "fp32", "int4", "int8", "int8-static", "rate", "ternary"}
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Recipes")[2].partition("##")[0]
    assert sorted(re.findall(r"^\| `(.*?)` \|", table, re.M)) == sorted(SHIPPED), "the README has a row for each"
    for name in SHIPPED:
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.description
        # A shipped recipe states what its result must reach, in both senses.
        assert recipe.parity != Limits()
        assert recipe.accuracy != Limits()


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_written_is_what_is_read(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert hash(Recipe.load(str(path))) == hash(recipe)


def test_the_wheel_carries_them() -> None:
    project = (Path(recipe_module.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '[tool.hatch.build.targets.wheel.force-include]\nexport_configs = "edgekit/export_configs"' in project


def test_first_match_wins() -> None:
    recipe = Recipe(
        1, "r",
        (
            Rule("model.layers.0.*", "fp16"), Rule("*", "t2", only="ternary"), Rule("*", "int8", only="vocabulary"),
            Rule("*.[qk]_proj", "int4", 32),
        ),
    )  # fmt: skip
    assert recipe.rule_for("model.layers.0.q_proj", lambda rule: rule.only == "ternary") == recipe.rules[0]
    assert recipe.rule_for("model.layers.1.q_proj", lambda rule: rule.only == "ternary") == recipe.rules[1]
    assert recipe.rule_for("lm_head", lambda rule: rule.only == "vocabulary") == recipe.rules[2]
    assert recipe.rule_for("model.layers.1.q_proj") == recipe.rules[3]
    assert recipe.rule_for("model.layers.1.v_proj") is None
    assert recipe.rule_for("MODEL.LAYERS.0.q") is None  # names are compared letter by letter on every system


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "recipe.version: 2 is not 1, the version this edgekit reads"),
        ({"rules": []}, "recipe.rules: empty; at least one rule is needed, e.g. {match: '*', format: int8}"),
        ({"ruels": []}, "recipe: unknown key 'ruels'; did you mean 'rules'?; known are version, name, rules, description, "
                        "parity, accuracy, static, unused_embedding_rows, calibrate"),
        ({"rules": [{"match": "*", "format": "int8"}, {"match": "*", "format": "int5"}]},
         f"recipe.rules[1].format: 'int5' is not one of {str(list(FORMATS))[1:-1]}; did you mean 'int8'?"),
        ({"rules": [{"match": "*", "fromat": "int8"}]},
         "recipe.rules[0]: unknown key 'fromat'; did you mean 'format'?; known are match, format, block_size, only"),
        ({"rules": [{"match": "*"}]}, "recipe.rules[0]: missing key 'format'"),
        ({"rules": [{"match": "*", "format": "int8", "only": "ternery"}]},
         "recipe.rules[0].only: 'ternery' is not one of '', 'ternary', 'vocabulary', 'exact'; did you mean 'ternary'?"),
        ({"rules": [{"match": "*", "format": "int8", "block_size": 48}]},
         "recipe.rules[0].block_size: 48 given, int8 takes one of 16, 32, 64, 128, 256 (or 0, the default)"),
        ({"rules": [{"match": "*", "format": "t2", "block_size": 64}]},
         "recipe.rules[0].block_size: 64 given, t2 takes one of 128 (or 0, the default)"),
        ({"rules": [{"match": "*", "format": "fp16", "block_size": 32}]},
         "recipe.rules[0].block_size: 32 given, fp16 takes 0: it has no blocks"),
        ({"parity": {"max_abs": "1e-3"}}, "recipe.parity.max_abs: expected float, got str ('1e-3')"),
        ({"accuracy": {"top1": 95.0}}, "recipe.accuracy.top1: 95.0 is not a share between 0 and 1"),
        ({"accuracy": {"max_abs": float("nan")}}, "recipe.accuracy.max_abs: nan is not a finite number"),
        ({"static": {"method": "best"}},
         "recipe.static.method: 'best' is not one of 'minmax', 'percentile', 'entropy'"),
        ({"static": {"activations": "int4"}},
         "recipe.static.activations: 'int4' is not one of 'uint8', 'int8'; did you mean 'int8'?"),
        ({"static": {"weights": "uint8"}},
         "recipe.static.weights: 'uint8' is not one of 'int8'; did you mean 'int8'?"),
        ({"static": {"samples": 0}}, "recipe.static.samples: 0 is not a number of samples; 64 is usual"),
        ({"calibrate": -1}, "recipe.calibrate: -1 is not a number of samples from 0 to 4096"),
        ({"calibrate": 16}, "recipe.calibrate: searches the scales of int4, and no rule says int4; leave it out"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        Recipe.from_dict({**LEAST, **change})
    assert str(refusal.value) == message


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nname: x\nrulez: []\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.yaml: recipe: unknown key 'rulez'; did you mean 'rules'\?"):
        Recipe.load(path)
    path.write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.yaml: not valid YAML: .*line 2"):
        Recipe.load(path)
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.yaml: not valid YAML: .*'name' stands twice.*line 1"):
        Recipe.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"mine.yaml: not valid YAML"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"none.yaml: cannot be read \(No such file or directory\); give a YAML file"):
        Recipe.load(tmp_path / "none.yaml")


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(f"!!python/object/apply:pathlib.Path.touch ['{tmp_path / 'touched'}']\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.load(path)
    assert not (tmp_path / "touched").exists()


def test_unknown_name() -> None:
    with pytest.raises(RecipeError) as refusal:
        Recipe.load("int-4")
    assert str(refusal.value) == (
        f"int-4: no such recipe; did you mean 'int4'?; give one of {', '.join(SHIPPED)} or a .yaml file"
    )


def test_frozen() -> None:
    recipe = Recipe.load("int8")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "x"  # type: ignore[misc]
    assert StaticQuantization().activations == "uint8"
