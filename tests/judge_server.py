"""A small OpenAI-compatible server with recorded answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, dict[str, Any]], Any]
"""Makes the answer to the last message of the user: text, a whole message, or `(status, body)`."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            server.open += 1
            server.most = max(server.most, server.open)
        time.sleep(server.pause)
        answer = server.answer(body["messages"][-1]["content"], body)
        with server.lock:
            server.open -= 1
        status, payload = answer if isinstance(answer, tuple) else (200, completion(answer))
        data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.pause, self.lock = answer, 0.0, threading.Lock()
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.open = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        """The last messages of the user, in order."""
        return [body["messages"][-1]["content"] for _, _, body in self.requests]


def completion(message: Any, prompt_tokens: int = 100, completion_tokens: int = 10) -> dict[str, Any]:
    message = {"role": "assistant", "content": message} if not isinstance(message, dict) else message
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


@contextmanager
def judge_server(answer: Answer) -> Iterator[JudgeServer]:
    with JudgeServer(answer) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
