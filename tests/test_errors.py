"""What is said of a stranger's input is one harmless line."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import Refused, Unreadable, one_line


@pytest.mark.parametrize("kind", [Refused, Unreadable])
def test_a_message_is_one_line_without_escape_sequences(kind: type[Exception]):
    error = kind("a\x1b[31m\x07red\x9b.tif\n: half \udcff, turned \u202e, café 地")
    assert str(error) == "a?[31m?red?.tif : half ?, turned ?, café 地"
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "as it comes out of an actor"


def test_every_character_that_moves_a_cursor_is_replaced():
    assert one_line("".join(map(chr, range(32)))).strip("? ") == ""
    assert one_line("ordinary  text") == "ordinary  text"
