"""S3 and what speaks its language, by whole and conditional puts.

An object appears whole or not at all, and `If-None-Match: *` lets one of several writers create it
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). Credentials come from the environment only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

CONNECT_S, READ_S = 5.0, 60.0
"""Seconds to wait for a connection, and for the next bytes of an answer."""

TRIES = 5
"""Of one request, with growing pauses between them."""

CONFLICT_S = 0.2
"""Pause after a 409: another conditional write to the same name is under way."""

PAGE = 1000
"""Names in one answer, the most that a store gives."""

QUERY = ("endpoint_override", "region", "scheme")
"""What may stand behind the `?` of an s3:// URI, as in pyarrow's."""


class Objects:
    """`Files` below a prefix of a bucket."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix.strip("/")

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path.strip("/")) if part)

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        if size is not None and size <= 0:
            return b""
        end = "" if size is None else start + size - 1
        options = {"Range": f"bytes={start}-{end}"} if start or size is not None else {}
        for left in reversed(range(TRIES)):
            try:
                with _named(path):
                    answer = self.client.get_object(Bucket=self.bucket, Key=self._key(path), **options)
                    return bytes(answer["Body"].read())
            except FileNotFoundError:
                raise
            except OSError as error:
                if _code(error) in ("InvalidRange", "416"):
                    return b""  # the object ends before
                # the client tries again what fails before the first byte only
                if not left or _code(error):
                    raise
        raise AssertionError

    def write(self, path: str, data: bytes) -> None:
        with _named(path):
            self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)

    def create(self, path: str, data: bytes) -> bool:
        for _ in range(TRIES):
            try:
                with _named(path):
                    self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
                return True
            except OSError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    # the answer to a first try may have been lost: what stands there may be ours
                    return self.read(path) == data
                if _code(error) not in ("ConditionalRequestConflict", "409"):
                    raise
                time.sleep(CONFLICT_S)
        with contextlib.suppress(FileNotFoundError):
            return self.read(path) == data
        raise OSError(f"{path}: other writers kept it busy through {TRIES} tries")

    def names(self, folder: str) -> list[str]:
        prefix = self._below(folder)
        found = set()
        for page in self._pages(folder, Delimiter="/"):
            found |= {entry["Prefix"] for entry in page.get("CommonPrefixes", ())}
            found |= {entry["Key"] for entry in page.get("Contents", ())}
        return sorted(name for key in found if (name := key[len(prefix) :].rstrip("/")))

    def walk(self, folder: str) -> list[str]:
        prefix = self._below(folder)
        keys = (entry["Key"] for page in self._pages(folder) for entry in page.get("Contents", ()))
        # a console's "folder" is an empty object whose name ends in a slash
        return sorted(key[len(prefix) :] for key in keys if not key.endswith("/"))

    def delete(self, path: str) -> None:
        # one by one: the request for many needs a checksum that not every store knows. Sorted, so a manifest goes first
        for name in [*(f"{path}/{inner}" for inner in self.walk(path)), path]:
            with _named(name):
                self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _below(self, folder: str) -> str:
        key = self._key(folder)
        return f"{key}/" if key else ""

    def _pages(self, folder: str, **options: str) -> Iterator[Any]:
        with _named(folder):
            paginator = self.client.get_paginator("list_objects_v2")
            pages = {"PageSize": PAGE}
            yield from paginator.paginate(
                Bucket=self.bucket, Prefix=self._below(folder), PaginationConfig=pages, **options
            )


def open_objects(uri: str) -> Objects:
    """The store at s3://BUCKET/PREFIX?endpoint_override=HOST:PORT&scheme=http&region=REGION.

    Raises ValueError for a URI of another shape, ImportError where the extra `s3` is not installed.
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ValueError("names no bucket; write s3://BUCKET/FOLDER")
    query = dict(parse_qsl(parts.query))
    for name in query:
        if name not in QUERY:
            raise ValueError(f"{name} is not known behind the question mark; known are {', '.join(QUERY)}")
    endpoint = query.get("endpoint_override")
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    return Objects(_client(endpoint, query.get("region")), parts.netloc, unquote(parts.path))


@functools.cache
def _client(endpoint: str | None, region: str | None) -> Any:
    """One client a process and endpoint: it is safe among threads, and takes a third of a second to make."""
    import boto3
    from botocore.config import Config

    options: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": TRIES}}
    if endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # newer clients add a trailing checksum to every put, which other stores answer with 411; pyarrow reads the variable
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        options |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        options |= {"s3": {"addressing_style": "path"}}
    config = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, max_pool_connections=32, **options)
    return boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns the client's errors into OSErrors that name the path."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        told = error.response.get("Error", {})
        code = str(told.get("Code", "unknown"))
        if code in ("NoSuchKey", "404", "NotFound"):
            raise FileNotFoundError(f"{path}: no such object") from error
        raise _StoreError(f"{path}: {code}: {told.get('Message', '')}".rstrip(": "), code) from error
    except BotoCoreError as error:
        raise _StoreError(f"{path}: {error}", "") from error


class _StoreError(OSError):
    """What a store answered; `code` is empty where it did not answer."""

    def __init__(self, words: str, code: str) -> None:
        super().__init__(words)
        self.code = code


def _code(error: OSError) -> str:
    return error.code if isinstance(error, _StoreError) else ""
