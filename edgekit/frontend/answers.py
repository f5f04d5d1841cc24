"""How an encoder-decoder's answers begin and what is never in them, as generation_config.json and config.json say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgekit.errors import SourceError
from edgekit.frontend.source import ModuleSource
from edgekit.strict import read_json

SPEECH_KEYS = ("task", "language", "forced_decoder_ids", "lang_to_id", "task_to_id", "no_timestamps_token_id")


def settings_of(source: ModuleSource) -> dict[str, Any]:
    """The model's generation_config.json; nothing where there is none."""
    path = next((a for a in source.assets if a.name == "generation_config.json"), None)
    settings: dict[str, Any] = {} if path is None else read_json(path, SourceError, "fetch the file again")
    return settings


def transcript(source: ModuleSource, sound: np.ndarray, most: int) -> np.ndarray:
    """What a speech model itself writes down of ``sound`` float32 [1, n], in PyTorch: int64 [1, T], its first tokens included.

    It ends where the model ends it, after :data:`FEWEST` tokens at the earliest and ``most`` at the latest.
    """
    from transformers import GenerationConfig, GenerationMixin

    told, model = answers(settings_of(source), source), source.module.float()
    network: Any = model
    start = list(told["start_tokens"])
    limit = min(most, getattr(source.config, "max_target_positions", 0) or source.config.max_position_embeddings)
    settings = GenerationConfig(
        max_length=limit, min_new_tokens=FEWEST, do_sample=False, num_beams=1, pad_token_id=0,
        eos_token_id=settings_of(source).get("eos_token_id", source.config.eos_token_id),
        suppress_tokens=told["suppressed_tokens"] or None, begin_suppress_tokens=told["begin_suppressed_tokens"] or None,
    )  # fmt: skip
    with torch.no_grad():
        heard = network.get_encoder()(torch.from_numpy(sound))
        if told["language_tokens"]:
            first = network(encoder_outputs=heard, decoder_input_ids=torch.tensor([start[:1]])).logits[0, -1]
            start[1] = told["language_tokens"][int(first[told["language_tokens"]].argmax())]
        ids = GenerationMixin.generate(
            network, encoder_outputs=heard, decoder_input_ids=torch.tensor([start]), generation_config=settings
        )
    return np.asarray(ids.numpy(), np.int64)


FEWEST = 24


def answers(settings: dict[str, Any], source: ModuleSource) -> dict[str, Any]:
    """Fields of the manifest's EncoderInfo. Raises SourceError where nothing says what answers begin with."""
    config: Any = source.config.get_text_config()

    def setting(key: str) -> Any:
        return settings.get(key, getattr(config, key, None))

    first, forced = setting("decoder_start_token_id"), setting("forced_bos_token_id")
    if first is None:
        raise SourceError(
            f"{source.name}: neither generation_config.json nor config.json has a decoder_start_token_id, with which answers "
            "begin; add it"
        )
    banned = [words[0] for words in settings.get("bad_words_ids") or [] if len(words) == 1]
    values: dict[str, Any] = {
        "max_length": int(getattr(config, "max_position_embeddings", None) or 0),
        "start_tokens": [first] if forced is None else [first, forced],
        "suppressed_tokens": sorted({*banned, *(settings.get("suppress_tokens") or [])}),
        "begin_suppressed_tokens": sorted(settings.get("begin_suppress_tokens") or []),
    }
    if source.hearing is None:
        return values
    prefix, languages = _spoken(first, {key: setting(key) for key in SPEECH_KEYS}, source.name)
    heard = {"max_length": source.hearing.most, "sampling_rate": source.hearing.rate}
    return {**values, **heard, "start_tokens": prefix, "language_tokens": languages}


def _spoken(first: int, given: dict[str, Any], name: str) -> tuple[list[int], list[int]]:
    """Whisper's first tokens, and those of the languages of which the second is to be the likeliest: none where that is said.

    As ``_retrieve_init_tokens`` of transformers' WhisperGenerationMixin; without timestamps.
    """
    language, task, tasks = given["language"], given["task"], given["task_to_id"] or {}
    forced: list[int | None] = []
    if task is None and language is None:
        pairs = given["forced_decoder_ids"] or []
        if [place for place, _ in pairs] != list(range(1, len(pairs) + 1)):
            raise SourceError(
                f"{name}: forced_decoder_ids {str(pairs)[:100]} leave out a place; remove or complete them"
            )
        forced = [token for _, token in pairs]
    known = given["lang_to_id"] or {}
    languages = list(known.values()) if known and language is None and (forced or [None])[0] is None else []
    if language is not None:
        token = known.get(language, known.get(f"<|{language}|>"))
        if token is None:
            raise SourceError(
                f"{name}: language {str(language)[:40]!r} of generation_config.json is not in its lang_to_id; write it as there"
            )
        forced = [token]
        task = task or ("transcribe" if tasks else None)
    tokens = [first, *languages[:1], *(token for token in forced if token is not None)]
    if task is not None:
        if task not in tasks:
            raise SourceError(f"{name}: task {str(task)[:40]!r} of generation_config.json is not in its task_to_id")
        tokens.append(tasks[task])
    last = given["no_timestamps_token_id"]
    return tokens if last is None or tokens[-1] == last else [*tokens, last], languages
