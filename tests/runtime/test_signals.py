"""Requests to stop: which signals ask, what a second one does, and waits that nothing would end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from deepcait.runtime import signals
from deepcait.runtime.signals import STOP_SIGNALS, StopRequest, WaitedTooLongError, waiting

# SIGTERM comes twice. The main thread waits where Python's handlers are not called, or its cleanup takes long.
ASKED_TWICE = """
import ctypes, os, signal, threading, time
from deepcait.runtime import signals

signals._SAME_REQUEST_S = signals._INSIST_S = 0.0
pid, libc, mutex = os.getpid(), ctypes.CDLL(None), ctypes.create_string_buffer(64)

def ask():
    for _ in range(2):
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)

def stick():
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

try:
    with signals.StopRequest():
        threading.Thread(target=ask).start()
        {work}
finally:
    time.sleep(60)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_that_ask_for_an_end(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.asked
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # `timeout` signals the process, then its group
        assert request.asked
        request._number = 0  # the one that listened before need not hear of it
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored():
    """So `nohup` does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_request_ends_at_once(monkeypatch, number):
    monkeypatch.setattr(signals, "_SAME_REQUEST_S", 0.0)
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@pytest.mark.process
@pytest.mark.parametrize("work", ["stick()", "time.sleep(60)"])
def test_a_second_request_ends_a_process_that_is_stuck(work):
    done = subprocess.run([sys.executable, "-c", ASKED_TWICE.format(work=work)], timeout=50, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_a_wait_for_workers_ends_some_time_after_the_request(monkeypatch):
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.1)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(WaitedTooLongError), waiting():
            threading.Event().wait(60)
        assert request.asked
        assert not request.waits
        request._number = 0


def test_other_work_is_finished_whatever_it_takes(monkeypatch):
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.0)
    with StopRequest() as request:
        with waiting():
            pass
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.7)  # the thread that insists looks twice a second
        request._number = 0


def test_a_wait_in_another_thread_or_without_a_request_is_only_a_wait():
    with waiting():
        pass
    with StopRequest() as request:
        thread = threading.Thread(target=lambda: waiting().__enter__())
        thread.start()
        thread.join()
        assert not request.waits


def test_whoever_listened_for_signals_before_listens_again():
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth)
    try:
        with StopRequest():
            pass
        assert signal.set_wakeup_fd(before) == mouth
    finally:
        os.close(ear)
        os.close(mouth)
