"""A headless Chromium, driven through its DevTools protocol, that looks at a page as a reader would."""

import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
          "--remote-debugging-port=0", "--remote-allow-origins=*", "--allow-file-access-from-files")

# Runs in the page once its mathematics is set. Code shows TeX on purpose, so what a reader sees outside of code counts.
_LOOK = r"""
(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const article = document.querySelector("article") || document.body;
  const code = "pre, code, script, style, textarea, mjx-container";
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  let text = "";
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest(code)) text += walker.currentNode.data;
  const wide = [...article.querySelectorAll("*")].filter(e => {
    const box = e.getBoundingClientRect();
    if (box.width === 0 || box.right <= innerWidth + 1) return false;
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== "visible") return false;
    return true;
  }).map(e => e.tagName.toLowerCase() + "." + e.className);
  return {
    title: document.title,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wide: wide.slice(0, 5),
    tex: (text.match(/\$\$|\\[(\[]|\\(begin|frac|operatorname|mathrm|ell|nabla)\b|\$[^$\s][^$\n]{0,80}\$/g) || []).slice(0, 5),
    unset: [...article.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container")).length,
    wrong: [...article.querySelectorAll("[data-mml-node=merror], mjx-merror")].map(e => e.textContent),
    images: [...article.querySelectorAll("img")].map(e => ({
      src: e.getAttribute("src").slice(0, 80), alt: e.getAttribute("alt") || "",
      shown: !e.complete || e.naturalWidth > 0, filter: getComputedStyle(e).filter})),
    links: [...document.querySelectorAll("a[href]")].map(e => e.href),
  };
})()
"""


@dataclass
class Visit:
    """What a page said and asked for, and what it looks like."""

    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    look: dict = field(default_factory=dict)

    @property
    def remote(self) -> list[str]:
        return [url for url in self.requests if url.startswith(("http:", "https:", "ws:", "wss:", "//"))]


class Browser:
    """``with Browser() as browser: browser.open(page, width=390)``."""

    def __enter__(self):
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _connect(self) -> None:
        told = Path(self._profile) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (told.exists() and len(told.read_text().split()) == 2):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{CHROMIUM} did not start (exit code {self._process.poll()})")
            time.sleep(0.05)
        port, path = told.read_text().split()
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60)
        self._number, self._events, self._session = 0, [], None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _receive(self) -> dict:
        message = json.loads(self._socket.recv())
        if "method" in message:
            self._events.append(message)
        return message

    def _call(self, method: str, **parameters) -> dict:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(request | ({"sessionId": self._session} if self._session else {})))
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def evaluate(self, expression: str):
        """The value of a JavaScript expression in the page, a promise's included."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Visit:
        """Open a file at a window's width, wait until it is drawn, and look."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                   mobile=width < 600)
        self._call("Emulation.setEmulatedMedia",
                   features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self._events.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        look = self.evaluate(_LOOK)
        return _visit(self._events, look)

    def screenshot(self, path: Path) -> None:
        """The visible part of the page as a PNG."""
        import base64

        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


def _visit(events: list[dict], look: dict) -> Visit:
    visit = Visit(look=look)
    for event in events:
        method, told = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            visit.errors.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            visit.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            visit.errors.append(told["entry"]["text"] + " " + told["entry"].get("url", ""))
        elif method == "Network.requestWillBeSent":
            visit.requests.append(told["request"]["url"])
        elif method == "Network.loadingFailed" and not told.get("canceled"):
            visit.failed.append(told["errorText"])
        elif method == "Network.responseReceived" and told["response"]["status"] >= 400:
            visit.failed.append(f"{told['response']['status']} {told['response']['url']}")
    return visit
