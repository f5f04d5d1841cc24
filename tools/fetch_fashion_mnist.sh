#!/bin/sh
# Fashion-MNIST (MIT licence) from Debian's package into build/fashion-mnist: no root needed, nothing is installed.
# Optional: tests that need labelled images are skipped where it is not there.
set -eu
cd "$(dirname "$0")/.."
target=build/fashion-mnist
if [ -f "$target/t10k-labels-idx1-ubyte.gz" ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
	echo "no apt here: Fashion-MNIST is left out" >&2
	exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! (cd "$scratch" && apt-get download -qq dataset-fashion-mnist 2>/dev/null && dpkg-deb -x ./*.deb .); then
	echo "apt-get cannot download dataset-fashion-mnist here: Fashion-MNIST is left out" >&2
	exit 0
fi
mkdir -p "$target"
cp "$scratch"/usr/share/datasets/fashion-mnist/*.gz "$target/"
