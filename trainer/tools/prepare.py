"""`python -m trainer.tools.prepare config.json --data-dir D --cache-dir C`: makes ready what the
run needs from outside: its data set and the weights that it begins with; one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import EXIT_WRONG
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare
from trainer.prepared.classes import check
from trainer.prepared.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    allow = config.execution.allow_unverified_data
    try:
        started = read_json(RunDir(arguments.config.absolute().parent).data_record)
        record = prepare(
            config.train.data,
            arguments.data_dir,
            arguments.cache_dir,
            allow_unverified=allow,
            started=started,
            most_pixels=config.execution.max_image_pixels,
        )
        record["notes"] += check(config.train.data, record, started=bool(started))
        print(json.dumps({**record, **first_weights(config, record["classes"], arguments)}))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a full disk, a folder that may not be written
        print(
            f"preparing {config.train.data.name} in {arguments.cache_dir}: {error}", file=sys.stderr
        )
        sys.exit(EXIT_WRONG)


def first_weights(
    config: RunConfig, classes: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Brings the weights that the run begins with, and holds them and the frozen names against the
    model. Raises DataError.
    """
    given = config.train.weights
    found = None
    record: dict[str, Any] = {}
    if given is None and not config.train.freeze:
        return record
    # and with it torch: 2 s, for those alone who need it
    from trainer.weights import fetch, load, state_dict

    if given is not None and given.run is None:
        record = {"weights": fetch.bring(given, arguments.data_dir, arguments.cache_dir)}
        found = state_dict.read(Path(record["weights"]["path"]))
    elif (
        given is not None
        and (
            other := RunDir(arguments.config.absolute().parent.parent / str(given.run))
        ).checkpoints.exists()
    ):
        # one that is still in the queue is looked at when this one begins
        _, found = load.of_run(other)
    load.check(config.train, len(classes), found)
    return record


if __name__ == "__main__":
    main()
