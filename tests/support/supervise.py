"""`convobase serve --workers 2`, each worker with a log of its own: no setting allows that, but it shows the workers
without an engine that they share."""

import os
import sys

from gateway.server import reserve
from gateway.settings import LogAndSessions, Serving, Settings
from gateway.supervisor import StartFailed, supervise
from gateway.telemetry.logging import configure

configure("info", "json")
settings = Settings(
    serving=Serving(port=0, workers=2, drain_s=float(os.environ["CONVOBASE_DRAIN_S"]), log_format="json"),
    log=LogAndSessions(log_url=os.environ["CONVOBASE_LOG_URL"]),
)
try:
    with reserve("127.0.0.1", 0) as reserved:
        sys.exit(0 if supervise(settings, reserved) else 1)
except StartFailed as problem:
    sys.exit(f"convobase: {problem}")
