"""Polite downloads: many pages of a few hosts, at most two at a time from each host.

Run it with `pynenc run examples/downloads/downloads.py`. The hosts are three small servers that the script starts on this
machine; each of them counts how many requests it serves at once, and the script shows the most that it saw.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from pynenc import ConcurrencyControlType, Pynenc

app = Pynenc("downloads", config_values={"num_workers": 8})

HOSTS = 3
PAGES = 20
AT_ONCE = 2
ANSWER_S = 0.01


@app.task(
    running_concurrency=ConcurrencyControlType.KEYS,
    key_arguments=("host",),
    max_running=AT_ONCE,
    retry_for=(OSError,),
    max_retries=3,
    retry_delay=0.1,
)
def download(host: str, page: int) -> int:
    """How many bytes a page has."""
    with urlopen(f"http://{host}/{page}", timeout=10) as answer:
        return len(answer.read())


class CountingServer(ThreadingHTTPServer):
    """Knows how many requests it has served at the same time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.lock = threading.Lock()
        self.serving = self.most = 0

    @property
    def host(self) -> str:
        return "{}:{}".format(*self.server_address[:2])


class Page(BaseHTTPRequestHandler):
    """A page that takes its time."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, CountingServer)
        with server.lock:
            server.serving += 1
            server.most = max(server.most, server.serving)
        time.sleep(ANSWER_S)
        body = b"x" * (100 + int(self.path.strip("/")))
        # Counted as served before the answer leaves: the next request may follow it at once.
        with server.lock:
            server.serving -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line."""


def main() -> None:
    servers = [CountingServer() for _ in range(HOSTS)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    began = time.monotonic()
    pages = download.parallelize([(server.host, page) for page in range(PAGES) for server in servers])
    size = sum(pages.results)
    took_s = time.monotonic() - began
    for server in servers:
        server.shutdown()
        server.server_close()
    print(f"{len(pages)} pages, {size:,} bytes in {took_s:.2f} s")
    print(f"most requests at once, by host: {', '.join(str(server.most) for server in servers)} (limit {AT_ONCE})")
