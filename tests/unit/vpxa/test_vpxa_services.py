"""The relay hands each rpc to hostd's of the same name: both services must have the same, with the same messages."""

from google.protobuf.descriptor import ServiceDescriptor

from proto.hostd.v1 import service_pb2 as hostd_pb2
from proto.vpxa.v1 import service_pb2 as vpxa_pb2


def shape(service: ServiceDescriptor) -> list[tuple[str, str, str, bool, bool]]:
    return [
        (
            method.name,
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for method in service.methods
    ]


def test_vpxa_and_hostd_have_the_same_rpcs() -> None:
    hostd = hostd_pb2.DESCRIPTOR.services_by_name["Hostd"]
    vpxa = vpxa_pb2.DESCRIPTOR.services_by_name["Vpxa"]
    assert shape(vpxa) == shape(hostd)
    assert not any(method.client_streaming for method in vpxa.methods)
