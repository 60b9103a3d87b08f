"""The tokenizer of a checkpoint: texts to token ids and back, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json", "spiece.model")


class Tokenizer:
    """What `transformers` makes of a checkpoint's tokenizer files."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - one of the many tokenizer classes
        self._inner = inner

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder holds a tokenizer's files."""
        return any((folder / name).is_file() for name in _FILES)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Return the tokenizer in the folder; raise InputError where there is none, or none that can be read."""
        if not cls.is_in(folder):
            rule = "the checkpoint holds no tokenizer, so texts cannot be read"
            raise InputError(rule, source=str(folder), remedy="give token_ids, or add its tokenizer files")
        import transformers  # noqa: PLC0415 - seconds, and only texts need it

        transformers.logging.set_verbosity_error()
        try:
            automatic = cast("Any", transformers.AutoTokenizer)
            return cls(automatic.from_pretrained(str(folder), local_files_only=True))
        except Exception as error:  # noqa: BLE001 - the libraries raise what they like about other people's files
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"the tokenizer cannot be read: {first}", source=str(folder)) from None

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, with what the tokenizer puts before and after it."""
        return tuple(int(each) for each in self._inner(text)["input_ids"])

    @property
    def has_chat_template(self) -> bool:
        """Whether it says how the messages of a chat are written as one text."""
        return getattr(self._inner, "chat_template", None) is not None

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Return the token ids of a chat up to where the assistant answers, by the checkpoint's template.

        Raises InputError where the template refuses the messages.
        """
        try:
            text = self._inner.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as error:  # noqa: BLE001 - templates are programs, and raise what they like
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"the chat template refuses them: {first}", field="messages") from None
        return tuple(int(each) for each in self._inner(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self._inner.decode(list(token_ids), skip_special_tokens=True))
