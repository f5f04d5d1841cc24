"""Text to token ids and back, from the files in the bundle: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, UnsupportedError
from edgekit.runtime.chat import render
from edgekit.strict import read_json

SPECIAL = ("bos", "eos", "pad", "unk")


class Tokenizer:
    """The model's own tokenizer and chat template."""

    def __init__(self, bundle: Bundle | Path) -> None:
        """Of a bundle, or of a directory with a model's files.

        Raises UnsupportedError when it carries no tokenizer.json, BundleError when that cannot be read.
        """
        from tokenizers import Tokenizer as Fast

        self.directory = bundle if isinstance(bundle, Path) else bundle.directory
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedError(
                f"{self.directory}: no tokenizer.json; export from a directory that has one, or feed token ids"
            )
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path}: not a readable tokenizer ({str(error)[:100]})") from error
        # Some files carry the lengths of their training pipeline.
        self._fast.no_truncation()
        self._fast.no_padding()

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, or nothing. Raises BundleError when it is not JSON."""
        return self._json("tokenizer_config.json")

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The texts of ``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token``, those that the model has."""
        named = {**self._json("special_tokens_map.json"), **self.config}
        texts = {}
        for kind in SPECIAL:
            token = named.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                texts[f"{kind}_token"] = text
        return texts

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; ``special`` adds what the model expects around a plain text (for instance BOS)."""
        ids = list(self._fast.encode(text, add_special_tokens=special).ids)
        bos = self._fast.token_to_id(self.special_tokens.get("bos_token", ""))
        # Older tokenizers leave BOS to the code that reads this setting.
        if special and self.config.get("add_bos_token") is True and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._fast.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def chat_template(self) -> str | None:
        """The model's chat template (Jinja), or None."""
        path = self.directory / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = {**self.config, **self._json("chat_template.json")}.get("chat_template")
        if isinstance(template, list):
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of :meth:`chat_text`."""
        return self.encode(self.chat_text(messages), special=False)  # the template wrote the special tokens

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as its template writes it, ending where the assistant begins.

        ``messages`` have ``role`` (system, user, assistant) and ``content``. Raises UnsupportedError without template,
        BundleError when the template refuses the messages.
        """
        if self.chat_template is None:
            raise UnsupportedError(
                f"{self.directory}: the model has no chat template; generate with chat=False for plain continuation"
            )
        return render(self.chat_template, messages, self.special_tokens, str(self.directory))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        content: dict[str, Any] = read_json(path, BundleError, "export again") if path.is_file() else {}
        return content


class Stream:
    """Token ids to text as it comes: nothing is given out while a character may still be incomplete.

    The pieces joined are what the tokenizer makes of all the tokens. Only where bytes that are no UTF-8 follow a
    character that was given out already, a tokenizer with byte tokens would take that back; here it stays.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """``before``: tokens that the text continues, not given out; without any, it begins as a new text does."""
        self._tokenizer = tokenizer
        self._ids = self._context(before)
        self._start = 0  # ids before this one are settled and no longer looked at
        self._shown = len(self._ids)  # ids whose text was given out; those from _start on give context

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often one word, sometimes nothing."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def rest(self) -> str:
        """What was held back, at the end."""
        text = self._new()
        self._shown = len(self._ids)
        return text

    def _new(self) -> str:
        """The text of what was not given out, as it stands after its context: many tokenizers drop a leading space."""
        decode = self._tokenizer.decode
        before, now = decode(self._ids[self._start : self._shown]), decode(self._ids[self._start :])
        return now[len(before) :] if now.startswith(before) else decode(self._ids[self._shown :])

    def _context(self, before: Sequence[int]) -> list[int]:
        """The fewest last tokens that are whole characters: at most four, as a character has at most four bytes."""
        ends = (list(before[-count:]) for count in range(1, 5))
        return next((end for end in ends if "\ufffd" not in self._tokenizer.decode(end)), [])
