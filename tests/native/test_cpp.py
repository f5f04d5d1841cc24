"""The kernels on their own, in C++: every instruction set against the scalar one, sanitized, fuzzed, emulated, and broken.

The last test plants faults: a suite that passes with them would prove nothing.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.lowbit.library import load_library
from tests.support import cpp
from tests.support.tooling import ROOT, need

KERNELS = ROOT / "edgekit" / "kernels"
VECTORS = ROOT / "tests" / "vectors" / "operators"
COMMON = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra")
SANITIZED = ("-O1", "-g", "-fno-sanitize-recover=all")
ZIG = (sys.executable, "-m", "ziglang", "c++", "-O2", "-fno-sanitize=undefined")
# Zig builds a C++ library of its own first; any clang does for a fault that is to be found.
ANY = ("clang++-19", "-O1") if shutil.which("clang++-19") else ZIG
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 kernels")


def build(compiler: tuple[str, ...], sources: Path, made: Path, *more: str) -> Path:
    """test_kernels from ``sources``, a directory like edgekit/kernels/src."""
    files = [*sources.glob("kernels_*.cpp"), sources / "processor.cpp", KERNELS / "test" / "test_kernels.cpp"]
    return cpp.program((*compiler, *COMMON, *more), sources, files, made)


def build_operator(compiler: tuple[str, ...], sources: Path, made: Path) -> Path:
    """test_operator from ``sources``: all of the library but memory.cpp, which stands in for the C library it has here."""
    files = [path for path in sources.glob("*.cpp") if path.name != "memory.cpp"]
    files += [KERNELS / "test" / "test_operator.cpp", KERNELS / "test" / "golden.cpp"]
    return cpp.program((*compiler, *COMMON), sources, files, made)


def run(*command: str, timeout: int = 1800) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def finds_a_fault(*command: str) -> bool:
    """Whether a program fails; its first failed check is enough."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        failed = any(line.startswith("FAILED: ") or " differs (" in line for line in process.stdout)
        if failed:
            process.kill()
    return failed or process.returncode != 0


def test_every_instruction_set_is_exact_and_stays_in_its_memory(tmp_path: Path) -> None:
    need("clang++-19")
    library = load_library()
    assert library is not None
    compiler = ("clang++-19", *SANITIZED, "-fsanitize=address,undefined")
    done = run(str(build(compiler, KERNELS / "src", tmp_path / "test")), *library.supported)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(library.supported)
    assert done.stdout.count("exact") == len(library.supported)


def test_the_operator_refuses_word_for_word_keeps_nothing_and_is_exact(tmp_path: Path) -> None:
    need("clang++-19")
    library = load_library()
    assert library is not None
    compiler = ("clang++-19", *SANITIZED, "-fsanitize=address,undefined")
    made = build_operator(compiler, KERNELS / "src", tmp_path / "test")
    done = run(str(made), str(VECTORS), *library.supported)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exact") == len(library.supported)


@on_x86
def test_avx_vnni_where_only_avx512_is(tmp_path: Path) -> None:
    library = load_library()
    assert library is not None
    if "avx512vnni" not in library.supported:
        pytest.skip("no AVX512-VNNI to run AVX-VNNI's kernels on")
    done = run(str(build(ZIG, KERNELS / "src", tmp_path / "test", "-DEDGEKIT_TEST_EVEX")))
    assert done.returncode == 0, done.stdout
    assert "in AVX512's encoding: avxvnni: " in done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def for_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("qemu-aarch64-static")
    made = tmp_path_factory.mktemp("arm64") / "test"
    return build((*ZIG, "-target", "aarch64-linux-musl", "-static"), KERNELS / "src", made)


@pytest.mark.parametrize(
    ("cpu", "isas"),
    [
        ("cortex-a72", ["neon", "scalar"]),
        ("cortex-a76", ["neon_dotprod", "neon", "scalar"]),
        ("max", ["neon_i8mm", "neon_dotprod", "neon", "scalar"]),
    ],
)
def test_arm64(for_arm64: Path, cpu: str, isas: list[str]) -> None:
    """Raspberry Pi 4, Raspberry Pi 5 and newest phones: exact, and nothing is run that the processor lacks."""
    done = run("qemu-aarch64-static", "-cpu", cpu, str(for_arm64), *isas)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == isas


def test_arm32(tmp_path: Path) -> None:
    need("qemu-arm-static")
    compiler = (*ZIG, "-target", "arm-linux-musleabihf", "-mcpu=cortex_a9", "-static")
    done = run("qemu-arm-static", str(build(compiler, KERNELS / "src", tmp_path / "test")), "neon", "scalar")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_on_arm32(tmp_path: Path) -> None:
    """Nothing else runs it there: 32-bit sizes, and division without a library."""
    need("qemu-arm-static")
    compiler = (*ZIG, "-target", "arm-linux-musleabihf", "-mcpu=cortex_a9", "-static")
    made = build_operator(compiler, KERNELS / "src", tmp_path / "test")
    done = run("qemu-arm-static", str(made), str(VECTORS), "neon", "scalar")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "runs"), [("fuzz_operator", 10000), ("fuzz_experts", 6000), ("fuzz_attention", 4000)])
def test_fuzzing_the_operators_finds_nothing(name: str, runs: int, tmp_path: Path) -> None:
    need("clang++-19")
    sources = [s for s in (KERNELS / "src").glob("*.cpp") if s.name != "memory.cpp"]
    compiler = ("clang++-19", *COMMON, *SANITIZED, "-fsanitize=fuzzer,address,undefined")
    made = cpp.program(compiler, KERNELS / "src", [*sources, KERNELS / "test" / f"{name}.cpp"], tmp_path / "fuzz")
    (tmp_path / "corpus").mkdir()
    # Counted, not timed: a busy machine only takes longer.
    limits = (f"-runs={runs}", "-max_len=2000", "-len_control=0", "-seed=1")
    found_before = [str(KERNELS / "test" / "corpus")] if name == "fuzz_operator" else []
    done = run(str(made), *limits, f"-artifact_prefix={tmp_path}/", str(tmp_path / "corpus"), *found_before)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr


PLANTED = [
    # file, what stands there, what is written instead
    ("x86_256.h", "_mm256_srli_epi16(words[g], 4)", "_mm256_srli_epi16(words[g], 2)"),
    ("kernels_avx2.cpp", "_mm256_srli_epi16(w, 6)", "_mm256_srli_epi16(w, 4)"),
    ("kernels_avx2.cpp", "_mm256_set1_epi8(static_cast<char>(0x80))", "_mm256_set1_epi8(static_cast<char>(0x40))"),
    ("x86_256.h", "s < blocks * kSteps", "s + 1 < blocks * kSteps"),
    ("x86_256.h", "_mm256_permute2x128_si256(quad[0][i], quad[1][i], 0x31)", "quad[0][i]"),
    ("floats.h", "0x4B400000", "0x4B400001"),
    ("kernels_scalar.cpp", "(each ? b : 0)", "0"),
    ("sparse_256.h", "stored[half] > 32", "stored[half] > 40"),
    ("sparse_256.h", "codes += _mm_popcnt_u32(byte)", "codes += _mm_popcnt_u32(byte & 0x7F)"),
    ("kernels_avx512vbmi2.cpp", "_mm512_srli_epi16(codes[1], 4)", "_mm512_srli_epi16(codes[1], 3)"),
    ("kernels_avx512vbmi2.cpp", "if (!take_block<F>(&row, w)) return false;", "take_block<F>(&row, w);"),
    ("kernels.h", "codes[0] <= end && codes[1] <= end", "codes[0] <= end"),
    ("kernels_avx512vnni.cpp", "_mm512_srli_epi16(words[g], 6)", "_mm512_srli_epi16(words[g], 5)"),
    ("kernels_avx512vnni.cpp", "(2 * g + 1) * kWords", "(2 * g) * kWords"),
    ("blocks_avx512.h", "left < kPiece ? plane<true>", "left < 0 ? plane<true>"),
    ("blocks_avx512.h", "apart ? 4 : 8", "4"),
    ("blocks_avx512.h", "if (some == 2) results", "results"),
    ("blocks_avx512.h", "begun[t] = _mm512_setzero_si512();", ""),
    ("blocks_256.h", "kApart == 2) sum =", "kApart == 3) sum ="),
    ("blocks_256.h", ": 4 * kChain", ": 8 * kChain"),
    ("blocks_256.h", "if (half) break;", ""),
    ("blocks_256.h", "<< 16 * i", "<< 8 * i"),
    ("blocks_avx512.h", "_mm256_set_m128i(two(row + 8 * stride), two(row))", "_mm256_set_m128i(two(row), two(row))"),
    ("attention_tiles.h", "k[at + 4] + d", "k[at + 3] + d"),
    ("attention_tiles.h", "             static_cast<size_t>(hi[r]));", "             static_cast<size_t>(last));"),
    ("attention_tiles.h", "sees ? fused(sum, o, old_sum * b) : old_sum", "fused(sum, o, old_sum * b)"),
]


@on_x86
@pytest.mark.parametrize("fault", range(len(PLANTED)))
def test_a_planted_fault_is_found(fault: int, tmp_path: Path) -> None:
    name, right, wrong = PLANTED[fault]
    shutil.copytree(KERNELS / "src", tmp_path / "src")
    text = (tmp_path / "src" / name).read_text(encoding="utf-8")
    assert right in text, f"{name} no longer has {right!r}: plant another fault"
    (tmp_path / "src" / name).write_text(text.replace(right, wrong, 1), encoding="utf-8")
    if name == "floats.h":  # shared by all instruction sets: only the scalar side is broken
        scalar, wrong_text = tmp_path / "src" / "kernels_scalar.cpp", text.replace(right, wrong, 1)
        both = f"#ifdef BROKEN\n{wrong_text}\n#else\n{text}\n#endif\n"
        (tmp_path / "src" / name).write_text(both, encoding="utf-8")
        scalar.write_text(f"#define BROKEN\n{scalar.read_text(encoding='utf-8')}", encoding="utf-8")
    assert finds_a_fault(str(build(ANY, tmp_path / "src", tmp_path / "test")))


PLANTED_IN_THE_OPERATOR = [
    ("floats.h", "kRounder = 12582912.0f", "kRounder = 12582914.0f"),
    ("floats.h", "largest < kSmallest ? kSmallest : largest", "largest"),
    ("floats.h", "largest / 127.0f", "largest * (1.0f / 127.0f)"),
    ("floats.h", "(step * scales[r])", "step * scales[r]"),
    ("half.h", "(magnitude >> 13 & 1u)", "1u"),
    ("half.h", "value *= 0x1p112f;", "value *= magnitude < 0x400u ? 0x1p111f : 0x1p112f;"),
    ("arguments.cpp", "s.type == kFloat16 && a.format == kInt4", "s.type == kFloat16 && in_blocks(a.format)"),
    ("call.h", "kInt4 ? 8 : kernels.int8_zero", "kInt4 ? 8 : 128"),
    ("call.h", "? kernels.sparse4_zero : zero_of", "? kernels.int8_zero : zero_of"),
    ("product.cpp", "!a.each && block > 0, panel.sums", "!a.each && block > 4, panel.sums"),
    ("product.cpp", "if (!at[r].done()) return not_intact(call);", ""),
    ("product.cpp", "|| (at.last && !rows[r].done())", ""),
    ("arguments.cpp", "first == begin && end == stop", "first == begin"),
    ("call.h", "y[r] += a.bias[first + r]", "y[r] += a.bias[r]"),
    ("product.cpp", "if (freed != nullptr) api.release_status(freed);", ""),
    ("arguments.cpp", "w.dims[1] == static_cast<int64_t>(blocks)", "w.dims[1] <= static_cast<int64_t>(blocks)"),
    ("arguments.cpp", "if (x.dims[i] < 0 || x.dims[i] >= kMostRows)", "if (x.dims[i] >= kMostRows)"),
    ("tensor.h", "  api.release_info(info);", ""),
    ("operator.h", "  node.api.release_allocator(node.allocator);", ""),
    ("block_quantize.h", "*corrections = -zero * sum", "*corrections = 1 - zero * sum"),
    ("product_blocks.cpp", "kernels.rows - left + r", "r"),
    ("arguments.cpp", "rounding != 0 && rounding != block", "rounding < 0"),
    ("experts.cpp", "(middle * call.tiles() <= part ? g : end)", "(middle * call.tiles() < part ? g : end)"),
    ("experts.cpp", "static_cast<uint64_t>(a.index[p]) >= a.experts", "static_cast<uint64_t>(a.index[p]) > a.experts"),
    ("experts.cpp", "call.pair_in[slot + t] * a.n", "(slot + t) * a.n"),
    ("experts.cpp", "smaller(kPartTokens, call.first[g + 1] - slot)", "call.first[g + 1] - slot"),
    ("experts.cpp", "a.scales + above * a.blocks", "a.scales"),
    ("experts.cpp", "for (size_t i = 1; i < a.each; ++i)", "for (size_t i = 2; i < a.each; ++i)"),
    (
        "experts.cpp",
        "call.corrections + from * a.blocks, a.blocks * sizeof(int32_t)",
        "call.corrections, sizeof(int32_t)",
    ),
    ("experts_arguments.cpp", "by_token ? static_cast<size_t>(each) : 1", "1"),
    ("experts_arguments.cpp", "scales.dims[0] == w.dims[0] && ", ""),
    ("attention.cpp", "end < window ? 0 : end - window", "end < window ? 0 : end - window + 1"),
    ("attention.cpp", "to < kPositions ? to : kPositions", "to"),
    ("attention.cpp", "(a.slots * a.dim - used) * sizeof(float)", "0"),
    ("attention.cpp", "a.cos + slot * a.half", "a.cos + t * a.half"),
    ("attention.cpp", "a.sink != nullptr ? 1.0f : 0.0f", "0.0f"),
    ("attention.cpp", "call.initial(g * call.shared + row % call.shared)", "call.initial(g * call.shared)"),
    ("attention.cpp", "(first + some) * width < rows ? (first + some) * width : rows", "first * width + 1"),
    ("attention.cpp", "at * a.past_slots * a.dim", "at * a.slots * a.dim"),
    ("attention_arguments.cpp", "end >= least - 1 && end < most", "end < most"),
    ("attention_arguments.cpp", "out->ends[b] < cos.dims[0]", "out->ends[b] <= cos.dims[0]"),
    ("attention_arguments.cpp", "  api.release_status(status);  // it names", "  // it names"),
    ("attention_arguments.cpp", "out->k + out->groups * out->dim", "out->k + out->heads * out->dim"),
    ("attention_tiles.h", "1.6666665459e-1f", "1.6667e-1f"),
    ("attention_tiles.h", "z < V{} ? -tanh : tanh", "tanh"),
    ("attention_tiles.h", "kOrder[kLanes] = {0, 4, 2, 6,", "kOrder[kLanes] = {0, 2, 4, 6,"),
]
HARMLESS = [
    ("kernels.h", "kPrefetch = 4096", "kPrefetch = 0"),
    ("product.cpp", "__builtin_prefetch(w + r * call.a.row_bytes + i)", "(void)(w + r + i)"),
    ("attention_tiles.h", "__builtin_prefetch(p + i, 0, 2)", "(void)(p + i)"),
]


@on_x86
@pytest.mark.parametrize(("name", "right", "wrong"), PLANTED_IN_THE_OPERATOR + HARMLESS)
def test_a_fault_planted_in_the_operator_is_found(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    """What is asked for ahead of time may change: that must not be taken for a fault."""
    shutil.copytree(KERNELS / "src", tmp_path / "src")
    text = (tmp_path / "src" / name).read_text(encoding="utf-8")
    assert right in text, f"{name} no longer has {right!r}: plant another fault"
    (tmp_path / "src" / name).write_text(text.replace(right, wrong, 1), encoding="utf-8")
    found = finds_a_fault(str(build_operator(ANY, tmp_path / "src", tmp_path / "test")), str(VECTORS))
    assert found == ((name, right, wrong) not in HARMLESS)
