"""A worker that does what the operation says under "do".

Started as a program in place of the real one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def say(event: str, **body: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **body}) + "\n")
    sys.stdout.flush()


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def answer(request: dict) -> None:
    script = request["fields"]
    spec = script["more"]
    match script["do"]:
        case "answer":
            say("result", pid=os.getpid(), environment=sorted(os.environ), secrets=sorted(script["secrets"]))
        case "progress":
            for done in (1, 2, 3):
                say("progress", bytes_done=done, bytes_total=3)
            say("result", pid=os.getpid())
        case "refuse":
            say("error", kind="PermissionDenied", message="not for you")
        case "die":
            os._exit(3)
        case "die once":
            marker = Path(spec["marker"])
            if not marker.exists():
                marker.touch()
                os._exit(3)
            if "until" in spec:
                say("progress", bytes_done=os.getpid())
                wait_for(Path(spec["until"]))
            say("result", pid=os.getpid())
        case "die in a word":
            sys.stdout.write('{"event": "res')
            sys.stdout.flush()
            os._exit(3)
        case "wait":
            say("progress", bytes_done=os.getpid())
            wait_for(Path(spec["until"]))
            say("result", pid=os.getpid())


for line in sys.stdin:
    answer(json.loads(line))
