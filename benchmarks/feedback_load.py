"""Measure the feedback server under load: many annotators, kills of the server, and a full disk.

    python benchmarks/feedback_load.py                       # 50 annotators for 60 s
    python benchmarks/feedback_load.py --kills 5             # the server is killed five times and restarted
    python benchmarks/feedback_load.py --full-disk           # on a tmpfs that is full for a third of the time (as root)

Each annotator saves one judgement per second over HTTP on the loopback device and fetches the next page. A form that the
server does not confirm is sent again, as the page's script does. Afterwards the store must hold every confirmed judgement
once, and no item may have more judgements than it asks for.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from rlhf_lightning.feedback.items import NewItem, NewResponse
from rlhf_lightning.feedback.people import INVITATION
from rlhf_lightning.feedback.store import Store

SERVE = """
import sys
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.server import serve
from rlhf_lightning.feedback.store import Store
try:
    serve(Store(sys.argv[1]), port=int(sys.argv[2]), root_path=sys.argv[3])
except UserError as error:
    sys.exit(f"error: {error}")
"""
TMPFS_MIB = 48


class Server:
    """A feedback server in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, store: Path, root_path: str = "") -> None:
        self.store, self.root_path, self.port = store, root_path, 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.store), str(self.port), self.root_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line}{self.process.stdout.read()}")
        self.port = int(found[1])
        self.lines: list[str] = []
        threading.Thread(target=self.lines.extend, args=(self.process.stdout,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.root_path}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@dataclass
class Tally:
    """What all annotators saw."""

    seconds: list[float] = field(default_factory=list)
    """From sending a form to having the next page, where no answer was missing."""
    confirmed: list[str] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    outages: int = 0
    unavailable: int = 0
    faults: list[str] = field(default_factory=list)


class Browser(threading.Thread):
    """One annotator: judge, save, fetch the next page, and wait for the next second."""

    def __init__(self, port: int, invitation: str, name: str, until: float, tally: Tally, pace: float) -> None:
        super().__init__(daemon=True)
        self.port, self.invitation, self.until, self.tally, self.pace = port, invitation, until, tally, pace
        self.label, self.cookie, self.answered, self.rng = name, "", True, random.Random(name)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def run(self) -> None:
        try:
            self._judge()
        except Exception as error:  # a thread's error must not pass unseen
            self.tally.faults.append(f"{self.label}: {type(error).__name__}: {error}")

    def _judge(self) -> None:
        _, headers, _ = self._persist("POST", self.invitation)
        self.cookie = str(headers["set-cookie"]).split(";")[0]
        _, _, page = self._persist("GET", "/")
        time.sleep(self.rng.random() * self.pace)
        count, due = 0, time.monotonic()
        while time.monotonic() < self.until:
            form = self._form(page, f"{self.label}-{count}")
            if form is None:
                return
            page = self._save(form)
            count += 1
            due += self.pace
            time.sleep(max(0.0, due - time.monotonic()))

    def _form(self, page: str, comment: str) -> dict[str, str] | None:
        lease = re.search(r'name="lease" value="(\d+)"', page)
        token = re.search(r'name="token" value="(\w+)"', page)
        if lease is None or token is None:
            return None
        choice = self.rng.choice(["1", "2", "tie", "bad"])
        return {"lease": lease[1], "token": token[1], "choice": choice, "comment": comment, "seconds": "1"}

    def _save(self, form: dict[str, str]) -> str:
        """Save one form and return the next page."""
        self.tally.sent.add(form["comment"])
        self.answered = True
        start = time.perf_counter()
        status, _, body = self._persist("POST", "/save", urlencode(form))
        if status == 200 and json.loads(body)["location"] in ("/", "/?note=repeated"):
            self.tally.confirmed.append(form["comment"])
        elif "expired" not in body:
            self.tally.faults.append(f"{form['comment']}: {status} {body[:200]}")
        _, _, page = self._persist("GET", "/")
        if self.answered:
            self.tally.seconds.append(time.perf_counter() - start)
        return page

    def _persist(self, method: str, path: str, body: str | None = None) -> tuple[int, http.client.HTTPMessage, str]:
        """Send a request until the server answers it with anything but 503."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if method == "POST":
            headers |= {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        while True:
            try:
                self.connection.request(method, path, body, headers)
                reply = self.connection.getresponse()
                text = reply.read().decode()
            except (OSError, http.client.HTTPException):
                self.tally.outages, self.answered = self.tally.outages + 1, False
                self.connection.close()
                time.sleep(0.1)
                continue
            if reply.status != 503:
                return reply.status, reply.headers, text
            self.tally.unavailable, self.answered = self.tally.unavailable + 1, False
            time.sleep(0.5)


def fill(path: Path, items: int, wanted: int, annotators: int) -> list[str]:
    """Make a store and return an invitation for each annotator."""
    with Store(path, create=True) as store:
        store.update_settings(judgements_per_item=wanted, gold_share=0.0)
        text = "A reply of some length, **with** Markdown. " * 10
        responses = (NewResponse(text + "One.", "first"), NewResponse(text + "Two.", "second"))
        store.add(NewItem("pair", f"Prompt {number}", responses, wanted=wanted) for number in range(items))
        return [store.invite(f"Annotator {number}") for number in range(annotators)]


def load(server: Server, invitations: list[str], seconds: float, kills: int, pace: float = 1.0) -> Tally:
    """Let all annotators judge while the server is killed and restarted."""
    tally, start = Tally(), time.monotonic()
    browsers = [
        Browser(server.port, INVITATION + token, f"a{number}", start + seconds, tally, pace)
        for number, token in enumerate(invitations)
    ]
    for browser in browsers:
        browser.start()
    for number in range(kills):
        time.sleep(max(0.0, start + seconds * (number + 1) / (kills + 1) - time.monotonic()))
        server.kill()
        server.start()
    for browser in browsers:
        browser.join(seconds + 60)
    if any(browser.is_alive() for browser in browsers):
        tally.faults.append("an annotator still waits for the server")
    return tally


def check(path: Path, tally: Tally, wanted: int) -> dict[str, int]:
    """Count what must not be: judgements lost, doubled, made up, and items with more than they ask for."""
    saved: Counter[str] = Counter()
    items: Counter[int] = Counter()
    with Store(path) as store:
        for person in store.people():
            for entry in store.history(person.id, limit=10**9):
                saved[entry.answer.get("comment", "")] += 1
                items[entry.item.id] += 1
    return {
        "confirmed": len(tally.confirmed),
        "saved": saved.total(),
        "lost": len(set(tally.confirmed) - set(saved)),
        "doubled": sum(count - 1 for count in saved.values()),
        "made up": len(set(saved) - tally.sent),
        "over-assigned": sum(count > wanted for count in items.values()),
        "faults": len(tally.faults),
    }


@contextlib.contextmanager
def full_disk(folder: Path, seconds: float) -> Iterator[None]:
    """Fill a small file system for the middle third of the time."""
    filler = folder / "filler"

    def run() -> None:
        time.sleep(seconds / 3)
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        time.sleep(seconds / 3)
        filler.unlink()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


@contextlib.contextmanager
def small_file_system(used: bool) -> Iterator[Path]:
    """Make a temporary folder, on a tmpfs of its own where that is asked for."""
    folder = Path(tempfile.mkdtemp())
    try:
        if used:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", str(folder)], check=True)
        yield folder
    finally:
        if used:
            subprocess.run(["umount", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--full-disk", action="store_true", help="mount a small tmpfs and fill it meanwhile")
    options = parser.parse_args()
    wanted = 3
    items = int(options.annotators * options.seconds / wanted) + options.annotators
    with small_file_system(options.full_disk) as folder:
        path = folder / "feedback.db"
        invitations = fill(path, items, wanted, options.annotators)
        disk = full_disk(folder, options.seconds) if options.full_disk else contextlib.nullcontext()
        with Server(path) as server, disk:
            tally = load(server, invitations, options.seconds, options.kills)
        rows = {
            "annotators": options.annotators,
            "seconds": options.seconds,
            "kills": options.kills,
            "full disk": options.full_disk,
        }
        rows |= check(path, tally, wanted)
    quantiles = statistics.quantiles(tally.seconds, n=100)
    rows |= {"requests without an answer": tally.outages, "answers 503": tally.unavailable}
    rows |= {f"save and next, p{p} (ms)": round(1000 * quantiles[p - 1], 1) for p in (50, 95, 99)}
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))
    for fault in tally.faults[:10]:
        print(fault, file=sys.stderr)
    wrong = rows["lost"] or rows["doubled"] or rows["made up"] or rows["over-assigned"] or rows["faults"]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
