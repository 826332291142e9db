"""`python -m trainer.prepare config.json --data-dir D --cache-dir C`: makes the run's data set ready; one JSON object on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.config.outcome import EXIT_WRONG
from trainer.config.run import RunConfig
from trainer.data.prepared import prepare
from trainer.data.raw import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    allow = config.execution.allow_unverified_data
    try:
        print(json.dumps(prepare(config.train.data, arguments.data_dir, arguments.cache_dir, allow_unverified=allow)))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"preparing {config.train.data.name} in {arguments.cache_dir}: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)


if __name__ == "__main__":
    main()
