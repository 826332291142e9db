"""`python -m trainer.prepare config.json --data-dir D --cache-dir C`: makes the run's data set ready; one JSON object on stdout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.config.run import RunConfig
from trainer.data.prepared import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    print(json.dumps(prepare(config.train.data, arguments.data_dir, arguments.cache_dir)))


if __name__ == "__main__":
    main()
