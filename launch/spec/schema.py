"""jobs/schema.json, by which editors complete and underline; `python -m launch.spec.schema` makes
it from the models that check jobs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.spec.job import JobSpec

PATH = Path(__file__).resolve().parents[2] / "jobs" / "schema.json"


def schema() -> dict[str, Any]:
    """JSON Schema of a job file.

    A job that `extends` another, and a `fallback`, may leave anything out, so nothing is required.
    """
    made = JobSpec.model_json_schema()
    for model in [made, *made["$defs"].values()]:
        model.pop("required", None)
        if "description" in model:  # a docstring, wrapped for its file
            model["description"] = " ".join(model["description"].split())
        for part in model.get("properties", {}).values():
            if "oneOf" in part:  # without its name, which a base may give, a part fits several
                part["anyOf"] = part.pop("oneOf")
                part.pop("discriminator", None)
    properties = made["properties"]
    properties["extends"] = {
        "type": "string",
        "description": "another job of this folder to start from",
    }
    overlay = {
        name: value
        for name, value in properties.items()
        if name not in ("extends", "sweep", "published")
    }
    properties["fallback"] = {
        "type": "object",
        "properties": overlay,
        "additionalProperties": False,
        "description": "laid on top where the chosen place has no GPU",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "A job of Batchyard",
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(schema(), indent=1) + "\n")
