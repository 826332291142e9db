#!/usr/bin/env bash
# optuna 5.0.0: a worker that is killed while it writes leaves half a line at the end of the journal of JournalFileBackend.
# Reading tolerates it, so nothing shows; the next record of any other worker is put onto that half line, and from then on
# no study of the file can be opened. A study that was only looked at, by create_study(load_if_exists=True), writes as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0 numpy==2.4.6
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
import json

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study() -> optuna.Study:
    storage = JournalStorage(JournalFileBackend("study.journal"))
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)


study().optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
with open("study.journal", "a") as journal:
    journal.write('{"op_code": 4, "wor')

print("half a record: opens,", len(study().trials), "trials")
try:
    study()
    print("after that: opens")
except json.JSONDecodeError as error:
    print("after that:", type(error).__name__)
PYTHON

cat seen
diff seen - <<'EXPECTED'
half a record: opens, 2 trials
after that: JSONDecodeError
EXPECTED
