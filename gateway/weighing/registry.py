"""The guards of the scales of this gateway."""

from collections.abc import Callable, Mapping
from itertools import count
from secrets import token_hex

from gateway.config.scale_settings import ScaleConnection
from gateway.weighing.guard import ScaleGuard


class Guards:
    """Guards by scale.

    :param settings: settings of every scale of this gateway.
    """

    def __init__(self, settings: Mapping[str, ScaleConnection]) -> None:
        # A part that differs at each start keeps ids of before from being used again.
        prefix, numbers = token_hex(4), count(1)
        self._new_id: Callable[[], str] = lambda: f"{prefix}-{next(numbers)}"
        self._guards: dict[str, ScaleGuard] = {}
        #: Guards of scales whose settings are not known yet: a reload connects new scales first.
        self._unlisted: dict[str, ScaleGuard] = {}
        self.update(settings)

    def update(self, settings: Mapping[str, ScaleConnection]) -> None:
        """Use other scales and settings; the state of a scale that stays is kept."""
        before = {**self._unlisted, **self._guards}
        self._guards, self._unlisted = {}, {}
        for scale_id, line in settings.items():
            guard = before.get(scale_id)
            if guard is None:
                guard = ScaleGuard(line, self._new_id)
            else:
                guard.update(line)
            self._guards[scale_id] = guard

    def of(self, scale_id: str) -> ScaleGuard:
        """Return the guard of a scale; one without keys if its settings are not known."""
        guard = self._guards.get(scale_id) or self._unlisted.get(scale_id)
        if guard is None:
            guard = self._unlisted[scale_id] = ScaleGuard(ScaleConnection(via="unlisted"), self._new_id)
        return guard

    def own(self) -> Mapping[str, ScaleGuard]:
        """Return the guards of all scales."""
        return self._guards
