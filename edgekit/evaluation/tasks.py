"""What is measured: perplexity of texts, and questions with a choice of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import CheckFailed, UsageError
from edgekit.evaluation.scorers import Scorer
from edgekit.metrics import perplexity
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.spec.names import WINDOW
from edgekit.spec.progress import Progress
from edgekit.strict import build, parse_json, read_text


@dataclass(frozen=True)
class Question:
    """One line of a choices file; ``answer`` is the place of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class TextScore:
    """Of one text: perplexity per token, bits per byte (which compares models of different tokenizers)."""

    file: str
    tokens: int
    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True)
class ChoiceScore:
    """Of one file of questions: the share answered right, with and without dividing by the length of the answer in
    bytes.

    ``error`` is the standard error of ``accuracy``; ``chance`` what guessing gives; ``cut`` the questions whose
    beginning did not fit into the context.
    """

    file: str
    questions: int
    accuracy: float
    accuracy_unnormalized: float
    error: float
    chance: float
    cut: int


def read_questions(file: Path, most: int = 0) -> list[Question]:
    """Lines of JSON: {"question": ..., "choices": [...], "answer": 0}. Raises UsageError naming the line."""
    # Not splitlines(): JSON strings may hold U+2028.
    lines = read_text(file, UsageError, "--choices takes JSON lines").split("\n")
    questions = [_question(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UsageError(f"{file}: no question in it; one stands on each line, as JSON")
    return questions[:most] if most else questions


def _question(line: str, where: str) -> Question:
    try:
        question: Question = build(Question, parse_json(line), where, UsageError)
        "".join((question.question, *question.choices)).encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character, which is no text
        wrong = error.object[error.start]
        raise UsageError(f"{where}: holds {wrong!a}, half of a surrogate pair; write valid text") from None
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({str(error)[:80]}); one question stands on each line") from error
    if len(question.choices) < 2 or not all(question.choices) or not 0 <= question.answer < len(question.choices):
        raise UsageError(
            f"{where}: {len(question.choices)} choices, answer {question.answer}; at least two that are not empty, answer "
            "counts them from 0"
        )
    return question


def score_text(scorer: Scorer, file: Path, text: str, most: int, progress: Progress, window: int = WINDOW) -> TextScore:
    """Perplexity over the first ``most`` tokens (0 = all) in windows of ``window``. Raises UsageError for a text of
    less than two tokens."""
    if most == 1:
        raise UsageError("tokens: 1; perplexity needs at least 2, 0 takes all")
    whole = open_ended(scorer.tokenizer, text)
    ids = whole[:most] if most else whole
    if len(ids) < 2:
        raise UsageError(f"{file}: {len(ids)} tokens; perplexity needs a text of some length")
    size = min(window, scorer.limit)
    pieces = []
    for start in range(0, len(ids) - 1, size):
        progress(f"{scorer.name}: {file.name}", start / len(ids))
        pieces.append(scorer.text(ids[start : start + size]))
    nats = np.concatenate(pieces)
    _check_finite(scorer, file, nats)
    # The bytes of a part of the text are told by its share of the tokens.
    covered = len(text.encode()) * len(nats) / len(whole)
    return TextScore(str(file), len(nats), perplexity(nats), float(nats.sum(dtype=np.float64)) / math.log(2) / covered)


def score_questions(scorer: Scorer, file: Path, questions: Sequence[Question], progress: Progress) -> ChoiceScore:
    """Accuracy over ``questions``: the answer is the choice with the highest log-likelihood after the question."""
    right = plain = cut = 0
    for index, item in enumerate(questions):
        if index % 16 == 0:
            progress(f"{scorer.name}: {file.name}", index / len(questions))
        pairs = [split(scorer.tokenizer, item.question, f" {choice}") for choice in item.choices]
        room = scorer.limit - max(len(ending) for _, ending in pairs)
        if room < 1:
            raise UsageError(
                f"{file}: a choice of question {index + 1} is longer than the model's {scorer.limit} tokens"
            )
        cut += any(len(context) > room for context, _ in pairs)
        scores = score_pairs(scorer, [(context[-room:], ending) for context, ending in pairs])
        _check_finite(scorer, file, np.array(scores))
        by_length = [score / len(choice.encode()) for score, choice in zip(scores, item.choices, strict=True)]
        right += int(np.argmax(by_length)) == item.answer
        plain += int(np.argmax(scores)) == item.answer
    count = len(questions)
    accuracy, chance = right / count, sum(1 / len(q.choices) for q in questions) / count
    error = math.sqrt(accuracy * (1 - accuracy) / count)
    return ChoiceScore(str(file), count, accuracy, plain / count, error, chance, cut)


def _check_finite(scorer: Scorer, file: Path, nats: np.ndarray) -> None:
    if not np.isfinite(nats).all():
        raise CheckFailed(
            f"{scorer.name}: its log-likelihoods on {file} are not finite; check the model with edgekit verify"
        )


def score_pairs(scorer: Scorer, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Log-likelihoods (nats) of endings after their contexts; those that share a context share its run."""
    scores = [0.0] * len(pairs)
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        places.setdefault(tuple(context), []).append(place)
    for shared, several in places.items():
        results = scorer.continuations(shared, [pairs[place][1] for place in several])
        for place, result in zip(several, results, strict=True):
            scores[place] = -float(result.nats.sum(dtype=np.float64))
    return scores


def split(tokenizer: Tokenizer, context: str, ending: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it, as lm-evaluation-harness splits them: spaces at the end of the
    context go to the ending, and both are tokenized as one text, of which the first tokens, as many as the context
    alone has, are the context. A context of no tokens becomes the model's BOS or EOS token. What the tokenizer puts at
    the end of every text is left out.
    """
    stripped = context.rstrip()
    ending = context[len(stripped) :] + ending
    before, whole = open_ended(tokenizer, stripped), open_ended(tokenizer, stripped + ending)
    length = min(len(before), len(whole) - 1)
    if length < 1:
        length, whole = 1, [_start(tokenizer, whole), *whole]
    return whole[:length], whole[length:]


def open_ended(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on: without the end token that some tokenizers add."""
    ids, whole, plain = tokenizer.encode(text), tokenizer.encode("a"), tokenizer.encode("a", special=False)
    starts = [s for s in range(len(whole) - len(plain) + 1) if whole[s : s + len(plain)] == plain]
    added = len(whole) - len(plain) - starts[0] if starts else 0
    return ids[: len(ids) - added]


def _start(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    for kind in ("bos_token", "eos_token"):
        token = tokenizer.encode(tokenizer.special_tokens.get(kind, ""), special=False)
        if len(token) == 1:
            return token[0]
    return ids[0]
