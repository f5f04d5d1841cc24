#!/bin/sh
# make_venv.sh PYTHON DIRECTORY: a virtual environment with PyTorch, its CPU build where pip finds one.
set -eu
python=$1
pip=$2/bin/pip

# edgekit itself runs on 3.10, but PyPI has ONNX Runtime 1.28 and newer for 3.11 and newer only.
if ! "$python" -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
	echo "Python 3.11 or newer is needed, $python is not: try make PYTHON=python3.12" >&2
	exit 1
fi
if [ ! -x "$pip" ]; then
	"$python" -m venv "$2"
	"$pip" install --quiet --upgrade pip
fi
if "$2/bin/python" -c "import torch" 2>/dev/null; then
	exit 0
fi
# First in the indexes that pip knows, then in PyTorch's own, which an offline mirror may not reach; the plain package
# (with CUDA on Linux) is what most platforms have.
"$pip" install --quiet "torch==2.13.0+cpu" 2>/dev/null ||
	"$pip" install --quiet --retries 0 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu \
		"torch==2.13.0+cpu" 2>/dev/null ||
	"$pip" install "torch>=2.10"
