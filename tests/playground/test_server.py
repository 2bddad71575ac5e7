"""The page's questions over HTTP, from this machine alone; what is wrong is refused and said."""

import base64
import contextlib
import json
import socket
import threading

import httpx
import pytest
import torch

from oneway.errors import MissingDataError
from oneway.playground import Server, Worker, listen
from oneway.playground.settings import SLIDERS
from oneway.releases import release
from playground.planted import PATIENCE, default_setting
from playground.tiny import served

pytestmark = pytest.mark.xdist_group("playground")

NONE = {"defense": "none", "options": {}}
ROUNDED = {"defense": "rounding", "options": {"decimals": 1}}
EVERY = [default_setting(defense).as_json() for defense in SLIDERS]


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as opened:
        opened.get("/api/state")
        yield opened


def ask(client, query=None, settings=(NONE,)):
    return client.post(
        "/api/answers", json={"query": query or {"sample": 3}, "settings": list(settings)}
    )


def drawing(value=255, side=112):
    pixels = torch.zeros(side, side, dtype=torch.uint8)
    pixels[20:90, 50:60] = value
    return base64.b64encode(pixels.numpy().tobytes()).decode()


def test_the_state_says_all_that_can_be_asked(client, session):
    state = client.get("/api/state").json()
    assert state["ready"]
    assert [sample["label"] for sample in state["samples"]] == session.sample_labels.tolist()
    assert state["sliders"]["adversarial-noise"]["budget"][-1] is None
    assert state["baselines"] == session.baseline_errors
    assert state["queries"] == 100
    image = base64.b64decode(state["samples"][3]["image"])
    wanted = (session.samples[3].flatten() * 255).round().to(torch.uint8)
    assert list(image) == wanted.tolist()


def test_every_defense_answers_at_once_and_as_the_session_does(client, session):
    page = ask(client, settings=EVERY).json()
    query = session.samples[3:4]
    clean = release(session.target.logits(query))
    assert page["clean"] == clean[0].tolist()
    assert page["label"] == int(clean.argmax())
    for answer, defense in zip(page["answers"], SLIDERS, strict=True):
        released = session.trace(default_setting(defense), query).released
        assert answer["released"] == released[0].tolist()
        assert answer["label"] == page["label"]
        assert answer["l1"] == float((released.double() - clean.double()).abs().sum())
        assert (answer["cells"] is not None) == (defense == "codebook")
        for attacker in ("static", "retrained"):
            assert len(base64.b64decode(answer[attacker]["image"])) == 32 * 32
    none = page["answers"][0]
    assert none["l1"] == 0
    assert none["exact"]
    assert none["static"] == none["retrained"] == page["from_clean"]
    label = page["answers"][-1]
    assert label["retrained"] == page["label_alone"]


def test_a_drawing_is_answered_as_it_is_sent(client):
    page = ask(client, {"drawing": drawing()}).json()
    sent = torch.frombuffer(bytearray(base64.b64decode(page["sent"])), dtype=torch.uint8)
    rows = sent.view(32, 32).sum(1).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 20


def test_an_examination_ends_with_a_retrained_attacker_in_the_answers(client, worker):
    begun = client.post("/api/examine", json=ROUNDED)
    assert begun.status_code == 202
    assert begun.json()["state"] in ("waiting", "working")
    worker._job.future.exception(PATIENCE)
    done = client.post("/api/progress", json=ROUNDED).json()
    assert done["state"] == "done"
    finding = done["finding"]
    assert finding["final"]
    assert (finding["closed_gap"] is None) == finding["attack_failed"]
    assert finding["adaptive_error"] == min(finding["errors"].values())
    answer = ask(client, settings=[ROUNDED]).json()["answers"][0]
    assert answer["exact"]
    assert answer["finding"] == finding
    assert client.post("/api/examine", json=ROUNDED).json()["state"] == "done"


WRONG = (
    ({}, "a request must be"),
    ({"query": {"sample": 0}}, "a request must be"),
    ({"query": {"sample": 0}, "settings": [NONE], "more": 1}, "nothing more"),
    ({"query": {"sample": 0}, "settings": []}, "1 to 5, but are 0"),
    ({"query": {"sample": 0}, "settings": [NONE] * 6}, "1 to 5, but are 6"),
    ({"query": {"sample": 16}, "settings": [NONE]}, "from 0 to 15"),
    ({"query": {"sample": -1}, "settings": [NONE]}, "from 0 to 15"),
    ({"query": {"sample": True}, "settings": [NONE]}, "query must be"),
    ({"query": {"sample": 1.0}, "settings": [NONE]}, "query must be"),
    ({"query": {"sample": 0, "drawing": ""}, "settings": [NONE]}, "query must be"),
    ({"query": {"drawing": "!"}, "settings": [NONE]}, "must be base64"),
    ({"query": {"drawing": "é"}, "settings": [NONE]}, "must be base64"),
    ({"query": {"drawing": drawing(side=100)}, "settings": [NONE]}, "has 10000"),
    ({"query": {"drawing": drawing(0)}, "settings": [NONE]}, "holds no ink"),
    ({"query": {"sample": 0}, "settings": [{"defense": "nome", "options": {}}]}, "'none'"),
    ({"query": {"sample": 0}, "settings": ["none"]}, "a setting must be an object"),
    ([], "a request must be"),
)


def test_a_request_that_is_wrong_is_refused_with_the_remedy(client):
    for body, words in WRONG:
        answer = client.post("/api/answers", json=body)
        assert answer.status_code == 400, body
        assert words in answer.json()["error"]


def test_a_body_that_is_no_json_or_too_large_is_refused(client):
    for content, kind, status in (
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (json.dumps(NONE).encode(), "text/plain", 415),
        (json.dumps(NONE).encode(), "", 415),
        (b" " * 70_000, "application/json", 413),
    ):
        headers = {"Content-Type": kind} if kind else {}
        for path in ("answers", "examine", "progress"):
            answer = client.post(f"/api/{path}", content=content, headers=headers)
            assert answer.status_code == status, (path, content[:9], kind)
            assert set(answer.json()) == {"error"}


def test_no_error_quotes_what_was_drawn(client):
    secret = base64.b64encode(b"secret pixels of a query").decode()
    for body in (
        {"query": {"drawing": secret}, "settings": [NONE]},
        {"query": {"drawing": secret + "!"}, "settings": [NONE]},
        {"query": {"pixels": secret}, "settings": [NONE]},
    ):
        answer = client.post("/api/answers", json=body)
        assert answer.status_code == 400
        assert secret not in answer.text
        assert "secret" not in answer.text


def test_a_page_of_another_name_is_refused(client):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        for path in ("/", "/api/state", "/static/main.js"):
            assert client.get(path, headers={"Host": host}).status_code == 400, (host, path)
        answer = client.post("/api/examine", json=ROUNDED, headers={"Host": host})
        assert answer.status_code == 400, host


def test_it_listens_on_loopback_alone(address):
    port = int(address.rpartition(":")[2])
    names = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for name in names - {"127.0.0.1"}:
        if not name.startswith("127."):
            with (
                pytest.raises(OSError, match="refused"),
                contextlib.closing(socket.socket()) as one,
            ):
                one.connect((name, port))


def test_browsers_are_told_to_load_nothing_from_elsewhere(client):
    for path in ("/", "/static/main.js", "/api/state", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/api/answers").status_code == 405
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_before_the_session_is_ready_the_page_says_so():
    go = threading.Event()
    worker = Worker(lambda: go.wait(PATIENCE))
    with (
        served(worker) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client,
    ):
        try:
            assert client.get("/api/state").json() == {"ready": False, "failure": ""}
            refused = client.post("/api/examine", json=NONE)
            assert refused.status_code == 503
            assert "ask /api/state" in refused.json()["error"]
        finally:
            go.set()


def test_a_server_whose_session_fails_ends_by_itself():
    def prepare():
        raise MissingDataError("no digits")

    with listen(0) as listener:
        server = Server(Worker(prepare), lambda: None)
        server.run(sockets=[listener])
    assert server.failed
