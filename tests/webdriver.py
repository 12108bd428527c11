"""A Chromium, driven over WebDriver (https://www.w3.org/TR/webdriver2/): Debian's chromedriver speaks it, as JSON over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request


class Chromium:
    """One window, headless; ``arguments`` are Chromium's own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            line = next(line for line in self.process.stdout if "on port" in line and "success" in line)
            self._base = f"http://127.0.0.1:{re.search('port ([0-9]+)', line)[1]}/session"
            options = {
                "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", *arguments]
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.process.terminate()
            raise
        self._base += f"/{session['sessionId']}"

    def _call(self, path, body=None, method="POST"):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def get(self, url: str) -> None:
        self._call("/url", {"url": url})

    def run(self, script: str):
        return self._call("/execute/sync", {"script": script, "args": []})

    def keys(self, text: str) -> None:
        """Typed into whatever has the focus."""
        (element,) = self._call("/element/active", method="GET").values()
        self._call(f"/element/{element}/value", {"text": text})

    def devtools(self, command: str, **more):
        return self._call("/goog/cdp/execute", {"cmd": command, "params": more})

    def console(self) -> list[dict]:
        return self._call("/se/log", {"type": "browser"})

    def quit(self) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(10)
            self.process.stdout.close()
