"""What must be fast, each beside a plain alternative in the same run.

`python -m tests.benchmarks.<name>` prints rows of JSON.
"""
