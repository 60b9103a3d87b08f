"""Texts of tokens as they come: whatever the pieces, the text is that of all tokens, up to the first stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from moiety.serve.text import TextSoFar

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECES = st.text(alphabet="abé€😀", max_size=12)
STOPS = st.lists(st.text(alphabet="abé😀", min_size=1, max_size=4), max_size=3)


def of_bytes(tokens: Sequence[int]) -> str:
    """Decode tokens that are bytes, so that characters come in parts."""
    return bytes(tokens).decode(errors="replace")


def of_words(tokens: Sequence[int]) -> str:
    """Decode tokens that are words with spaces between."""
    return " ".join(f"w{token}" for token in tokens)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    places = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)


@given(text=PIECES, stops=STOPS)
def test_characters_in_parts_come_whole_and_stop_strings_end_the_text(text: str, stops: list[str]) -> None:
    so_far = TextSoFar(of_bytes, stops)
    shown = ""
    for token in text.encode():
        so_far.push(token)
        assert so_far.text.startswith(shown), "what was shown is not taken back"
        shown = so_far.text
        if so_far.is_stopped:
            break
    so_far.finish()
    expected, stopped = cut(text, stops)
    assert so_far.is_stopped == stopped
    if not stopped:
        assert so_far.text == expected
    else:  # of several stop strings the one that is complete first ends the text
        assert text.startswith(so_far.text)
        assert any(text[len(so_far.text) :].startswith(stop) for stop in stops)


@given(tokens=st.lists(st.integers(0, 9), max_size=12))
def test_spaces_between_tokens_are_kept(tokens: list[int]) -> None:
    so_far = TextSoFar(of_words)
    for token in tokens:
        so_far.push(token)
    so_far.finish()
    assert so_far.text == of_words(tokens)


@given(tail=st.binary(min_size=1, max_size=3))
def test_bytes_that_never_become_a_character_are_shown_at_the_end(tail: bytes) -> None:
    so_far = TextSoFar(of_bytes)
    for token in b"a" + tail:
        so_far.push(token)
    so_far.finish()
    assert so_far.text == (b"a" + tail).decode(errors="replace")
