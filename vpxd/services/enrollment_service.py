"""The Enrollment service: the one that hosts call before they have a certificate."""

from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc
from vpxd.enrollment.tokens import EnrollmentDesk
from vpxd.services.base import Context


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServicer):
    """Adapter between gRPC and the desk."""

    def __init__(self, desk: EnrollmentDesk) -> None:
        self._desk = desk

    async def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: Context
    ) -> enrollment_pb2.EnrollResponse:
        certificate, ca = await self._desk.enroll(
            request.token, request.host_name, request.csr_pem, request.management_address
        )
        return enrollment_pb2.EnrollResponse(certificate_pem=certificate.decode(), ca_pem=ca.decode())
