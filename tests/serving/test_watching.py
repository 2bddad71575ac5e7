"""A server watches the cells of its answers, over restarts, and stops if its operator says so."""

import asyncio
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from endpoints import OpenInferenceServer
from endpoints import running as upstream_running
from guarded_servers import CPU, PATH, SHAPE, Running, linear_model, running, served_model, settings
from oneway.defenses import ServableDefense
from oneway.defenses.codebook import CodebookRelease, FitSettings
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.serving import (
    GuardedScores,
    ProxyOptions,
    check_proxy,
    open_upstream,
    proxy_app,
    serving_app,
)
from oneway.serving.guarded import Scored
from oneway.serving.http_errors import RefusedError
from oneway.serving.watching import watch_traffic
from oneway.targets import TorchTarget


def images(seed, count):
    """Traffic as certified."""
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def guard():
    queries = images(1, 1500)
    fitted = CodebookRelease.fit(
        TorchTarget(linear_model()).logits(queries),
        queries,
        generator=torch.Generator().manual_seed(0),
        settings=FitSettings(min_members=20, rate_weight=0.0),
        held_out=0.4,
    )
    return ServableDefense("codebook", fitted.state.digest()[:12], fitted)


def ask(server: Running, queries):
    for part in queries.split(64):
        assert server.infer(part).status_code == 200


def state_in(folder):
    (file,) = folder.iterdir()
    return json.loads(file.read_text())


def events(server: Running, name):
    lines = map(json.loads, server.log.getvalue().splitlines())
    return [line for line in lines if line["event"] == name]


def told(caplog):
    """Records of the server alone: threads of others, such as exporters of traces, log as well."""
    return [record for record in caplog.records if record.name == "oneway.serving"]


def test_a_change_is_seen_over_restarts_and_may_stop_the_service(guard, tmp_path, caplog):
    certificate = guard.defense.certificate
    how = settings(drift_folder=tmp_path / "state", stop_on_drift=True)
    with running(serving_app(served_model(guard), how), how) as server:
        ask(server, images(2, 101))
        assert server.infer(images(3, 1)[:, :, :3]).status_code == 400
        assert server.metric("oneway_drift_seen 0.0")
        server.stop()
    # Rows that fill a batch up, the self test's and refused ones are no traffic.
    assert state_in(tmp_path / "state")["answers"] == 101
    expected = guard.defense.state(TorchTarget(linear_model()).logits(images(2, 101)))
    first = state_in(tmp_path / "state")["gamblers"][0]
    certified = certificate.traffic.cells
    seen = np.array(first["bag"]) + first["block"] - certified
    assert seen.tolist() == expected.bincount(minlength=len(certified)).tolist()
    with running(serving_app(served_model(guard), how), how) as server:
        answers = [server.infer(part) for part in (images(4, 640) / 2).split(64)]
        statuses = [answer.status_code for answer in answers]
        assert statuses == sorted(statuses)
        assert set(statuses) == {200, 503}
        assert answers[-1].json() == {
            "error": "the traffic is not as certified, and nothing is released"
        }
        get = server.client.get
        assert get("/v2/health/live").status_code == 200
        assert get("/v2/health/ready").status_code == 503
        assert get(f"{PATH}/ready").json() == {"name": "digits", "ready": False}
        assert server.metric("oneway_drift_seen 1.0")
        refused = f"{statuses.count(503)}.0"
        assert server.metric(f'oneway_refused_total{{reason="drift"}} {refused}')
        (line,) = events(server, "drift_seen")
        answered = 101 + 64 * statuses.count(200)
        assert answered - 64 < line["answers"] <= answered  # with those before the restart
        assert line["answers"] == state_in(tmp_path / "state")["answers"]
    with running(serving_app(served_model(guard), how), how) as server:
        assert server.infer(images(2, 1)).status_code == 503
    with caplog.at_level(logging.INFO, "oneway.serving"):
        watch_traffic(guard, how)
    watched, drift = (record.facts for record in told(caplog)[-2:])
    assert watched == {"certified_queries": certificate.queries, "state_kept": True}
    assert drift == {key: line[key] for key in ("since", "answers")}
    # Certified anew, it is another test; without the option an alarm stops nothing.
    traffic = replace(certificate.traffic, cells=certificate.traffic.cells[::-1])
    other = CodebookRelease(guard.defense.state)
    other.certificate = replace(certificate, traffic=traffic)
    assert watch_traffic(replace(guard, defense=other), how).test.drift is None
    lenient = settings(drift_folder=tmp_path / "state")
    with running(serving_app(served_model(guard), lenient), lenient) as server:
        ask(server, images(2, 1))
        assert server.metric("oneway_drift_seen 1.0")


def test_metrics_do_not_move_with_the_cells_of_answers_until_an_alarm(guard):
    """Whoever reads them must not learn the cell of a query."""

    def shown(queries):
        how = settings()
        with running(serving_app(served_model(guard), how), how) as server:
            ask(server, queries)
            text = server.client.get("/metrics").text
            return [line for line in text.splitlines() if line.startswith("oneway_drift")]

    assert (
        shown(images(5, 60))
        == shown(images(6, 60))
        == [
            "oneway_drift_seen 0.0",
            "oneway_drift_since_seconds 0.0",
        ]
    )


def test_answers_of_an_address_are_watched_too(guard):
    how = settings()
    with upstream_running(OpenInferenceServer()) as endpoint:
        options = ProxyOptions(output_name="probabilities")
        model = asyncio.run(open_upstream(endpoint.address + PATH, how, guard, options))
        guarded = GuardedScores(guard, "confidences", device=CPU)
        asyncio.run(check_proxy(model, guarded, how))
        with running(proxy_app(model, guarded, how), how) as server:
            ask(server, images(7, 640) / 2)
            assert server.metric("oneway_drift_seen 1.0")


def test_a_batch_that_is_tried_again_is_counted_once(guard):
    guarded = GuardedScores(guard, "logits", device=CPU)
    guarded.classes, counted = 3, []
    guarded.count = lambda clean: counted.append(len(clean))
    sound, broken = (Scored(np.full((2, 3), value), None) for value in (-1.0, np.nan))
    with pytest.raises(RefusedError):
        guarded.answer([sound, broken])
    assert counted == []
    guarded.answer([sound, sound])
    assert counted == [4]


def test_what_cannot_be_watched_is_said_and_is_refused_where_it_must_stop(guard, caplog):
    release = CodebookRelease(guard.defense.state)
    release.certificate = replace(
        guard.defense.certificate, held_out=replace(guard.defense.certificate.held_out, answer="no")
    )
    fitted = replace(guard, defense=release)
    for served, how, said in (
        (fitted, {}, "were fitted"),
        (replace(guard, defense=CodebookRelease(guard.defense.state)), {}, "with a certificate"),
        (guard, {"watch_drift": False}, "watch_drift is false"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "oneway.serving"):
            assert watch_traffic(served, settings(**how)) is None
        assert said in told(caplog)[0].facts["because"]
        with pytest.raises(InvalidOptionError, match=f"stop_on_drift cannot be kept.*{said}"):
            watch_traffic(served, settings(stop_on_drift=True, **how))


def test_a_state_that_is_damaged_is_refused_and_one_that_cannot_be_written_is_logged(
    guard, tmp_path, caplog
):
    how = settings(drift_folder=tmp_path)
    watch = watch_traffic(guard, how)
    watch.save()
    (file,) = tmp_path.iterdir()
    for text in ("{", "[]", "1e999", '{"answers": 1, "drift": null, "gamblers": []}'):
        file.write_text(text)
        with pytest.raises(CorruptDataError, match="Move it away"):
            watch_traffic(guard, how)
    watch.state = file / "below"
    with caplog.at_level(logging.ERROR, "oneway.serving"):
        watch.save()
    assert told(caplog)[-1].msg == "drift_state_not_written"
