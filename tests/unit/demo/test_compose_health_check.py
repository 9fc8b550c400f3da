"""The containers' health check, run as docker runs it."""

import socket
import subprocess
import sys
from pathlib import Path

from demo.cluster_layout import PROJECT, free_ports


def check(role: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-IS", str(PROJECT / "docker" / "bin" / "health-check"), role]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=20, check=False)


def test_health_check_of_vpxd_needs_both_ports() -> None:
    free = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        clients, joining = (f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other))
        assert check("vpxd", {"VPXD_LISTEN": clients, "VPXD_JOIN_LISTEN": joining}).returncode == 0
        without = check("vpxd", {"VPXD_LISTEN": clients, "VPXD_JOIN_LISTEN": f"127.0.0.1:{free}"})
    assert without.returncode == 1
    assert f"port {free}" in without.stdout


def test_health_check_of_a_host_needs_vpxas_port_only_once_it_has_joined(tmp_path: Path) -> None:
    free = free_ports(1)[0]
    environment = {
        "HOST_RUN_DIR": str(tmp_path),
        "HOST_STATE_DIR": str(tmp_path / "state"),
        "HOST_MANAGEMENT_PORT": str(free),
    }
    assert "hostd.sock" in check("host", environment).stdout
    with socket.socket(socket.AF_UNIX) as hostd:
        hostd.bind(str(tmp_path / "hostd.sock"))
        assert check("host", environment).returncode == 1, "bound, but nobody listens yet"
        hostd.listen()
        assert check("host", environment).returncode == 0
        identity = tmp_path / "state" / "vpxa" / "identity"
        identity.mkdir(parents=True)
        (identity / "cert.pem").touch()
        joined = check("host", environment)
    assert joined.returncode == 1
    assert f"port {free}" in joined.stdout
