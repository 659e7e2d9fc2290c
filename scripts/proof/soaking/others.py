"""Other users of the repository: they commit, squash, and delete, rewrite or set back files of ours.

    <control>/touched     paths of ours that they are about to change, one a line

What they do to our files is no broken promise of ours. `Forgiving` shows the oracle the history without it; what they
delete has to be on the Hub again at the end. What they rewrite is quarantined until they remove it, so they do.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_mpwriter.localhub import View
from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.localhub.store import TreeEntry
from soaking.deck import Card
from soaking.inside import REPO, TOUCHED
from soaking.run import Run

TITLE = "another user"  # of their commits
TRIES = 20  # requests to remove what was rewritten; a commit of ours may come between


class Others:
    """The other users."""

    def __init__(self, run: Run, rng: random.Random, tally: Counter[str], answers: Callable[[], bool]) -> None:
        self._run, self._rng, self._tally, self._answers = run, rng, tally, answers
        self._busy_until = 0.0
        self._rewritten: set[str] = set()

    def cards(self) -> Iterator[Card]:
        """Yield all kinds of faults."""
        yield Card("others commit", self._be_busy)
        yield Card("others squash", self._squash)
        yield Card("others delete our files", self._delete)
        yield Card("others rewrite our files", self._rewrite)
        yield Card("others set back our files", self._set_back)

    def tick(self, now: float) -> None:
        """Let them work."""
        if now < self._busy_until and self._answers():
            self._commit_own()

    def calm(self) -> None:
        """Remove what they rewrote; the Hub must answer."""
        self._busy_until = 0.0
        for _ in range(TRIES):
            if not self._rewritten or self._remove(sorted(self._rewritten)):
                self._rewritten.clear()
                return
        raise RuntimeError("what was rewritten on the Hub cannot be removed")

    def _be_busy(self) -> bool:
        """Let another user commit without a pause."""
        self._busy_until = time.monotonic() + self._rng.uniform(2.0, 8.0)
        return self._answers()

    def _commit_own(self) -> None:
        path = f"others/{len(self._run.foreign)}"
        if self._commit(_content(path, os.urandom(9))):
            self._run.foreign.add(path)
            self._tally["commits of others"] += 1

    def _squash(self) -> bool:
        return self._answers() and self._request("super-squash", "{}") == 200

    # files of ours

    def _ours(self) -> Mapping[str, TreeEntry]:
        """The event files of the run on the Hub, by their path in the repository."""
        with contextlib.suppress(Refusal, OSError):
            tree = self._run.hub.store.tree("model", REPO, "main")
            return {path: entry for path, entry in tree.items() if "tfevents" in path}
        return {}

    def _some(self) -> list[str]:
        """Some files of ours, announced as touched; none if there is no opportunity."""
        names = sorted(set(self._ours()) - self._rewritten) if self._answers() else []
        chosen = self._rng.sample(names, min(len(names), self._rng.choice([1, 1, 3, 1000])))
        with open(self._run.control / TOUCHED, "a", encoding="utf-8") as file:
            file.writelines(f"{path}\n" for path in chosen)
        return chosen

    def _delete(self) -> bool:
        names = self._some()
        return bool(names) and self._remove(names)

    def _remove(self, names: list[str]) -> bool:
        """Delete files; some may be gone already."""
        there = self._ours()
        names = [name for name in names if name in there]
        done = not names or self._commit(*({"key": "deletedFile", "value": {"path": path}} for path in names))
        for name in names if done else ():
            self._run.damage.setdefault(name, set()).add(None)
        return done

    def _rewrite(self) -> bool:
        names = self._some()[:1]
        if not names or not self._commit(_content(names[0], os.urandom(30))):
            return False
        self._rewritten.update(names)
        self._note(names[0])
        return True

    def _set_back(self) -> bool:
        """Bring back an older copy of one of our files, as a revert on the Hub's page does."""
        for path in self._some()[:1]:
            with contextlib.suppress(Refusal, OSError):
                store = self._run.hub.store
                older = self._rng.choice(store.commits("model", REPO, "main"))
                content = store.read_blob("model", REPO, path, older.oid)
                if self._commit(_content(path, content)):
                    self._note(path)
                    return True
        return False

    def _note(self, path: str) -> None:
        """Note what they have made of a file; a commit of ours may be newer already, which does no harm."""
        store = self._run.hub.store
        for commit in store.commits("model", REPO, "main"):
            if commit.title == TITLE:
                if path in commit.tree:
                    self._run.damage.setdefault(path, set()).add(commit.tree[path].oid)
                return

    def _commit(self, *lines: dict[str, Any]) -> bool:
        header = {"key": "header", "value": {"summary": TITLE}}
        return self._request("commit", "\n".join(map(json.dumps, [header, *lines]))) == 200

    def _request(self, what: str, body: str) -> int:
        """Send a request as another user; the branch in its path is encoded so that no fault matches."""
        connection = http.client.HTTPConnection(HOST, self._run.hub.port, timeout=5.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", f"/api/models/{REPO}/{what}/m%61in", body)
            return connection.getresponse().status
        return 0


def _content(path: str, content: bytes) -> dict[str, Any]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


class Forgiving(View):
    """A run on the Hub without what others did to its files; the oracle reads its trees oldest first."""

    def __init__(self, run: Run, *, to_the_end: bool) -> None:
        recorded = run.spool.destination()  # another folder if the run was moved before anything of it had arrived
        self.folder = recorded.path_in_repo if recorded else f"tensorboard/{run.name}"
        super().__init__(run.hub.store, REPO, self.folder)
        start = f"{self.folder}/"
        self._damage = {path.removeprefix(start): bad for path, bad in run.damage.items() if path.startswith(start)}
        self._good: dict[str, TreeEntry] = {}
        self._head = next(iter(self.commits()), "") if to_the_end else ""

    def tree(self, revision: str) -> Mapping[str, TreeEntry]:
        """Return the files at one commit; a file that others changed is shown as it was before."""
        tree = dict(super().tree(revision))
        for path, bad in self._damage.items() if revision != self._head else ():
            entry, good = tree.pop(path, None), self._good.get(path)
            spoilt = (entry.oid if entry else None) in bad or (
                entry and good and None in bad and entry.size < good.size
            )
            shown = good if spoilt else entry
            if shown:
                tree[path] = self._good[path] = shown
        return tree
