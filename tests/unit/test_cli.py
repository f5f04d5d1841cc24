"""The command line as scripts see it: JSON alone on stdout, one line of error, the promised exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import edgekit.inspection
from edgekit import __version__
from edgekit.cli import main
from edgekit.cli.verbs import VERBS
from edgekit.errors import CheckFailed
from edgekit.recipe import Recipe, shipped_recipes
from tests.support.tiny_bundle import Weights, decoder_bundle
from tests.support.tiny_models import linear_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("cli") / "b").directory


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(stop.value.code if isinstance(stop.value.code, int) else 0, captured.out, captured.err)

    return call


def test_version_is_the_packages(run: Any) -> None:
    assert run("--version").out == f"edgekit, version {__version__}\n"
    assert importlib.metadata.version("edgekit") == __version__


def test_help_names_every_verb(run: Any) -> None:
    found = run("--help")
    assert found.code == 0
    listed = found.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [verb.name for verb in VERBS]
    assert not [line for line in listed if line.endswith("...")]
    assert run("help").out == found.out
    for verb in VERBS:
        assert run(verb.name, "--help").out.startswith(f"Usage: edgekit {verb.name} ")
        assert run("help", verb.name).out == run(verb.name, "--help").out
    assert run("help", "devices", "setup").out == run("devices", "setup", "--help").out


def test_help_of_what_is_none(run: Any) -> None:
    assert "edgekit: no verb 'exprt'; did you mean 'export'?" in run("help", "exprt").err
    assert run("help", "devices", "situp").code == 2
    assert "edgekit: `edgekit export` has no parts; leave 'x' out" in run("help", "export", "x").err


COMMANDS = [c for verb in VERBS for c in (verb.commands.values() if isinstance(verb, click.Group) else (verb,))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_the_examples_in_a_help_text_are_calls(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is parsed as the command line would, with the files that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "compress.yaml", "questions.jsonl", "onnxruntime-android.aar", "pictures", "test.npz"):
        Path(name).touch()
    lines = [line.strip() for line in str(command.epilog).partition("\n\n")[0].splitlines()[2:]]
    assert lines
    for line in lines:
        words = shlex.split(line.partition("   ")[0])
        at = words.index(str(command.name))
        assert words[:at] in (["edgekit"], ["edgekit", "devices"])
        command.make_context(words[at], words[at + 1 :])


def test_recipes(run: Any) -> None:
    text, found = run("recipes"), run("recipes", "--json").json["recipes"]
    assert [recipe["name"] for recipe in found] == list(shipped_recipes())
    assert [line.split()[0] for line in text.out.splitlines()] == list(shipped_recipes())
    assert all(recipe["description"] in text.out for recipe in found)
    assert Recipe.from_dict(found[0]) == Recipe.load(found[0]["name"])
    assert all(name in " ".join(run("export", "--help").out.split()) for name in shipped_recipes())


def test_completion() -> None:
    program = [sys.executable, "-m", "edgekit"]
    for word, found in (("ver", "verify"), ("re", "recipes")):
        asked = {"COMP_WORDS": f"edgekit {word}", "COMP_CWORD": "1", "_EDGEKIT_COMPLETE": "bash_complete"}
        ran = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
        assert ran.stdout == f"plain,{found}\n"


def test_nothing_given_is_a_question(run: Any) -> None:
    found = run()
    assert (found.code, found.out) == (2, "")
    assert "Commands:\n  export " in found.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["verfy", "x"], f"edgekit: no verb 'verfy'; did you mean 'verify'?; verbs are {', '.join(str(verb.name) for verb in VERBS)}"),
        (["zzz"], f"edgekit: no verb 'zzz'; verbs are {', '.join(str(verb.name) for verb in VERBS)}"),
        (["verify"], "edgekit: Missing argument 'BUNDLE'."),
        (["verify", "x", "--jsn"], "edgekit: No such option '--jsn'. Did you mean '--json'?"),
        (["bench", "x", "-t", "0"], "edgekit: Invalid value for '--threads' / '-t': 0 is not in the range 1<=x<=1024."),
        (["export", "m", "--task", "text", "-o", "d"], "edgekit: Invalid value for '--task': 'text' is not one of "
                                             "'text-generation', 'text2text-generation', 'automatic-speech-recognition', 'image-text-to-text', 'feature-extraction', "
                                                 "'image-classification', 'generic'."),
        (["inspect", "none"], "edgekit: none: no such directory; give a bundle that `edgekit export -o` made"),
        (["verify", "none"], "edgekit: none: no such directory; give a bundle that `edgekit export -o` made"),
        (["generate", "none", "hi"], "edgekit: none: no such directory; give a bundle that `edgekit export -o` made"),
        (["export", "none", "-r", "int3", "-o", "d"], "edgekit: int3: no such recipe; did you mean 'int8'?; give one of "
                                                      f"{', '.join(shipped_recipes())} or a .yaml file"),
    ],
)  # fmt: skip
def test_usage_errors(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = run(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.splitlines()[-1] == line
    assert "Traceback" not in plain.err
    as_json = run(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["message"] == line.removeprefix("edgekit: ")
    assert as_json.json["error"]["exit_code"] == 2
    assert not list(tmp_path.iterdir())


def test_inspect(run: Any, bundle: Path) -> None:
    found = run("inspect", bundle, "--json")
    assert (found.code, found.err) == (0, "")
    assert {"nodes", "bytes", "layers", "operators", "bits_per_weight"} <= found.json.keys()
    assert found.json["layers"][0].keys() >= {"name", "format", "bits_per_weight", "reason"}
    assert found.json["nodes"] == sum(found.json["operators"].values())
    assert found.json["bytes"] == sum((bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    text = run("inspect", bundle)
    assert "layers.*.qkv      3  fp32" in text.out
    assert text.code == 0


def test_inspect_loads_neither_torch_nor_onnxruntime(bundle: Path) -> None:
    program = f"""
import sys
from edgekit.cli import main
try:
    main(["inspect", {str(bundle)!r}, "--json"])
finally:
    print(*(m for m in ("torch", "onnxruntime", "onnx_ir") if m in sys.modules), "loaded", file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["task"] == "text-generation"
    assert found.stderr == "loaded\n"


def test_verify_passes_and_fails(run: Any, bundle: Path, tmp_path: Path) -> None:
    good = run("verify", bundle, "--json")
    assert good.code == 0
    assert good.json["passed"] is True
    assert {"parity", "accuracy"} <= good.json.keys()
    other = decoder_bundle(tmp_path / "other", graph_weights=Weights(1)).directory
    bad = run("verify", other, "--json")
    assert bad.code == 1
    assert bad.json["passed"] is False
    assert run("verify", other).code == 1


def test_bench(run: Any, tmp_path: Path) -> None:
    directory = linear_bundle(tmp_path / "b").directory
    few = run("bench", directory, "--rounds", "4")
    assert few.code == 2 and "4 is not in the range x>=5" in few.err
    found = run("bench", directory, "--json")
    assert found.code == 0
    row = found.json["rows"][0]
    assert row["phase"] == "latency"
    assert {"p50_ms", "threads", "kernel", "valid"} <= row.keys()


def test_generate_streams_text_or_gives_json(run: Any, bundle: Path) -> None:
    text = run("generate", bundle, "ab", "-n", "4", "--seed", "1")
    assert text.code == 0
    assert "decode tokens per second" in text.err
    found = run("generate", bundle, "ab", "--max-new-tokens", "4", "--seed", "1", "--json")
    assert {"text", "tokens", "prompt_tokens", "new_tokens", "finish"} <= found.json.keys()
    assert text.out.rstrip("\n") == found.json["text"] or "\\x" in text.out  # control characters are spelled


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_check_failed_interrupted_and_bugs(
    run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, json_flag: list[str]
) -> None:
    def raising(error: BaseException) -> Any:
        def inspect(bundle: object) -> None:
            raise error

        return inspect

    cases: list[tuple[BaseException, int, str, str]] = [
        (CheckFailed("x: too far off"), 1, "CheckFailed", "x: too far off"),
        (KeyboardInterrupt(), 130, "Interrupted", "interrupted; nothing half-written was kept"),
        (ZeroDivisionError("oops"), 70, "Bug", "ZeroDivisionError: oops; this is a bug in edgekit, please report it"),
    ]
    for error, code, kind, message in cases:
        monkeypatch.setattr(edgekit.inspection, "inspect", raising(error))
        found = run("inspect", bundle, *json_flag)
        assert found.code == code
        assert found.err.splitlines()[-1] == f"edgekit: {message}"
        assert ("Traceback" in found.err) == (kind == "Bug")
        if json_flag:
            assert found.json == {"error": {"kind": kind, "message": message, "exit_code": code}}
        else:
            assert found.out == ""


def test_names_in_a_bundle_cannot_steer_the_terminal(run: Any, tmp_path: Path) -> None:
    directory = linear_bundle(tmp_path / "b").directory
    path = directory / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, "architecture": "\x1b[2J\x07half \ud800 pair"}), encoding="utf-8")
    found = run("inspect", directory)
    assert "\\x1b[2J\\x07half \\ud800 pair" in found.out
    assert run("inspect", directory, "--json").json["architecture"] == "\x1b[2J\x07half \ud800 pair"


def test_output_is_utf8_whatever_the_system_says(bundle: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "edgekit", "inspect", str(bundle)], env=environment, capture_output=True, check=True
    )
    assert "259×32" in found.stdout.decode("utf-8") or "1×1" in found.stdout.decode("utf-8")
    assert b"\x1b" not in found.stdout + found.stderr


def test_telemetry_is_off_before_anything_runs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    run("--version")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
