"""The images of this machine's docker engine."""

from __future__ import annotations

import subprocess

from launch.errors import StartError


def image_id(client: str, image: str) -> str | None:
    """The engine's digest of the image, None where it has none.

    Raises StartError where there is no client or no engine.
    """
    try:
        found = subprocess.run(
            [client, "image", "inspect", "--format={{.Id}}", image],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise StartError(
            f"there is no '{client}' command here: install docker, or use --backend local"
        ) from None
    if found.returncode and "no such image" not in found.stderr.lower():
        raise StartError(
            f"`{client} image inspect {image}` failed ({found.returncode}): {found.stderr.strip()}"
        )
    return found.stdout.strip() if found.returncode == 0 else None
