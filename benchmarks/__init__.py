"""Speed and memory, against rivals in the same run: `python -m benchmarks.<name>`. No part of the test suite."""
