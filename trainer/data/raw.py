"""Raw files as their publishers made them: found or fetched, their checksums held, and what to do where they are not there."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


class DataError(Exception):
    """The data is not there, or is not what it should be; the message says what, where to put it, and what to try."""


def read(
    folder: Path, published: Mapping[str, tuple[str, str]], *, what: str, allow_unverified: bool, fetch: Callable[[], None]
) -> dict[str, bytes]:
    """The files by name. published: name -> (algorithm, hex digest). fetch: brings them; called where one is missing.

    Raises DataError.
    """
    missing = [name for name in published if not (folder / name).is_file()]
    if missing:
        print(f"{what}: fetching into {folder.parent} ...", file=sys.stderr)
        try:
            fetch()
        except Exception as error:  # a library's download fails in many ways
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = "the download did not bring them"
        missing = [name for name in published if not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"{what}: {', '.join(missing)} not in {folder}, nor could be fetched ({reason}). "
                "Put the files there, or name their folder by --data-dir, paths.data in the site file, or BATCHYARD_DATA; "
                "the job `digits` runs without any download"
            )
    content = {name: (folder / name).read_bytes() for name in published}
    wrong = [n for n, (algorithm, digest) in published.items() if hashlib.new(algorithm, content[n]).hexdigest() != digest]
    if wrong and not allow_unverified:
        raise DataError(
            f"{what}: {', '.join(wrong)} in {folder} differ from the published checksums. "
            "Remove them to fetch them again, or train on them all the same by `execution: {allow_unverified_data: true}`"
        )
    if wrong:
        print(f"{what}: {len(wrong)} file(s) differ from the published checksums, taken as allowed", file=sys.stderr)
    return content
