"""Stands for a worker where only its life matters: `fake_worker.py JOURNAL BEHAVIOURS NUMBER FD`.

BEHAVIOURS is a comma-separated list, one for each life of this worker; the last one is for all later lives. Each life
and each word that it hears is a line in JOURNAL; `dies-later` waits for a file `go` beside it.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

journal, behaviours, number, fd = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3], int(sys.argv[4])


def note(line: str) -> None:
    with journal.open("a") as file:
        file.write(f"{number} {line}\n")


lives = journal.read_text().count(f"{number} lives") if journal.exists() else 0
behaviour = behaviours[min(lives, len(behaviours) - 1)]
channel = socket.socket(fileno=fd)
note(f"lives as {os.getpid()}")
signal.signal(signal.SIGTERM, signal.SIG_IGN)

if behaviour == "dies-at-start":
    sys.exit(3)
if behaviour == "fails":
    channel.send(b"failed The log can't be reached.\n")
    sys.exit(1)
if behaviour != "never-ready":
    channel.send(b"ready\n")
if behaviour == "dies-later":
    while not journal.with_name("go").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    heard = channel.recv(1)
    note({b"d": "drain", b"s": "stop", b"": "orphaned"}[heard])
    if behaviour == "stubborn":
        while True:
            time.sleep(1)
    if heard == b"s" or behaviour != "busy":
        sys.exit(5 if behaviour == "ends-badly" else 0)
