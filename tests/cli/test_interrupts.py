"""Signals as a wish to stop."""

import logging
import os
import signal
import sys
import weakref
from collections.abc import Callable

import click
import pytest

from patchssl.cli.interrupts import Stopped, stop_by_signal


def send(number: signal.Signals) -> Callable[[], str]:
    def call() -> str:
        os.kill(os.getpid(), number)
        return "done"

    return call


def test_sigterm_is_remembered_and_ends_the_block_quietly(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_by_signal() as wish:
        assert not wish()
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()
        assert wish()
    assert signal.getsignal(signal.SIGTERM) is before
    assert caplog.text.count("SIGTERM: saving after this step, then stopping") == 1


def test_sigint_ends_the_block_as_ctrl_c_and_a_second_one_at_once() -> None:
    reached = []

    def interrupted(first: signal.Signals) -> None:
        with stop_by_signal():
            send(first)()
            reached.append(first)
            send(signal.SIGINT)()
            reached.append(signal.SIGINT)

    def asked() -> None:
        with stop_by_signal():
            send(signal.SIGINT)()
            reached.append(signal.SIGINT)

    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            interrupted(first)
    assert reached == [signal.SIGINT, signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        asked()
    assert reached[2:] == [signal.SIGINT]


@pytest.mark.parametrize("early", [True, False])
def test_a_call_that_waits_is_broken_off(early: bool) -> None:
    with stop_by_signal() as wish:
        assert wish.unless_stopped(lambda: 3) == 3
        if early:
            send(signal.SIGTERM)()
        assert wish.unless_stopped(send(signal.SIGTERM)) is None
        assert wish()
        assert wish.unless_stopped(lambda: 3) is None


def test_a_block_where_nothing_is_lost_ends_the_command(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(click.exceptions.Exit) as caught, stop_by_signal() as wish, wish.at_once():
        send(signal.SIGTERM)()
    assert caught.value.exit_code == 0
    with pytest.raises(KeyboardInterrupt), stop_by_signal() as wish, wish.at_once():
        send(signal.SIGINT)()
    assert "SIGTERM: stopping before the first step" in caplog.text
    assert "SIGINT: stopping before the first step" in caplog.text


def test_outside_of_it_nothing_is_broken_off() -> None:
    with stop_by_signal() as wish:
        with wish.at_once():
            pass
        assert send(signal.SIGTERM)() == "done"


def test_where_python_cannot_pass_it_on_the_wish_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests have left there writes to a stream that is closed by now.
    monkeypatch.setattr(logging.getLogger("patchssl"), "handlers", [])

    class Thing:
        pass

    def lose() -> None:
        with stop_by_signal() as wish:
            with wish.at_once():
                thing = Thing()
                kept = weakref.ref(thing, lambda reference: print(send(signal.SIGTERM)()))
                del thing  # the callback is interrupted, and Python only tells of it
            assert kept() is None
            assert wish()
            with wish.at_once():
                pytest.fail("not reached")

    hook = sys.unraisablehook
    with pytest.raises(click.exceptions.Exit):
        lose()
    assert "Traceback" not in capsys.readouterr().err
    assert sys.unraisablehook is hook


def test_other_errors_stay(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="mine"), stop_by_signal() as wish:
        wish.unless_stopped(lambda: (_ for _ in ()).throw(ValueError("mine")))


def test_a_forked_process_is_not_meant() -> None:
    with stop_by_signal() as wish, wish.at_once():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(7 if not wish() else 1)
            except Stopped:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
