"""JSON over HTTP: with retries, or asynchronous and once.

Left out: streaming, jitter, Retry-After given as a date.
"""

import asyncio
import json
import time
from collections.abc import Container, Mapping
from typing import Any

import httpx

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # busy, restarting or slow: worth another try
MAX_RETRY_AFTER = 60.0  # seconds; a server may ask for a longer pause, but does not get it


class RequestFailedError(Exception):
    """A request failed for good. The message names the URL and the last problem; callers append the remedy.

    status: with which the server refused the request; None: it did not answer, or not until the last attempt.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def request_json(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    body: Mapping[str, Any] | None = None,
    timeout: httpx.Timeout | float,
    attempts: int,
    first_wait: float,
    retried_statuses: Container[int] = RETRIED_STATUSES,
    retry_transport_errors: bool = True,
) -> Any:
    """Send JSON and return the decoded JSON reply.

    Before retry number n (from 1), wait first_wait * 2**(n - 1) seconds, or as long as the reply's Retry-After asks if
    that is longer, up to MAX_RETRY_AFTER.

    Args:
        client: holds the connections; threads may share it.
        timeout: seconds for connecting and for each wait for data, not for the whole request.
        attempts: requests sent at most, at least 1.
        first_wait: seconds.
        retried_statuses: any other error status fails at once.
        retry_transport_errors: also retry when no connection, no complete reply or no valid JSON arrives.

    Raises:
        RequestFailedError: the server refused the request, or no attempt succeeded.
    """
    content = None if body is None else json.dumps(body).encode()  # not httpx's json=: it rejects lone surrogates
    problem = ""
    for attempt in range(1, attempts + 1):
        retry_after = 0.0
        try:
            response = client.request(
                method, url, content=content, headers={"Content-Type": "application/json"}, timeout=timeout
            )
            if response.is_success:
                return response.json()
        except (httpx.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = _named(error)
            if not retry_transport_errors:
                raise RequestFailedError(f"{url} did not answer: {problem}") from error
        else:
            problem = f"{response.status_code} {response.text[:500]}"
            if response.status_code not in retried_statuses:
                raise RequestFailedError(f"{url} refused the request: {problem}", response.status_code)
            retry_after = _retry_after(response)
        if attempt < attempts:
            time.sleep(max(first_wait * 2 ** (attempt - 1), retry_after))
    raise RequestFailedError(f"{url} did not answer {attempts} times: {problem}")


async def ask_json(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    body: Mapping[str, Any] | None = None,
    timeout: float,
    replies: bool = True,
) -> Any:
    """Send JSON once, without retries, and return the decoded JSON reply; None if it is empty.

    Args:
        timeout: seconds for the whole request.
        replies: False: what the server says to a request that it accepts is no JSON, and None is returned.

    Raises:
        RequestFailedError: as for `request_json`.
    """
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(timeout):
            response = await client.request(method, url, content=content, headers=headers, timeout=None)
        if response.is_success:
            return response.json() if response.content and replies else None
    except TimeoutError as error:
        raise RequestFailedError(f"{url} did not answer within {timeout:g} s") from error
    except (httpx.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestFailedError(f"{url} did not answer: {_named(error)}") from error
    problem = f"{response.status_code} {response.text[:500]}"
    raise RequestFailedError(f"{url} refused the request: {problem}", response.status_code)


def _named(error: Exception) -> str:
    """Such as "ReadError", which httpx often gives no message."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _retry_after(response: httpx.Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), MAX_RETRY_AFTER) if seconds.isdecimal() else 0.0
