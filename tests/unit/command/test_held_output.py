"""Reports that are printed thread by thread: nothing of what is refused soon, and JSON as it was."""

import io
import json

import pytest

from fpstate.command.held_output import HELD, HeldOutput, write_json


def break_off(file, *texts):
    with HeldOutput(file) as out:
        for text in texts:
            out.write(text)
        raise ValueError("broke off")


def test_what_breaks_off_soon_prints_nothing_and_what_breaks_off_late_what_there_was():
    for length, printed in ((10, ""), (HELD, "x" * (HELD + 1) + "y")):
        file = io.StringIO()
        with pytest.raises(ValueError, match="broke off"):
            break_off(file, "x" * (length + 1), "y")
        assert file.getvalue() == printed


def test_what_ends_well_is_printed():
    file = io.StringIO()
    with HeldOutput(file) as out:
        print("a", "b", file=out)
        assert file.getvalue() == ""
    assert file.getvalue() == "a b\n"


@pytest.mark.parametrize("indent", [None, 1, 2])
@pytest.mark.parametrize("items", [[], [{"a": 1}], [{"a": [1, {"b": "x\ny"}], "c": {}}, {}, "z"]])
@pytest.mark.parametrize("tail", [{}, {"odd": 0, "unread": [{"tid": 1}]}])
def test_json_is_that_of_the_whole_object(indent, items, tail):
    head = {"schema": "x/1", "target": {"cpu": "zen4"}, "none": None}
    file = io.StringIO()
    with HeldOutput(file) as out:
        write_json(out, head, "threads", iter(items), tail=lambda: tail, indent=indent)
    assert file.getvalue() == json.dumps({**head, "threads": items, **tail}, indent=indent) + "\n"
