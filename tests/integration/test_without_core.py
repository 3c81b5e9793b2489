"""Where the native core is not built: what needs none works, and the rest says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HIDE = """
import sys

class NoCore:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("fpstate._core"):
            raise ImportError("no module was built for this machine", name=name)
        return None

sys.meta_path.insert(0, NoCore())
"""
MISSING = "fpstate._core"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", HIDE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def fpstate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("from fpstate.command.main import main; sys.exit(main(sys.argv[1:]))", *arguments)


def printed(code: str) -> str:
    result = python(code)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_core_is_hidden_at_all():
    result = python("import fpstate._core")
    assert result.returncode == 1
    assert "no module was built" in result.stderr


def test_the_package_and_the_rooms_that_know_facts_import():
    assert (
        printed("import fpstate, fpstate.arch, fpstate.image, fpstate.program, fpstate.vso; print('yes')")
        == "yes"
    )


def test_images_and_layouts_work():
    code = """
from fpstate import Cpu, Image, Layout
image = Image.initial(Layout.compacted(Cpu.catalog("sapphire-rapids")))
image.registers["zmm31"] = 1 << 511
print(image.layout.size, hex(image.in_use), image == Image(image.to_bytes(), image.layout))
"""
    size, in_use, equal = printed(code).split()
    assert int(size) > 8192
    assert (in_use, equal) == ("0x80", "True")


def test_permission_and_sizes_work():
    code = """
from fpstate import Component, Cpu, Kind, Manager
manager = Manager(Cpu.catalog("sapphire-rapids"))
manager.request(Component.TILEDATA)
vso = manager.create(Kind.HOST)
print(vso.max_size, vso.size)
"""
    most, held = map(int, printed(code).split())
    assert most > 8192
    assert held == 0


def test_every_public_name_resolves():
    code = """
import fpstate
print(all(getattr(fpstate, name) is not None for name in fpstate.__all__))
from fpstate import *
"""
    assert printed(code) == "True"


@pytest.mark.parametrize(
    "use",
    [
        "fpstate.Cpu.host()",
        "fpstate.Manager()",
        "fpstate.NativeEngine(fpstate.Manager(fpstate.Cpu.catalog('zen4')))",
        "fpstate.Pool().take(576)",
        "fpstate.Context()",
        "fpstate.Order([])",
        "fpstate.switch(None, None)",
    ],
)
def test_what_needs_the_core_says_so(use):
    code = f"""
import fpstate
try:
    {use}
except fpstate.errors.UnsupportedHere as error:
    print(error.missing)
"""
    assert MISSING in printed(code)


def test_a_processor_of_the_catalog_can_be_shown():
    result = fpstate("cpu", "--cpu", "sapphire-rapids")
    assert (result.returncode, result.stderr) == (0, "")
    assert "TILEDATA" in result.stdout
    report = json.loads(fpstate("cpu", "--cpu", "sapphire-rapids", "--json").stdout)
    assert report["cpu"]["name"] == "sapphire-rapids"


@pytest.mark.parametrize("verb", [("cpu",), ("run",), ("run", "--json", "spin")], ids=" ".join)
def test_verbs_that_need_the_core_answer_3_and_name_it(verb):
    result = fpstate(*verb)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.startswith("fpstate: not supported here: ")
    assert MISSING in result.stderr
    assert "\n  try: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help")], ids=" ".join)
def test_help_works(arguments):
    assert fpstate(*arguments).returncode == 0


def test_the_engines_say_why_they_do_not_work():
    code = "from fpstate.engine import availability; print([(e.name, e.works, e.reason) for e in availability()])"
    engines = {name: (works, reason) for name, works, reason in eval(printed(code))}
    assert set(engines) == {"native", "kvm", "model"}
    for name in ("native", "model"):
        works, reason = engines[name]
        assert not works
        assert MISSING in reason
