"""Retries over real HTTP: what is retried, how long it waits, and how it fails."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

import rollout.support.http
from rollout.support.http import RequestFailedError, request_json


class Server:
    """Replies in the given order; the last one repeats. A reply: (status, headers, body), "reset" or "hang"."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.bodies: list[Any] = []
        self.url = ""
        self.over = threading.Event()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            if reply == "hang":
                state.over.wait()
                return
            if reply == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Resetting(ThreadingHTTPServer):
        def shutdown_request(self, request: Any) -> None:
            self.close_request(request)  # without FIN first, so that a socket with linger 0 sends RST

    http_server = Resetting(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http_server.server_address[1]}/run"
    yield state
    state.over.set()
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    test = threading.current_thread()

    class Clock:
        @staticmethod
        def sleep(seconds: float) -> None:
            if threading.current_thread() is test:
                waited.append(seconds)
            else:  # a request that another test left behind
                time.sleep(seconds)

    monkeypatch.setattr(rollout.support.http, "time", Clock)
    return waited


def post(server: Server, **settings: Any) -> Any:
    settings = {"timeout": 5.0, "attempts": 4, "first_wait": 0.5} | settings
    with httpx.Client() as client:
        return request_json(client, "POST", server.url, body={"x": 1}, **settings)


OK = (200, {}, '{"y": 2}')


def test_success_needs_one_request(server: Server, waits: list[float]) -> None:
    server.replies = [OK]
    assert post(server) == {"y": 2}
    assert server.bodies == [{"x": 1}]
    assert waits == []


def test_busy_is_retried_with_doubling_waits(server: Server, waits: list[float]) -> None:
    server.replies = [(503, {}, ""), (503, {}, ""), (503, {}, ""), OK]
    assert post(server) == {"y": 2}
    assert server.bodies == [{"x": 1}] * 4
    assert waits == [0.5, 1.0, 2.0]


def test_retry_after_lengthens_the_wait_up_to_a_cap(server: Server, waits: list[float]) -> None:
    server.replies = [
        (429, {"Retry-After": "7"}, ""),
        (429, {"Retry-After": "0"}, ""),
        (429, {"Retry-After": "3600"}, ""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ""),
        OK,
    ]
    assert post(server, attempts=5) == {"y": 2}
    assert waits == [7.0, 1.0, 60.0, 4.0]


def test_attempts_run_out_with_the_last_problem(server: Server, waits: list[float]) -> None:
    server.replies = [(503, {}, "starting"), (500, {}, "out of memory")]
    with pytest.raises(RequestFailedError, match=r"/run did not answer 2 times: 500 out of memory$"):
        post(server, attempts=2)
    assert waits == [0.5]


def test_a_refusal_is_not_retried(server: Server, waits: list[float]) -> None:
    server.replies = [(400, {}, "top_p must be below 2"), OK]
    with pytest.raises(RequestFailedError, match=r"/run refused the request: 400 top_p must be below 2$") as refused:
        post(server)
    assert refused.value.status == 400
    assert len(server.bodies) == 1
    assert waits == []


def test_the_caller_says_which_statuses_are_retried(server: Server, waits: list[float]) -> None:
    server.replies = [(503, {}, ""), OK]
    with pytest.raises(RequestFailedError, match="refused the request: 503"):
        post(server, retried_statuses={429})
    server.replies = [(599, {}, ""), OK]
    assert post(server, retried_statuses=range(500, 600)) == {"y": 2}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("reset", "ReadError"), ("hang", "ReadTimeout"), ((200, {}, "<html>"), "JSONDecodeError")],
)
def test_transport_errors_are_retried_unless_told_otherwise(
    server: Server, waits: list[float], fault: Any, problem: str
) -> None:
    server.replies = [fault, OK]
    assert post(server, timeout=1.0) == {"y": 2}
    assert waits == [0.5]
    server.replies = [fault, OK]
    with pytest.raises(RequestFailedError, match=f"/run did not answer: {problem}"):
        post(server, timeout=1.0, retry_transport_errors=False)
    assert waits == [0.5]


def test_nothing_listening_names_the_cause(waits: list[float]) -> None:
    server = Server()
    server.url = "http://127.0.0.1:9"
    with pytest.raises(RequestFailedError, match=r"127.0.0.1:9 did not answer 3 times: ConnectError"):
        post(server, attempts=3)
    assert waits == [0.5, 1.0]
