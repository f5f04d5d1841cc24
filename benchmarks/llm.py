"""The command ``python benchmarks/llm.py``; what it does is in benchmarks/llm/throughput.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llm.throughput import main

if __name__ == "__main__":
    main()
