"""One private docker engine and one build of the CPU image for all tests in this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import IMAGE, SECRET, Engine, build_image, missing, private_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    lacking = missing()
    if lacking and os.environ.get("CI"):
        pytest.fail(f"CI has to run these tests: {lacking}")
    if lacking:
        pytest.skip(lacking)
    with private_engine() as running:
        yield running


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("secrets")
    pip_conf, ca_bundle = folder / "pip.conf", folder / "ca.pem"
    pip_conf.write_text(f"[global]\ntimeout = 7\n# {SECRET}\n")
    ca_bundle.write_text(f"# {SECRET}\n")
    return {"PIP_CONFIG_FILE": pip_conf, "CA_BUNDLE": ca_bundle}


@pytest.fixture(scope="session")
def image(engine: Engine, secrets: dict[str, Path]) -> str:
    build_image(engine, **secrets)
    return IMAGE
