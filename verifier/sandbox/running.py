"""A handle to one confined program under way: the exchange through its channel, its output and its end.

Nothing that the program does can block the caller: everything is polled and bounded in size and in time. What a program
says is not interpreted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from types import TracebackType
from typing import Any

from verifier.sandbox.confine import Plan
from verifier.sandbox.limits import STRETCH, Ended, Outcome, SandboxTrouble, Starved

GRACE_SECONDS = 15.0
"""How long after a limit has passed a supervisor may take to end the run and report; then SandboxTrouble is raised."""
_OUT_OF_MEMORY = (
    "the machine, or a group around this service, is out of memory and killed the program; lower the number of "
    "verdicts under way, or give the service more memory"
)


class Running:
    """One confined program under way; leaving its context ends the program and everything it started."""

    def __init__(
        self,
        plan: Plan,
        control: socket.socket,
        outputs: list[int],
        channel: socket.socket | None,
        resources: contextlib.ExitStack,
    ) -> None:
        self._plan, self._control, self._channel, self._resources = plan, control, channel, resources
        self._begun = time.monotonic()
        self._texts = {descriptor: bytearray() for descriptor in outputs}
        self._names = dict(zip(outputs, ("stdout", "stderr"), strict=True))
        self._open = set(outputs)
        self._flooded = False
        self._received = bytearray()
        self._reported = bytearray()
        self._starved = 0.0
        self._answers = 0
        self._outcome: Outcome | None = None
        self._poll = select.poll()
        for descriptor in outputs:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(control, select.POLLIN)
        if channel is not None:
            channel.setblocking(False)
            self._poll.register(channel, select.POLLIN)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._outcome is None and kind is None:
                self.stop()
        finally:
            self._resources.close()  # closing the control socket ends whatever still runs

    def ask(self, message: bytes, seconds: float, max_bytes: int, *, end: bytes = b"\n") -> bytes | None:
        """Send a message through the channel and return the one that comes back, both followed by `end` (not returned).

        Returns None if none came within `seconds` (starvation aside, see STRETCH), if the program ended or closed the
        channel, if it had written before it was asked, or if the answer is longer than `max_bytes`; `finish` or `stop`
        tells how the program ended. Raises SandboxTrouble, Starved.
        """
        if self._channel is None:
            raise ValueError("this program was started without a channel")
        if self._received:  # the program wrote before it was asked
            return None
        begun, starved_before = time.monotonic(), self._starved
        until = begun + seconds
        rest = memoryview(message + end)
        while self._outcome is None:
            if time.monotonic() >= until:
                until = self._extended(begun, seconds, starved_before)
                if time.monotonic() >= until:
                    return None
            if rest:
                try:
                    rest = rest[self._channel.send(rest) :]
                except BlockingIOError:
                    pass
                except OSError:  # the program closed its end
                    return None
                self._poll.modify(self._channel, select.POLLIN | (select.POLLOUT if rest else 0))
            if not self._turn(until, max_bytes):
                return None
            if (length := self._received.find(end)) >= 0:
                answer = bytes(self._received[:length])
                del self._received[: length + len(end)]
                return answer
            if len(self._received) > max_bytes:
                return None
        return None

    def _extended(self, begun: float, seconds: float, starved_before: float) -> float:
        """The deadline of a question once `seconds` have passed, moved by the time starved. Raises Starved."""
        answers = self._answers
        with contextlib.suppress(OSError):  # the supervisor has reported and ended
            self._control.send(b"?")
        latest = time.monotonic() + GRACE_SECONDS
        while self._answers == answers and self._outcome is None:
            if time.monotonic() >= latest:
                raise SandboxTrouble(f"the run's supervisor did not answer within {GRACE_SECONDS:g} s")
            self._turn(latest, 0)
        until = begun + seconds + self._starved - starved_before
        if time.monotonic() < until and time.monotonic() >= begun + STRETCH * seconds:
            raise Starved(
                f"the program waited {self._starved - starved_before:.1f} of {STRETCH * seconds:g} s for a core"
            )
        return until

    def finish(self) -> Outcome:
        """Wait until the program ends by itself or at a limit. Raises SandboxTrouble."""
        until = self._begun + STRETCH * self._plan.limits.wall_seconds + GRACE_SECONDS
        while self._outcome is None:
            if time.monotonic() >= until:
                raise SandboxTrouble(f"no report {GRACE_SECONDS:g} s after the deadline of the run")
            self._turn(until, 0)
        return self._outcome

    def stop(self, patience: float = 0.0) -> Outcome:
        """End the program, after `patience` seconds in which it may still end by itself. Raises SandboxTrouble."""
        until = time.monotonic() + patience
        while self._outcome is None and time.monotonic() < until:
            self._turn(until, 0)
        self._ask_for_the_end()
        return self.finish()

    def _turn(self, until: float, channel_bytes: int) -> bool:
        """Wait for events until `until` and handle them; False if the program closed the channel."""
        open_channel = True
        for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if descriptor == self._control.fileno():
                self._take_control()
            elif descriptor in self._texts:
                self._take_output(descriptor)
            elif self._channel is not None:
                open_channel = self._take_channel(channel_bytes)
        return open_channel

    def _take_channel(self, most: int) -> bool:
        assert self._channel is not None
        if len(self._received) > most:
            self._poll.unregister(self._channel)
            return True
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        if not data:
            self._poll.unregister(self._channel)
            return False
        self._received += data
        return True

    def _take_output(self, descriptor: int) -> bool:
        """Read what is there; False if there was nothing."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if not data:  # every writer has closed it
            self._poll.unregister(descriptor)
            self._open.discard(descriptor)
            return False
        text, most = self._texts[descriptor], self._plan.limits.output_bytes
        text += data[: most - len(text) + 1]
        if len(text) > most and not self._flooded:
            self._flooded = True
            self._ask_for_the_end()
        return True

    def _ask_for_the_end(self) -> None:
        with contextlib.suppress(OSError):  # the supervisor has reported and ended
            self._control.shutdown(socket.SHUT_WR)

    def _take_control(self) -> None:
        """Handle lines of the supervisor: how long the program was starved so far, and finally the report."""
        data = self._control.recv(1 << 16)
        if not data:
            raise SandboxTrouble("the run's supervisor ended without a report")
        self._reported += data
        while b"\n" in self._reported and self._outcome is None:
            line, _, rest = bytes(self._reported).partition(b"\n")
            self._reported[:] = rest
            said = json.loads(line)
            if "nonce" in said:
                self._conclude(said)
            else:
                self._starved = float(said["starved"])
                self._answers += 1

    def _conclude(self, report: dict[str, Any]) -> None:
        if report["nonce"] != self._plan.nonce:
            raise SandboxTrouble("the supervisor's report carries the nonce of another run")
        if report["trouble"]:
            raise SandboxTrouble(f"{self._plan.level}: {report['trouble']}; {self._said('stderr')[-300:]!r}")
        for descriptor in self._texts:  # read what the pipes still hold; no process that could write is left
            while descriptor in self._open and not self._flooded and self._take_output(descriptor):
                pass
        ended, code = self._explain(report)
        self._outcome = Outcome(
            ended=ended,
            code=code,
            stdout=self._said("stdout"),
            stderr=self._said("stderr"),
            seconds=report["seconds"],
            cpu_seconds=report["cpu"],
            peak_bytes=report["peak"],
            starved_seconds=report["starved"],
            level=self._plan.level,
        )

    def _explain(self, report: dict[str, Any]) -> tuple[Ended, int]:
        code = int(report["code"])
        if self._flooded:
            return "output", 0
        if report["ended"] == "starved":
            raise Starved(f"the program waited {report['starved']:.1f} of {report['seconds']:.1f} s for a core")
        if report["ended"] != "exit":
            return report["ended"], 0
        if report["group_killed"]:
            if report["exhausted"]:
                return "memory", 0
            raise SandboxTrouble(_OUT_OF_MEMORY)
        if code >= 0:
            return "exit", code
        limits = self._plan.limits
        if code == -24 or (code == -9 and report["cpu"] >= limits.cpu_seconds):
            return "cpu", 0
        # Without a control group, only a program that cannot have caused the signal itself (seccomp.program, `grouped`)
        # counts as killed by the machine.
        ungrouped = report["group_killed"] is None
        harmless = limits.processes == 1 or self._plan.level == "unsafe"
        if code == -9 and ungrouped and harmless and report["machine_killed"]:
            raise SandboxTrouble(_OUT_OF_MEMORY)
        return "signal", -code

    def _said(self, name: str) -> bytes:
        (found,) = (bytes(text) for descriptor, text in self._texts.items() if self._names[descriptor] == name)
        return found[: self._plan.limits.output_bytes]
