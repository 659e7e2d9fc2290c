"""TensorBoard as a server process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from programs import wait_for


@contextmanager
def tensorboard(logdir, *options) -> Iterator:
    """TensorBoard on a free port; yield a function that requests a path and returns the JSON."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--reload_interval", "1", *options],
            stdout=subprocess.DEVNULL,
            stderr=said,
        )

        def listens() -> re.Match[bytes] | None:
            return re.search(rb"http://127\.0\.0\.1:(\d+)", os.pread(said.fileno(), 1 << 20, 0))

        def ask(path: str, **query: str):
            url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
            try:
                with urllib.request.urlopen(url, timeout=100) as answer:
                    return json.load(answer)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return None

        try:
            port = int(wait_for(listens, "TensorBoard names its port")[1])
            yield ask
        finally:
            server.terminate()
            server.wait()
