"""One page and its server for all tests of this folder."""

from collections.abc import Iterator

import pytest

from dimvl.app.exports import Exports
from tests.app.made import make_exports, recorded_hosts, served


@pytest.fixture(scope="package")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return make_exports(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="package")
def contacted() -> Iterator[set[str]]:
    """Hosts that this process, with the server in it, connects to or looks up."""
    with recorded_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="package")
def url(exports: Exports, contacted: set[str]) -> Iterator[str]:
    """Address of the page."""
    with served(exports) as address:
        yield f"{address}/"
