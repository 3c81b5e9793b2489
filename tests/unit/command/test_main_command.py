"""What every verb has in common: exit codes, and errors that say what to try."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import pytest

from fpstate import errors
from fpstate.command import cpu, main
from fpstate.errors import FpStateError


def children(kind: type[FpStateError]) -> list[type[FpStateError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in children(child))]


@pytest.fixture
def verb_that_raises(monkeypatch):
    """Let ``fpstate cpu`` raise an error."""

    def install(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(cpu, "run", run)

    return install


@pytest.mark.parametrize("verb", main.VERBS)
def test_each_verb_has_help_and_a_module_of_its_own(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([verb, "--help"])
    assert caught.value.code == 0
    assert f"fpstate {verb}" in capsys.readouterr().out
    assert (Path(main.__file__).parent / f"{verb}.py").exists()


def test_the_help_names_every_verb_and_exit_code(capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {verb} " in text for verb in main.VERBS)
    assert all(f"{code} " in text.partition("exit codes")[2] for code in range(5))


@pytest.mark.parametrize("arguments", [[], ["no-such-verb"], ["cpu", "--no-such-option"], ["run", "--vcpus"]])
def test_a_wrong_command_line_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error" in captured.err


def test_an_error_is_printed_with_what_to_try_and_answered_with_its_code(verb_that_raises, capsys):
    verb_that_raises(FpStateError("the matter", help="something else"))
    assert main.main(["cpu"]) == 2
    assert capsys.readouterr().err == "fpstate: the matter\n  try: something else\n"


def test_the_exit_code_is_that_of_the_kind_of_error(verb_that_raises, capsys):
    verb_that_raises(errors.UnsupportedHere("AMX"))
    assert main.main(["cpu"]) == 3
    assert capsys.readouterr().err == "fpstate: not supported here: AMX\n"
    verb_that_raises(errors.PermissionDenied(18, "no"))
    assert main.main(["cpu"]) == 1


def test_every_error_has_one_of_the_five_exit_codes():
    assert {kind.exit_code for kind in children(FpStateError)} <= {1, 2, 3, 4}


def test_an_error_of_the_operating_system_is_2_and_an_interrupt_130(verb_that_raises, capsys):
    verb_that_raises(FileNotFoundError(2, "No such file", "state.bin"))
    assert main.main(["cpu"]) == 2
    assert "state.bin" in capsys.readouterr().err
    verb_that_raises(KeyboardInterrupt())
    assert main.main(["cpu"]) == 130


def test_without_memory_it_is_2(verb_that_raises, capsys):
    verb_that_raises(MemoryError())
    assert main.main(["cpu"]) == 2
    assert capsys.readouterr().err == "fpstate: out of memory\n"


def test_a_mistake_of_ours_is_not_hidden(verb_that_raises):
    verb_that_raises(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main.main(["cpu"])


def test_an_unknown_processor_lists_those_that_are_known(capsys):
    assert main.main(["cpu", "--cpu", "pentium"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown processor 'pentium'" in captured.err
    assert "try: known: " in captured.err
    assert "sapphire-rapids" in captured.err


def test_closed_standard_output_is_no_reason_for_a_traceback(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main.main(["cpu", "--cpu", "zen4"]) == 0
    sys.stdout.close()


def test_verbs_that_draw_import_rich_only_inside_functions():
    for path in Path(main.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or node.names[0].name
                assert not module.startswith("rich"), path
