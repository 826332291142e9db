"""The base of every model that a person's words become. Imports pydantic alone."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


class _Exact:
    """Refuses a value that is equal to one of `expected` and of another type, as pydantic refuses
    one that is not equal.
    """

    def __init__(self, expected: list[Any]) -> None:
        self.types = {type(value) for value in expected}
        *others, last = map(repr, expected)
        self.told = f"{', '.join(others)} or {last}" if others else last

    def __call__(self, value: Any) -> Any:
        if type(value) not in self.types:
            raise PydanticKnownError("literal_error", {"expected": self.told})
        return value


def _with_exact_literals(schema: Any) -> Any:
    """A copy of a core schema in which each Literal of other things than texts takes values of its
    own types alone.
    """
    if isinstance(schema, list):
        return [_with_exact_literals(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        texts = all(isinstance(value, str) for value in schema["expected"])
        return (
            schema
            if texts
            else core_schema.no_info_before_validator_function(_Exact(schema["expected"]), schema)
        )
    if isinstance(schema.get("function"), dict) and isinstance(
        schema["function"].get("function"), _Exact
    ):
        return schema  # of a model in this one, which is exact already
    return {
        key: value if key == "metadata" else _with_exact_literals(value)
        for key, value in schema.items()
    }


class Strict(BaseModel):
    """Unknown keys and values of another type are errors; a model never changes once it is made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """pydantic compares a Literal by ==, also where it is strict: true and 1.0 would be a
        Literal[1].
        """
        made: CoreSchema = _with_exact_literals(handler(source))
        return made
