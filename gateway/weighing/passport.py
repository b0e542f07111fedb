"""Passport of a scale: its last check with a reference weight, and drift and noise of its zero.

Zero readings are the stable weights of an empty pan: they tell of a drift before a check does.
"""

from collections import deque
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from statistics import fmean, pstdev
from typing import Any, Final, Literal

from gateway.config.scale_settings import CheckWeighSettings
from gateway.model.timestamps import rfc3339

State = Literal["unchecked", "good", "warning", "out"]

#: Largest weight, in kilograms, that counts as an empty pan without ``zero_band_kg``.
EMPTY_KG: Final = Decimal("0.5")

#: Number of zero readings that drift and noise are computed from.
_ZEROS: Final = 500

#: Zero readings before which nothing is said of drift and noise.
_MIN_ZEROS: Final = 10


@dataclass(frozen=True, slots=True)
class CheckWeigh:
    """A check of a scale with a reference weight.

    :ivar nominal_kg: mass of the reference weight.
    :ivar shown_kg: weight that the scale has shown.
    """

    at: datetime
    nominal_kg: Decimal
    shown_kg: Decimal
    by: str

    @property
    def deviation_kg(self) -> Decimal:
        """Return the difference between the shown weight and the nominal one."""
        return self.shown_kg - self.nominal_kg

    def payload(self) -> dict[str, Any]:
        return {
            "at": rfc3339(self.at),
            "nominal_kg": float(self.nominal_kg),
            "shown_kg": float(self.shown_kg),
            "deviation_kg": float(self.deviation_kg),
            "by": self.by,
        }


class Passport:
    """What is known of the accuracy of one scale.

    :ivar check: last check; ``None`` before the first.
    """

    def __init__(self) -> None:
        self.check: CheckWeigh | None = None
        self._zeros: deque[float] = deque(maxlen=_ZEROS)

    def note_zero(self, weight: Decimal) -> None:
        """Note a stable weight of an empty pan."""
        self._zeros.append(float(weight))

    @property
    def zero_drift_kg(self) -> float | None:
        """Return the mean of the zero readings; ``None`` before there are enough."""
        return fmean(self._zeros) if len(self._zeros) >= _MIN_ZEROS else None

    @property
    def zero_noise_kg(self) -> float | None:
        """Return the standard deviation of the zero readings; ``None`` before there are enough."""
        return pstdev(self._zeros) if len(self._zeros) >= _MIN_ZEROS else None

    def state(self, settings: CheckWeighSettings | None) -> State:
        """Return the outcome of the last check by the limits of the configuration."""
        if self.check is None or settings is None:
            return "unchecked"
        deviation = abs(self.check.deviation_kg)
        if settings.control_kg is not None and deviation >= settings.control_kg:
            return "out"
        if settings.warning_kg is not None and deviation >= settings.warning_kg:
            return "warning"
        return "good"

    def warnings(self, settings: CheckWeighSettings | None, today: date) -> list[str]:
        """Return the error codes of the warnings that a commit bears."""
        if settings is None:
            return []
        found = {"out": ["out_of_control"], "warning": ["check_weigh_warning"]}.get(self.state(settings), [])
        if settings.every_days is not None:
            due = None if self.check is None else self.check.at.date() + timedelta(days=settings.every_days)
            if due is None or due < today:
                found = [*found, "check_weigh_due"]
        if settings.calibration_due is not None and settings.calibration_due < today:
            found = [*found, "calibration_due"]
        return found

    def payload(self, settings: CheckWeighSettings | None, today: date) -> dict[str, Any]:
        """Return the JSON form."""
        drift, noise = self.zero_drift_kg, self.zero_noise_kg
        due = None if settings is None else settings.calibration_due
        return {
            "state": self.state(settings),
            "last_check": None if self.check is None else self.check.payload(),
            "zero_drift_kg": None if drift is None else round(drift, 6),
            "zero_noise_kg": None if noise is None else round(noise, 6),
            "calibration_due": None if due is None else due.isoformat(),
            "warnings": self.warnings(settings, today),
        }
