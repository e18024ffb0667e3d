"""The bytes of a segment lie where they lay when the ABI version was made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyhub._core import ABI_VERSION

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "include/pyhub"


@pytest.fixture
def probed(build: Any) -> str:
    done = subprocess.run([build("layout_probe.c")], capture_output=True, text=True, check=True)
    return done.stdout


def test_layout_is_the_one_of_its_abi_version(probed: str) -> None:
    golden = HERE / f"golden/layout_{ABI_VERSION}.txt"
    assert probed == golden.read_text(), (
        "a shared struct changed: raise PHB_ABI_VERSION and add a golden file"
    )


def test_python_and_c_speak_of_the_same_abi_version(probed: str) -> None:
    assert int(_constant(probed, "PHB_ABI_VERSION")) == ABI_VERSION


def test_python_and_c_agree_on_the_constants(probed: str) -> None:
    from pyhub import _datablock

    for python, c in [
        (_datablock.ZONE_FLEX, "PHB_ZONE_FLEX"),
        (_datablock.ZONE_STRUCTURED, "PHB_ZONE_STRUCTURED"),
        (_datablock.FLEX_MSGPACK, "PHB_FLEX_MSGPACK"),
        (_datablock.FLEX_JSON, "PHB_FLEX_JSON"),
        (_datablock.MAX_SLOTS, "PHB_MAX_SLOTS"),
    ]:
        assert python == int(_constant(probed, c))


def test_every_field_of_a_shared_struct_is_probed(probed: str) -> None:
    shared = {
        "segment.h": ["phb_segment_header", "phb_segment_live"],
        "readers.h": ["phb_readers_constants", "phb_readers_control", "phb_reader_place"],
        "datablock_layout.h": [
            "phb_datablock_constants",
            "phb_record",
            "phb_datablock_control",
            "phb_slot",
            "phb_flex_entry",
        ],
    }
    for header, structs in shared.items():
        text = re.sub(r"/\*.*?\*/", "", (INCLUDE / header).read_text(), flags=re.DOTALL)
        for struct in structs:
            body = text.partition(f"typedef struct {struct} {{")[2].partition("}")[0]
            names = re.findall(r"(\w+)(?:\[\w+\])?\s*[,;]", body)
            assert names
            assert re.findall(rf"{struct}\.(\w+)", probed) == names


def test_no_two_fields_overlap_and_none_is_forgotten(probed: str) -> None:
    at, struct, struct_size = 0, "", 0
    for line in probed.partition("PHB_FLEX_JSON")[2].splitlines()[1:]:
        if match := re.fullmatch(r"(phb_\w+) +(\d+)", line):
            assert at == struct_size, f"bytes of {struct} without a name"
            at, struct, struct_size = 0, match[1], int(match[2])
        elif match := re.fullmatch(r"  phb_\w+\.(\w+) +(\d+) +(\d+)", line):
            offset, size = int(match[2]), int(match[3])
            assert offset == at, f"{struct}.{match[1]}: padding or overlap"
            at = offset + size
    assert at == struct_size
    assert struct == "phb_flex_entry"


def _constant(probed: str, name: str) -> str:
    match = re.search(rf"^{name} +(\d+)$", probed, re.MULTILINE)
    assert match
    return match[1]
