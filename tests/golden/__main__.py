"""Freezes the golden runs: `PYTHONPATH=tests python -m golden` writes tests/golden/values.json anew, and says what moved."""

import sys
import tempfile
from pathlib import Path

from golden import RUNS, VALUES, measure, moved, read, write

values, before = {}, read()["runs"] if VALUES.exists() else {}
for name in RUNS:
    with tempfile.TemporaryDirectory() as folder:
        values[name] = measure(name, Path(folder))
    if name in before:
        print(f"{name:<22}{moved(before[name], values[name])}", flush=True)
if "--check" not in sys.argv:
    write(values)
