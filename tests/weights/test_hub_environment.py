"""The variables of the hub's client, read by the client itself in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from tests.hub_server import Hub, run_hub

SMALL = "hf-hub:owner/small"


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests for hub.invalid on to the server that it knows."""

    endpoint = ""
    seen: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        self.seen.append(self.path)
        address = self.path.replace("http://hub.invalid", self.endpoint)
        headers = {key: value for key, value in self.headers.items() if key.lower() == "range"}
        opener = build_opener(ProxyHandler({}))
        with opener.open(Request(address, headers=headers, method=self.command)) as answer:
            data = answer.read()
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_HEAD = _pass_on  # noqa: N815


LOAD = """
import deepcait, sys
print(deepcait.load(sys.argv[1]).model.config.depth)
"""


@pytest.mark.process
def test_the_client_s_variables_are_honoured(small, tmp_path):
    """HF_ENDPOINT, HF_HOME, HTTP_PROXY and HF_HUB_OFFLINE, read by the client itself in processes of its own."""
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
    plain = {key: value for key, value in os.environ.items() if key not in names}

    def load(**env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LOAD, SMALL]
        env = plain | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"} | env
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=Path.cwd())

    with run_hub(Hub({"owner/small": small[0]})) as hub:
        seen: list[str] = []
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("P", (_Proxy,), {"endpoint": hub.endpoint, "seen": seen}))
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            address = f"http://127.0.0.1:{proxy.server_address[1]}"
            done = load(HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=address)
        finally:
            proxy.shutdown()
            proxy.server_close()
            thread.join()
    assert done.stdout == "2\n", done.stderr
    assert any(path.startswith("http://hub.invalid/owner/small") for path in seen)
    assert (tmp_path / "home" / "hub" / "models--owner--small").is_dir()
    assert load(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1").stdout == "2\n"
    offline = load(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert "HF_HUB_OFFLINE is set" in offline.stderr.splitlines()[-1]
