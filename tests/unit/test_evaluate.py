"""edgekit evaluate: scores against numpy, bundles beside PyTorch, the page, lm-eval's adapter, and what is refused."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cli.verbs import main
from edgekit.errors import CheckFailed, EdgekitError, RuntimeUnavailable, UnsupportedError, UsageError
from edgekit.evaluation import Evaluation, Row, evaluate
from edgekit.evaluation.harness import adapter, run_tasks
from edgekit.evaluation.page import page, write_page
from edgekit.evaluation.scorers import BundleScorer
from edgekit.evaluation.tasks import ChoiceScore, TextScore, open_ended, read_questions, split
from edgekit.runtime.tokenizer import Tokenizer
from tests.support.tiny_bundle import BOS, Weights, decoder_bundle, reference

WEIGHTS = Weights()
QUESTIONS = [
    {"question": "Is it so?", "choices": ["yes", "certainly not", "no"], "answer": 0},
    {"question": "And then ", "choices": ["it rained", "the sun"], "answer": 1},
    {"question": "", "choices": ["a", "bb"], "answer": 1},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("evaluate") / "tiny", WEIGHTS).directory


def nats(ids: list[int]) -> np.ndarray:
    """Of each next token, from numpy's own decoder."""
    logits = reference(WEIGHTS, np.array(ids))[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.asarray(-logs[np.arange(len(ids) - 1), ids[1:]])


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_choices_and_perplexity_against_numpy(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Wörter und noch mehr Wörter, die niemand erwartet hat. " * 3, encoding="utf-8")
    (row,) = evaluate([str(bundle)], texts=[text], choices=[lines(tmp_path / "q.jsonl", QUESTIONS)]).rows
    tokenizer = Tokenizer(bundle)
    ids = tokenizer.encode(text.read_text())
    windows = [nats(ids[start : start + 64]) for start in range(0, len(ids) - 1, 64)]  # the model's context is 64
    total, count = sum(w.sum() for w in windows), sum(len(w) for w in windows)
    assert row.texts[0].tokens == count
    assert row.texts[0].perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    size = len(text.read_bytes()) * count / len(ids)
    (short,) = evaluate([str(bundle)], texts=[text], window=10).rows
    tens = [nats(ids[start : start + 10]) for start in range(0, len(ids) - 1, 10)]
    assert short.texts[0].perplexity == pytest.approx(math.exp(np.concatenate(tens).mean()), rel=1e-4)
    assert row.texts[0].bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-4)
    right = plain = 0
    for item in QUESTIONS:
        context: Any = str(item["question"])
        sums = []
        for choice in item["choices"]:  # type: ignore[attr-defined]
            whole = tokenizer.encode(context.rstrip() + context[len(context.rstrip()) :] + " " + choice)
            ending = len(whole) - len(tokenizer.encode(context.rstrip()))
            sums.append(-nats(whole)[-ending:].sum())
        sizes = [len(choice) for choice in item["choices"]]  # type: ignore[attr-defined]
        right += int(np.argmax(np.array(sums) / sizes)) == item["answer"]
        plain += int(np.argmax(sums)) == item["answer"]
    found = row.choices[0]
    assert (found.accuracy, found.accuracy_unnormalized) == (right / 3, plain / 3)
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3) and found.cut == 0
    assert found.error == pytest.approx(math.sqrt(right / 3 * (1 - right / 3) / 3))
    assert row.bytes == sum((bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def test_a_long_question_loses_its_beginning(bundle: Path, tmp_path: Path) -> None:
    scorer = BundleScorer(bundle)
    item = {"question": "x" * 100, "choices": ["one", "two"], "answer": 0}
    (row,) = evaluate([str(bundle)], choices=[lines(tmp_path / "q.jsonl", [item])]).rows
    assert row.choices[0].cut == 1
    whole = scorer.tokenizer.encode("x" * 100 + " one")
    one = scorer.continuations(whole[-64:-4], [whole[-4:]])[0]
    np.testing.assert_allclose(one.nats, nats(whole[-64:])[-4:], rtol=1e-4)
    with pytest.raises(UsageError, match="a choice of question 1 is longer than the model's 64 tokens"):
        evaluate([str(bundle)], choices=[lines(tmp_path / "q.jsonl", [{**item, "choices": ["y" * 80, "n"]}])])


@given(st.text(st.sampled_from("ab é"), max_size=12), st.text(st.sampled_from("ab é"), min_size=1, max_size=8))
def test_splitting_loses_nothing(context: str, ending: str) -> None:
    before, after = split(_tokenizer(), context, ending)
    assert before and after and before[0] == BOS
    assert [*before, *after] == _tokenizer().encode(context + ending)


def ended(directory: Path, special: bool) -> Tokenizer:
    """Letters, and "ab" as one token; with ``special`` a token before and one behind every text."""
    read = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: i for i, letter in enumerate(["<s>", "</s>", *"abc ", "ab"])}, [("a", "b")])
    )
    read.add_special_tokens(["<s>", "</s>"])
    if special:
        read.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    directory.mkdir()
    read.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return Tokenizer(directory)


def test_splitting_leaves_out_the_end_token(tmp_path: Path) -> None:
    tokenizer = ended(tmp_path / "special", special=True)
    assert split(tokenizer, "ab", " c") == ([0, 6], [5, 4])
    assert split(tokenizer, "", "c") == ([0], [4])
    assert open_ended(tokenizer, "abc") == [0, 6, 4] and open_ended(tokenizer, "") == [0]
    # The border inside a token: as many tokens as the context alone has, and never none.
    plain = ended(tmp_path / "plain", special=False)
    assert split(plain, "ca", "bc") == ([4, 6], [4])
    assert split(plain, "a", "b") == ([0], [6])
    assert split(plain, "", "c") == ([0], [4])


_tokenizers: list[Tokenizer] = []


def _tokenizer() -> Tokenizer:
    if not _tokenizers:
        import tempfile

        from tests.support.tiny_bundle import write_tokenizer

        directory = Path(tempfile.mkdtemp())
        write_tokenizer(directory)
        _tokenizers.append(Tokenizer(directory))
    return _tokenizers[0]


def test_a_bundle_beside_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A float bundle and the PyTorch model it came from get the same scores; table, JSON and page in one call."""
    from edgekit.exporter import export
    from tests.support.tiny_bundle import write_tokenizer
    from tests.support.tiny_decoders import build

    source = tmp_path / "tiny-model"
    build("Llama", {"vocab_size": 259, "max_position_embeddings": 64}).save_pretrained(source)
    write_tokenizer(source)
    export(str(source), "fp32", tmp_path / "bundle", abis=[])
    text = tmp_path / "t.txt"
    text.write_text("All the world's a stage, and all the men and women merely players. " * 3)
    questions = lines(tmp_path / "q.jsonl", QUESTIONS)
    out = tmp_path / "out.html"
    given = [str(tmp_path / "bundle"), str(source), "--text", str(text), "--choices", str(questions)]
    with pytest.raises(SystemExit) as code:
        main(["evaluate", *given, "--page", str(out), "--json"])
    assert code.value.code == 0
    one, two = json.loads(capsys.readouterr().out)["rows"]
    assert one["method"] == "fp32" and two["method"] == "PyTorch" and two["model"] == "tiny-model"
    assert one["bits_per_weight"] == 32 and two["bits_per_weight"] is None
    assert one["texts"][0]["perplexity"] == pytest.approx(two["texts"][0]["perplexity"], rel=1e-4)
    assert one["choices"] == two["choices"]
    assert two["bytes"] == (source / "model.safetensors").stat().st_size
    assert out.read_text().count("<circle") == 4 and not list(tmp_path.glob(".*"))
    with pytest.raises(SystemExit):
        main(["evaluate", given[0], *given[2:], "--tokens", "40"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["model", "method", "MB", "bits/weight"] and len(table) == 2


def row(name: str = "m", size: int = 1000, **more: Any) -> Row:
    texts = (TextScore("t.txt", 9, 12.5, 1.5),)
    choices = (ChoiceScore("q.jsonl", 3, 2 / 3, 1 / 3, 0.27, 0.5, 0),)
    return Row(name, "int4", size, 4.5, texts, choices, more.get("tasks", {}))


def test_the_page_stands_alone_and_trusts_nobody(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"'
    found = page(Evaluation((row(evil), row("other", 5_000_000, tasks={}))))
    assert "<script" not in found and "&lt;script&gt;" in found
    assert "http" not in found and found.count("<svg") == 2 and found.count("<circle") == 4
    import xml.etree.ElementTree as tree

    svg = tree.fromstring(found[found.index("<svg") : found.index("</svg>") + 6])
    places = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in svg.iter("circle")]
    assert (
        places[0][0] < places[1][0] and places[0][1] == places[1][1]
    )  # more bytes: further right; equal scores: level
    assert all(0 < x < 760 and 0 < y < 380 for x, y in places)
    with pytest.raises(UsageError, match="is a directory; --page takes the name of a file"):
        write_page(Evaluation((row(),)), tmp_path)
    with pytest.raises(UsageError, match="there is no directory to write it in"):
        write_page(Evaluation((row(),)), tmp_path / "nowhere" / "out.html")
    nan = Evaluation((row(tasks={"arc": {"acc": 0.5}}), row(tasks={})))
    assert page(nan).count("<circle") == 5 and "nan" in nan.lines()[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "q.jsonl:1: not JSON"),
        ('{"question": "a", "choices": ["b", "c"]}', "q.jsonl:1: missing key 'answer'"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "q.jsonl:1: 2 choices, answer 2; at least two"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "q.jsonl:1: 1 choices, answer 0"),
        (
            '{"question": "a", "choices": ["b", ""], "answer": 0}',
            "q.jsonl:1: 2 choices, answer 0; at least two that are not empty",
        ),
        ('{"question": "a", "choices": "bc", "answer": 0}', r"q.jsonl:1.choices: expected a list, got str"),
        ('{"question": "a", "choices": ["b", "c"], "answer": true}', r"q.jsonl:1.answer: expected int, got bool"),
        (
            '{"question": "\\ud800", "choices": ["b", "c"], "answer": 0}',
            r"q.jsonl:1: holds '\\ud800', half of a surrogate pair",
        ),
        ("[" * 100_000, "q.jsonl:1: "),
        ("\n\n", "q.jsonl: no question in it"),
    ],
)
def test_questions_that_are_none(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line)
    with pytest.raises(UsageError, match=message):
        read_questions(path)


def test_lines_end_only_where_json_lines_do(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a\u2028b\x85", "choices": ["b", "c"], "answer": 0}\r\n', encoding="utf-8")
    assert read_questions(path)[0].question == "a\u2028b\x85"


def test_a_page_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("some text")
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "not-there", "--text", str(tmp_path / "t.txt"), "--page", str(tmp_path / "no" / "x.html")])
    assert caught.value.code == 2 and "there is no directory to write it in; make" in capsys.readouterr().err


def test_a_model_that_gives_no_numbers(tmp_path: Path) -> None:
    weights = Weights()
    weights.arrays["embed"][:] = np.nan
    broken = decoder_bundle(tmp_path / "nan", weights).directory
    text = tmp_path / "t.txt"
    text.write_text("some text")
    with pytest.raises(CheckFailed, match=r"nan: its log-likelihoods on .*t\.txt are not finite; check the model"):
        evaluate([str(broken)], texts=[text])
    with pytest.raises(CheckFailed, match=r"log-likelihoods on .*q\.jsonl are not finite"):
        evaluate([str(broken)], choices=[lines(tmp_path / "q.jsonl", QUESTIONS)])


def test_refusals(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="evaluate: nothing to do; give at least one model, and --text"):
        evaluate([str(bundle)])
    with pytest.raises(EdgekitError, match="no such file or directory"):
        evaluate(["./nothing"], choices=[lines(tmp_path / "q.jsonl", QUESTIONS)])
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"b\.txt: not a readable UTF-8 text"):
        evaluate([str(bundle)], texts=[tmp_path / "b.txt"])
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(UsageError, match=r"e\.txt: 1 tokens; perplexity needs a text of some length"):
        evaluate([str(bundle)], texts=[tmp_path / "e.txt"])
    with pytest.raises(UsageError, match="tokens: 1; perplexity needs at least 2, 0 takes all"):
        evaluate([str(bundle)], texts=[tmp_path / "e.txt"], most_tokens=1)
    with pytest.raises(UnsupportedError, match="generic is no language model"):
        evaluate(["tests.unit.test_compress:smaller"], texts=[tmp_path / "e.txt"])


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As much of lm-eval as the adapter touches; the real one was tried by hand (docs/ternary-training.md)."""
    fake, api, model = (types.ModuleType(n) for n in ("lm_eval", "lm_eval.api", "lm_eval.api.model"))
    model.LM = type("LM", (), {})  # type: ignore[attr-defined]
    for module in (fake, api, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


def test_the_adapter(bundle: Path, lm_eval: Any) -> None:
    scorer = BundleScorer(bundle)
    model = adapter(scorer)
    requests = [types.SimpleNamespace(args=("Is it", " so?")), types.SimpleNamespace(args=("", "abc"))]
    tokens = [scorer.tokenizer.encode("Is it so?"), scorer.tokenizer.encode("abc")]
    (one, greedy), (two, _) = model.loglikelihood(requests)
    assert one == pytest.approx(-nats(tokens[0])[-4:].sum(), rel=1e-4)
    assert two == pytest.approx(-nats(tokens[1]).sum(), rel=1e-4) and greedy is False
    best = int(reference(WEIGHTS, np.array([BOS, 65]))[0][-1].argmax())
    assert scorer.continuations([BOS, 65], [[best], [(best + 1) % 256]])[0].greedy
    long = "to be or not to be " * 8
    ids = scorer.tokenizer.encode(long)
    want = sum(nats(ids[start : start + 64]).sum() for start in range(0, len(ids) - 1, 63))
    assert model.loglikelihood_rolling([types.SimpleNamespace(args=(long,))])[0] == pytest.approx(-want, rel=1e-4)
    with pytest.raises(UnsupportedError, match="tasks that generate text are not supported"):
        model.generate_until([])
    results = {
        "results": {
            "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.1, "mcc,none": math.nan, "sample_len": 9}
        }
    }
    lm_eval.simple_evaluate = lambda model, tasks, limit, bootstrap_iters: results
    assert run_tasks(scorer, ["arc"]) == {"arc": {"acc": 0.25}}

    def offline(**_: Any) -> None:
        raise ConnectionError("no network")

    lm_eval.simple_evaluate = offline
    with pytest.raises(CheckFailed, match=r"lm-eval arc: stopped \(ConnectionError: no network\)"):
        run_tasks(scorer, ["arc"])


def test_without_lm_eval(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'edgekit\[evaluate\]' for --tasks"):
        evaluate([str(bundle)], tasks=["arc_easy"])
