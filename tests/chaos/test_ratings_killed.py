"""`kill -9` of the server while somebody rates: what it said is kept, and nothing counts twice."""

import http.client
import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import sqlalchemy as sa
from tests.jobs_attack import Answer, Peer
from tests.jobs_service import new_key, options_of, start

from luthier.jobs.database import ratings
from luthier.jobs.service import open_service
from luthier.web.agreement import Choice, is_swapped
from luthier.web.rank_pages import SHOWN
from luthier.web.rankings import Rankings

pytestmark = pytest.mark.chaos

PAIRS, KILLS = 3000, 6


class Rater:
    """Rates pair after pair as a browser would; a request whose answer never came is sent again."""

    def __init__(self, port: int, key: str, ranking: str, pairs: list[str]) -> None:
        self.port, self._page, self._left = port, f"/studio/rankings/{ranking}", pairs
        self._chance, self.said = random.Random(1), dict[str, str]()
        self.lost = 0
        answer = self._send("/studio/sign-in", "", key=key)
        self._secret = answer.headers["set-cookie"].partition(";")[0].partition("=")[2]
        page = Peer(port).send("GET", self._page, None, {"cookie": self._cookie})
        self._token = re.findall(rb'name="token" value="(\w{64})"', page.body)[0].decode()

    @property
    def _cookie(self) -> str:
        """Named after the port, which a service that is started again may have anew; a user's keeps its own."""
        return f"luthier_studio_{self.port}={self._secret}"

    def rate(self, until: threading.Event) -> None:
        """Go on until all pairs are rated, or it is enough."""
        for pair in self._left:
            choice = self._chance.choice([*SHOWN])
            while not until.is_set():
                try:
                    answer = self._send(self._page, self._cookie, token=self._token, pair=pair, choice=choice)
                except (OSError, http.client.HTTPException):
                    self.lost += 1
                    time.sleep(0.05)
                    continue
                assert answer.status == 303 and "sign-in" not in answer.headers["location"], answer
                self.said[pair] = choice
                break

    def _send(self, path: str, cookie: str, **fields: str) -> Answer:
        headers = {"content-type": "application/x-www-form-urlencoded", "cookie": cookie}
        return Peer(self.port).send("POST", path, urlencode(fields).encode(), headers)


def test_kills_lose_no_rating_and_double_none(tmp_path: Path, tiny_model_folder: Path) -> None:
    folder, log, chance = tmp_path / "service", tmp_path / "log.txt", random.Random(0)
    key = new_key(folder, tiny_model_folder)
    with open_service(options_of(folder, tiny_model_folder)) as service:
        rankings, caller = Rankings(service.database), service.tenants.caller(key)
        assert caller is not None
        prompts = [[{"role": "user", "content": f"Say {n}."}] for n in range(PAIRS)]
        ranking = rankings.create(caller.project_id, "ranked", ("x", "y"), {"temperature": 0.0}, prompts)
        pairs = [str(pair["id"]) for pair in rankings.unanswered(ranking)]
        for pair in pairs:
            rankings.keep_answers(pair, "one", "two")

    process, port = begin(folder, tiny_model_folder, log)
    rater, enough = Rater(port, key, ranking, pairs), threading.Event()
    thread = threading.Thread(target=rater.rate, args=(enough,))
    thread.start()
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 2))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process, rater.port = begin(folder, tiny_model_folder, log)
        time.sleep(1)
    finally:
        enough.set()
        thread.join()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    print(f"{len(rater.said)} ratings, {rater.lost} requests without an answer")
    assert rater.lost >= KILLS and len(rater.said) > KILLS

    with open_service(options_of(folder, tiny_model_folder)) as service:
        said = Rankings(service.database).standing(ranking).said
        kept = {pair: by_rater[caller.key_id] for pair, by_rater in said.items()}
        with service.database.reading() as connection:
            counted = connection.scalar(
                sa.select(sa.func.count()).select_from(ratings).where(ratings.c.undone_at.is_(None))
            )
        broken_at = service.audit.verify().broken_at
    expected: dict[str, Choice] = {
        pair: SHOWN[choice][is_swapped(pair, caller.key_id)] for pair, choice in rater.said.items()
    }
    unsure = kept.keys() - expected.keys()  # sent, and the answer was not waited for
    assert {pair: choice for pair, choice in kept.items() if pair in expected} == expected
    assert len(unsure) <= 1 and counted == len(kept) and broken_at is None


def begin(folder: Path, model: Path, log: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """A server that trains nothing, and its port."""
    process, url = start(folder, model, log, ("--set", "limits.jobs_at_once=0"))
    port = urlsplit(url).port
    assert port is not None
    return process, port
