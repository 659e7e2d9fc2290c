"""An S3 on loopback: moto's server in a process of its own, and what finds it there.

    with S3Server() as s3:
        s3.client().create_bucket(Bucket="runs")
        os.environ |= s3.variables        boto3, fsspec's s3fs, tensorboardX and TensorBoard go there

It keeps everything in memory, and takes any credentials. A killed test takes it with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

SERVER = """
import ctypes, signal, sys, threading
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KEY = "testing"  # any will do


def why_not(*packages: str) -> str:
    """Return why there is no S3 here, "" if there is one."""
    missing = [name for name in ("moto", "flask", "boto3", *packages) if not importlib.util.find_spec(name)]
    return f"{', '.join(missing)} missing: pip install -e '.[test]'" if missing else ""


class S3Server:
    """A context manager: moto's server, from its start to its end."""

    endpoint = ""

    def __enter__(self) -> Self:
        """Start it."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AWS_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=variables | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        port = self._process.stdout.readline().strip()
        if not port:
            raise RuntimeError("moto's server did not start")
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it; all that it holds is gone."""
        self._process.kill()
        self._process.communicate()

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which S3 is here."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "FSSPEC_S3": json.dumps({"endpoint_url": self.endpoint}),
            "S3_ENDPOINT": self.endpoint,  # tensorboardX and TensorBoard
        }

    def client(self) -> Any:
        """A client of boto3."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
        )

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """All objects of a bucket whose names begin so: content by the rest of the name.

        What goes meanwhile is left out.
        """
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for name in (entry["Key"] for entry in page.get("Contents", ())):
                with contextlib.suppress(client.exceptions.NoSuchKey):
                    found[name[len(prefix) :]] = client.get_object(Bucket=bucket, Key=name)["Body"].read()
        return found
