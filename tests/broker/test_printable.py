"""Text from outside is printable wherever a person reads it, and secrets are masked in it."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import SieveError, redact
from broker.printable import indented, one_line, printable
from broker.queue.heartbeat import Heartbeat
from broker.runtime.metrics import Line

ACTS = {
    "escape": "\x1b]0;title\x07",
    "one-byte escape": "\x9b31m",
    "newline": "a\n2026-01-31T12:00:00.123Z INFO verifier-0 passed",
    "carriage return": "fail\rpass",
    "backspace": "fail\b\b\b\bpass",
    "direction": "a\u202eb\u2066c",
    "no width": "a\u200bb\ufeffc\u2060",
    "line separator": "a\u2028b\u2029c\x85d\x0be",
    "tag": "a\U000e0041",
    "surrogate": "a\ud800",
    "no character": "a\uffff\U0010ffff",
}


@pytest.mark.parametrize("text", ACTS.values(), ids=ACTS)
def test_nothing_that_acts_gets_through(text: str) -> None:
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "said %s", (text,), None)
    valid = text.encode("utf-8", "replace").decode()  # of a surrogate, pydantic makes an error
    heartbeat = Heartbeat(id=f"a{valid}", role="actor", phase="judging", waiting_on=valid)
    shown = [printable(text), one_line(text), str(SieveError(text)), Line("s", traceback=True).format(record)]
    assert all(one.isprintable() for one in [*shown, heartbeat.id, heartbeat.waiting_on])
    assert all(line.startswith("    ") and line.isprintable() for line in indented(text).split("\n"))


def test_a_traceback_cannot_pass_for_another_record() -> None:
    try:
        raise ValueError("x\n2026-01-31T12:00:00.123Z INFO verifier-0 passed\x1b[2J")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "crashed", (), info)
    first, *others = Line("s", traceback=True).format(record).split("\n")
    assert first.endswith("ERROR s crashed") and others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


@given(st.text())
def test_what_is_printable_stays_and_json_keeps_its_value(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in printable(text))
    if text.isprintable():
        assert printable(text) == text
    assert json.loads(printable(json.dumps({text: text}, ensure_ascii=False))) == {text: text}


def test_letters_of_all_scripts_stay() -> None:
    text = "α ≥ √2, 答え　は\u00a0é 👍 עברית"
    assert printable(text) == text


@pytest.mark.parametrize("scheme", ["redis", "REDIS", "rediss", "valkey", "valkeys+sentinel", "unix", "amqp", "s3"])
@pytest.mark.parametrize(
    "password", ["hunter2", "hun@ter2", "hun/ter2", "hun:t@r2", "hun#ter2?", "'hunter2", "%40hunter2"]
)
@pytest.mark.parametrize("user", ["", "me"])
def test_passwords_are_masked_in_every_scheme(scheme: str, password: str, user: str) -> None:
    text = redact(f"broker.url = {scheme}://{user}:{password}@host:6379/0: refused")
    assert text == f"broker.url = {scheme}://{user}:***@host:6379/0: refused"
    assert password not in str(SieveError(f"{scheme}://{user}:{password}@host"))


def test_tokens_and_arguments_of_urls_are_masked() -> None:
    assert redact("see https://ghp_abc@host/x and b@c") == "see https://***@host/x and b@c"
    masked = redact("redis://h:1/0?db=1&Password=a&ssl_password=b&access_token=c'&X-Amz-Signature=d")
    assert masked == "redis://h:1/0?db=1&Password=***&ssl_password=***&access_token=***'&X-Amz-Signature=***"
    plain = "http://host:8000/metrics file:///x datasets:owner/name@v1:train mail me@host"
    assert redact(plain) == plain
