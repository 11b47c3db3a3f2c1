"""`python -m tests.services.fake_service --port PORT`: the readable world of the tests behind a real server."""

from __future__ import annotations

import sys

from tests.fakes import build_fake_world
from tests.services.worlds import recall_world
from trm.server import build_recall_app
from trm.service import ServiceConfig, run_service


def main() -> None:
    """Serve until a signal to end."""
    config = ServiceConfig(port=int(sys.argv[sys.argv.index("--port") + 1]))
    run_service(build_recall_app(recall_world(build_fake_world()), config), config)


if __name__ == "__main__":
    main()
