"""DeepCABAC (ISO/IEC 15938-17) as the package nncodec has it, run by an interpreter of its own.

Reads int32 matrices from the .npz that is named and writes {name: {"bytes", "encode_s", "decode_s"}} as JSON; seconds are
of this thread, lists of one number a round. The layer alone is coded: no header, contexts optimized (its slow, best mode).
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

UNARY = 11  # the package's default
ROUNDS = 5


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.thread_time()
    found = run(*arguments)
    return found, time.thread_time() - began


def encoded(matrix: np.ndarray) -> np.ndarray:
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(UNARY, 1)
    skipped = np.zeros(len(matrix), np.int32)
    encoder.encodeLayer(matrix, 0, 0, 0, 0, 0, skipped, *HDSP_OPTS_OFF(), 0, 0)
    return np.array(encoder.finish(), np.uint8)


def decoded(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    decoder, found = deepCABAC.Decoder(), np.zeros(shape, np.int32)
    decoder.setStream(data)
    decoder.initCtxModels(UNARY)
    decoder.decodeLayer(found, 0, 0, 0, 0, *HDSP_OPTS_OFF(), 0, 0)
    return found


answers = {}
matrices = np.load(sys.argv[1])
for name in matrices.files:
    matrix = matrices[name]
    data, encode_s = timed(encoded, matrix)
    decode_s = []
    for _ in range(ROUNDS):
        found, seconds = timed(decoded, data, matrix.shape)
        decode_s.append(seconds)
        assert (found == matrix).all()
    answers[name] = {"bytes": len(data), "encode_s": [encode_s], "decode_s": decode_s}
print(json.dumps(answers))
