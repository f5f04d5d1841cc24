"""Our declarations of ONNX Runtime's C API against its real header, which tools/fetch_ort_android.py brings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.tooling import require
from tools.build_kernels import KERNELS
from tools.fetch_ort_android import TARGET

HEADERS = TARGET / "headers"
OWN = KERNELS / "src" / "ort_abi.h"
COMPILER = next((name for name in ("g++", "clang++", "clang++-19") if shutil.which(name)), None)


@pytest.fixture(autouse=True)
def tools() -> None:
    require(HEADERS.is_dir(), "no build/ort-android: python -m tools.fetch_ort_android (needs npm)")
    require(COMPILER is not None, "no g++ or clang++")


def indices() -> dict[str, int]:
    """Entries of OrtApi that the operator uses, by name."""
    return {name: int(index) for name, index in re.findall(r"kApi(\w+) = (\d+),", OWN.read_text())}


def fields() -> list[str]:
    """Fields of our OrtCustomOp in their order."""
    body = re.search(r"struct OrtCustomOp \{\n(.*?)\n\};", OWN.read_text(), re.DOTALL)
    assert body is not None
    return re.findall(r"^  (?:uint32_t |.*?\(EK_CALL\* ?)(\w+)", body[1], re.MULTILINE)


def compile_(source: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compiles and runs a program that includes the real header and ours."""
    path = folder / "program.cpp"
    path.write_text(f'#include <cstddef>\n#include "onnxruntime_c_api.h"\n#include "{OWN}"\n{source}')
    # offsetof of a type with a deleted constructor is conditionally supported: every compiler here does it.
    command = [str(COMPILER), "-std=c++17", "-Wno-invalid-offsetof", f"-I{HEADERS}", "-c", str(path), "-o", "/dev/null"]
    return subprocess.run([*command, *flags], capture_output=True, text=True)


def table_asserts(entries: dict[str, int]) -> str:
    """One assertion for each entry of the function table."""
    return "".join(
        f'static_assert(offsetof(::OrtApi, {name}) == {index} * sizeof(void*), "kApi{name}");\n'
        for name, index in entries.items()
    )


def test_every_index_is_that_of_the_real_header(tmp_path: Path) -> None:
    entries = indices()
    assert len(entries) > 10
    done = compile_(table_asserts(entries), tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_wrong_index_is_noticed(tmp_path: Path) -> None:
    done = compile_(table_asserts({"CreateStatus": 1}), tmp_path)
    assert done.returncode != 0
    assert "kApiCreateStatus" in done.stderr


def test_the_operator_structure_is_the_real_one(tmp_path: Path) -> None:
    names = fields()
    assert len(names) > 20 and names[0] == "version"
    # Every field is a function pointer after the version: equal size and offsets leave no room for one we do not list.
    checks = "".join(
        f'static_assert(offsetof(::OrtCustomOp, {name}) == offsetof(edgekit::OrtCustomOp, {name}), "{name}");\n'
        f'static_assert(offsetof(edgekit::OrtCustomOp, {name}) == {index} * sizeof(void*), "{name} is not number {index}");\n'
        for index, name in enumerate(names)
    )
    size = (
        'static_assert(sizeof(::OrtCustomOp) == sizeof(edgekit::OrtCustomOp), "size");\n'
        f'static_assert(sizeof(edgekit::OrtCustomOp) == {len(names)} * sizeof(void*), "a field is not checked");\n'
    )
    done = compile_(checks + size, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("own", "real"),
    [
        ("kUndefined", "ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED"),
        ("kFloat", "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT"),
        ("kUint8", "ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8"),
        ("kFloat16", "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16"),
        ("kRequired", "INPUT_OUTPUT_REQUIRED"),
        ("kOptional", "INPUT_OUTPUT_OPTIONAL"),
        ("kFail", "ORT_FAIL"),
        ("kInvalidArgument", "ORT_INVALID_ARGUMENT"),
        ("kNotImplemented", "ORT_NOT_IMPLEMENTED"),
    ],
)
def test_constants_are_those_of_the_real_header(own: str, real: str, tmp_path: Path) -> None:
    done = compile_(f'static_assert(int(edgekit::{own}) == int(::{real}), "{own}");\n', tmp_path)
    assert done.returncode == 0, done.stderr


def test_our_version_is_one_that_the_real_header_has(tmp_path: Path) -> None:
    done = compile_('static_assert(edgekit::kApiVersion <= ORT_API_VERSION, "");\n', tmp_path)
    assert done.returncode == 0, done.stderr
