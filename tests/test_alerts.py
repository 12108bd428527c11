"""The alert that pages somebody, for the case that the gateway exists for: a first step that is dead for hours, and nobody notices.

The gateway itself runs for two hours of its own clock before a provider that refuses the key; promtool is asked about what its scrapes said.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.telemetry import Telemetry
from tests.harness import HELLO
from tests.memory import MemoryGateway, Wire
from tests.test_cost import WHOLE

RULES = Path(__file__).parent.parent / "contrib" / "prometheus" / "aigw.rules.yml"
SCRAPED = 30  # seconds
HOURS = 2
BODY = b'{"error": {"message": "no entry"}}'
REFUSED = b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Served(MemoryGateway):
    """Two steps; the first provider refuses the key while ``dead``."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(self.look, Clock(), Redaction())
        super().__init__(sink=self.telemetry.record)
        self.telemetry.use(self.config)
        self.dead = True
        self.reloads = Reloads()

    def look(self) -> Snapshot:
        health = self.health
        return Snapshot(
            config=self.config, now=self.clock.seconds(), stopping=False, in_flight={}, connections=1, refused=0, refused_keys=0,
            lag=0.0, certificate_expires=None, reloads=self.reloads, cooldown_left=health.cooldown_left, cools_down=health.cools_down,
        )  # fmt: skip

    def serve_one(self) -> None:
        client = self.ask(HELLO)
        for name, answer in (("p1", REFUSED if self.dead else WHOLE), ("p2", WHOLE)):
            door = self.doors.get(name)
            wire: Wire | None = door.wires[-1] if door and door.wires else None
            if wire is not None and wire.take():
                wire.say(answer)
        assert b"200 OK" in client.take()
        client.lost(ConnectionResetError())

    def scrape(self) -> dict[str, float]:
        pieces, _ = self.telemetry.metrics.scrape("")
        lines = b"".join(pieces).decode().splitlines()
        return {
            name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:5] == "aigw_"
        }


def series(gateway: Served, every: float) -> dict[str, list[float | None]]:
    """What a Prometheus that scrapes it has, with a request each ``every`` seconds on average, at random."""
    chance = random.Random(every)
    seen: dict[str, list[float | None]] = defaultdict(list)
    due = chance.expovariate(1 / every)
    for number in range(HOURS * 3600 // SCRAPED + 1):
        while due <= number * SCRAPED:
            gateway.clock.jump(due - gateway.clock.seconds())
            gateway.serve_one()
            due += chance.expovariate(1 / every)
        gateway.clock.jump(number * SCRAPED - gateway.clock.seconds())
        for name, value in gateway.scrape().items():
            seen[name] += [None] * (number - len(seen[name])) + [value]
    return seen


def firing(folder: Path, seen: dict[str, list[float | None]], alert: str, minute: int) -> bool:
    """Whether promtool finds that the alert fires then."""
    inputs = [
        {
            "series": re.sub(r"\{|$", lambda at: '{instance="g",' if at[0] else "", name, count=1) if "{" in name else f'{name}{{instance="g"}}',
            "values": " ".join("_" if value is None else repr(value) for value in values),
        }
        for name, values in seen.items()
        if name.startswith(("aigw_attempts_total", "aigw_step_cooling_down", "aigw_requests_total"))
    ]  # fmt: skip
    expected = [{"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []}]
    test = {"interval": f"{SCRAPED}s", "input_series": inputs, "alert_rule_test": expected}
    file = folder / f"{alert}-{minute}.json"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", file.name], cwd=folder, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert ("SUCCESS" in said) or ("exp:" in said and "got:" in said), said
    return done.returncode != 0


@pytest.mark.prometheus
@pytest.mark.parametrize("every", [1, 3, 5, 10, 15, 30, 60])
def test_the_alert_fires_while_a_first_step_is_dead_however_few_requests_there_are(tmp_path, every):
    seen = series(Served(), every)
    assert any('step="2"' in name and 'outcome="ok"' in name and values[-1] > 50 for name, values in seen.items())
    for minute in (30, 60, 119):
        assert firing(tmp_path, seen, "AIGatewayNotTheFirstStep", minute)
    assert firing(tmp_path, seen, "AIGatewayStepCoolingDown", 119)


@pytest.mark.prometheus
@pytest.mark.parametrize("every", [5, 60])
def test_the_alert_does_not_fire_while_the_first_step_answers(tmp_path, every):
    gateway = Served()
    gateway.dead = False
    seen = series(gateway, every)
    for alert in ("AIGatewayNotTheFirstStep", "AIGatewayFallsBack", "AIGatewayStepCoolingDown"):
        assert not firing(tmp_path, seen, alert, 119)


def test_a_step_cools_down_until_it_answers_not_until_its_time_is_over():
    """The old name of the gauge says the same."""
    gateway = Served()

    def gauges() -> list[float]:
        found = gateway.scrape()
        names = (name for name in found if name.startswith(("aigw_step_cooling_down", "aigw_step_resting")))
        return [found[name] for name in sorted(names) if 'step="1"' in name]

    assert gauges() == [0, 0]
    gateway.serve_one()
    assert gauges() == [1, 1]
    gateway.clock.jump(3600)
    assert gauges() == [1, 1]
    gateway.dead = False
    gateway.serve_one()
    assert gauges() == [0, 0]
