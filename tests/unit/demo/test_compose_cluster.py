"""The client's files as they come out of vpxd's container."""

import base64
import json

import pytest

from demo.compose_cluster import client_files
from demo.errors import ClusterError


def lines(*contents: bytes) -> str:
    return "".join(base64.b64encode(content).decode() + "\n" for content in contents)


def test_client_files_points_the_client_at_the_published_port() -> None:
    inside = json.dumps({"server": "10.77.1.10:7443", "server_name": "vpxd"}).encode()
    files = client_files(lines(b"CA", b"CERT", b"KEY", inside), "127.0.0.1:17443")
    assert (files["ca.pem"], files["cert.pem"], files["key.pem"]) == (b"CA", b"CERT", b"KEY")
    settings = json.loads(files["client.json"])
    assert settings["server"] == "127.0.0.1:17443"
    assert settings["server_name"] == "vpxd"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!\n",
        lines(b"CA", b"CERT", b"KEY"),
        lines(b"CA", b"CERT", b"KEY", b"[]"),
        lines(b"CA", b"C", b"K", b"x"),
    ],
)
def test_client_files_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="isn't a client's files"):
        client_files(text, "127.0.0.1:17443")
