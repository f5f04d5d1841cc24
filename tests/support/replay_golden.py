"""Runs a model of golden cases where nothing of edgekit is installed: python replay_golden.py DIRECTORY LIBRARY THREADS.

Prints one line of JSON: the number of outputs, those whose bits differ, and what the library says of itself.
"""

import ctypes
import json
import sys

import numpy as np
import onnxruntime

directory, library, threads = sys.argv[1:]
version = ctypes.CDLL(library).EdgekitOpsVersion
version.restype = ctypes.c_char_p
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(f"{directory}/model.onnx", options, providers=["CPUExecutionProvider"])
expected = np.load(f"{directory}/expected.npz")
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(names, {}), strict=True))
differing = [n for n in names if found[n].dtype != expected[n].dtype or found[n].tobytes() != expected[n].tobytes()]
facts = {
    "outputs": len(names),
    "differing": differing,
    "version": version().decode("ascii"),
    "ort": onnxruntime.__version__,
}
print(json.dumps(facts))
