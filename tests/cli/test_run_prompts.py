"""Prompts of a run: every kind of line that is one, and every kind that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cli.run_prompts import Prompt, check_prompts, made_up_prompts, read_prompts
from moiety.errors import InputError
from tests.scenarios import small_model

MODEL = small_model().model_copy(update={"vocab_size": 100, "max_position_embeddings": 32})


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read_prompts(text, source="p.jsonl")
    return caught.value


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1), min_size=1), st.booleans())
def test_token_ids_are_read_as_they_are_written(prompts: list[list[int]], spaced: bool) -> None:
    text = ("\n\n" if spaced else "\n").join(json.dumps({"token_ids": each}) for each in prompts)
    assert [list(each.token_ids) for each in read_prompts(text, source="p")] == prompts


def test_lines_are_numbered_as_an_editor_does() -> None:
    found = read_prompts('\n{"text": "hi"}\r\n\n{"token_ids": [1]}\n', source="p.jsonl")
    assert found == (Prompt("p.jsonl:2", text="hi"), Prompt("p.jsonl:4", (1,)))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1, 2]", ("p.jsonl:2", "one JSON object")),
        ("{", ("p.jsonl:2", "not valid JSON")),
        ("{}", ("p.jsonl:2", "neither token_ids nor text")),
        ('{"token_ids": [1], "text": "a"}', ("p.jsonl:2", "one of them")),
        ('{"token_id": [1]}', ("p.jsonl:2", "token_id", "did you mean 'token_ids'")),
        ('{"token_ids": []}', ("p.jsonl:2", "token_ids", "at least one")),
        ('{"token_ids": "12"}', ("p.jsonl:2", "token_ids", "list")),
        ('{"token_ids": [1, 2.5]}', ("p.jsonl:2", "token_ids[1] = 2.5", "whole number")),
        ('{"token_ids": [true]}', ("p.jsonl:2", "token_ids[0] = True", "whole number")),
        ('{"token_ids": [null]}', ("p.jsonl:2", "token_ids[0]", "whole number")),
        ('{"text": ""}', ("p.jsonl:2", "text", "at least one character")),
        ('{"text": 5}', ("p.jsonl:2", "text = 5", "must be a text")),
    ],
)
def test_a_line_that_is_no_prompt_is_named(line: str, words: tuple[str, ...]) -> None:
    message = str(refusal(f'{{"token_ids": [1]}}\n{line}\n'))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_prompts_is_refused(text: str) -> None:
    assert "holds no prompt" in str(refusal(text))


@pytest.mark.parametrize(
    ("token_ids", "words"),
    [
        ([0, 100], ("p:1", "token_ids[1] = 100", "0 to 99")),
        ([-1], ("p:1", "token_ids[0] = -1", "0 to 99")),
        ([1] * 29, ("p:1", "29 tokens", "33", "32 positions", "--max-new-tokens")),
    ],
)
def test_prompts_that_the_model_cannot_take(token_ids: list[int], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        check_prompts([Prompt("p:1", tuple(token_ids))], MODEL, 4)
    assert all(word in str(caught.value) for word in words), caught.value


@given(number=st.integers(1, 9), new=st.integers(1, 31), seed=st.integers(0, 99))
def test_made_up_prompts_are_the_same_each_time_and_fit_the_model(number: int, new: int, seed: int) -> None:
    made = made_up_prompts(MODEL, number, new, seed)
    assert made == made_up_prompts(MODEL, number, new, seed)
    assert len(made) == number
    check_prompts(made, MODEL, new)
    unlimited: Any = MODEL.model_copy(update={"max_position_embeddings": None})
    check_prompts(made_up_prompts(unlimited, number, new, seed), unlimited, new)
