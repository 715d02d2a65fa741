"""S3 on this machine: moto, which honours conditional puts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """HOST:PORT of an S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_CHECKSUM_CALCULATION"):
            patch.delenv(name, raising=False)
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3) -> str:
    """URI of a new bucket."""
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=f"http://{s3}", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/some/where?endpoint_override={s3}&scheme=http&region=us-east-1"
