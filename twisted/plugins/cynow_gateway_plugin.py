"""Plugin ``twistd cynow-gateway``."""

from twisted.application.service import ServiceMaker

serviceMaker = ServiceMaker(
    "CYNOW gateway",
    "gateway.tap",
    "The CYNOW gateway for weighing scales and vibration machines.",
    "cynow-gateway",
)
