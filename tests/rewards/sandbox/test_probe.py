"""The start-up probe: it tells what is missing, and notices a sandbox that does not confine."""

import os

import pytest

from ruyi_rl.rewards.sandbox import SandboxOptions, bubblewrap, payload, probe, unconfinable


def test_missing_bubblewrap_is_told_with_its_cure(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    reason = unconfinable(SandboxOptions())
    assert reason.startswith("bubblewrap (bwrap) is not installed; install it: apt-get install bubblewrap")
    assert unconfinable(SandboxOptions(mode="none")) is None


def test_other_systems_are_told(monkeypatch):
    monkeypatch.setattr(probe.sys, "platform", "darwin")
    for mode in ("bubblewrap", "none"):
        assert "Linux" in unconfinable(SandboxOptions(mode=mode))


@pytest.mark.parametrize("warm", [False, True])
def test_bubblewrap_that_fails_is_told_in_its_words(monkeypatch, tmp_path, warm):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    reason = unconfinable(SandboxOptions(warm=warm))
    assert "No permissions to create a new namespace; a default Docker container forbids namespaces" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"NAMESPACES": ("--unshare-pid", "--unshare-ipc")}, "reaches the network"),
        ({"NAMESPACES": (*bubblewrap.NAMESPACES, "--ro-bind", "/etc", "/etc")}, "sees the host's files"),
        ({"NAMESPACES": (*bubblewrap.NAMESPACES, "--proc", "/proc")}, "sees the host's files"),
    ],
)
def test_a_sandbox_that_leaks_is_noticed(confinable, monkeypatch, broken, said):
    for name, value in broken.items():
        monkeypatch.setattr(bubblewrap, name, value)
    assert said in unconfinable(SandboxOptions())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"disk": 64 << 20}, "fills more than its folder"), ({"limits": {}}, "starts more processes than it may")],
)
def test_limits_that_do_not_hold_are_noticed(confinable, monkeypatch, settings, said):
    real = payload._settings
    monkeypatch.setattr(payload, "_settings", lambda options, user: real(options, user) | settings)
    assert said in unconfinable(SandboxOptions())
