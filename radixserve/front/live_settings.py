"""The settings that may change while the server runs: their values, bounds, and values at start.

This is the only place that knows the values of now, so every engine that is started later is told
them. Knows no engine and no HTTP.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from radixserve.config import Settings
from radixserve.config_table import TABLE
from radixserve.engine.lengths import max_request_tokens
from radixserve.errors import BadRequest, ConfigError, Unavailable
from radixserve.questions import Configure
from radixserve.sizes import rounded_size
from radixserve.step import MIN_SLOTS, EngineInfo

Value = int | float | str

ENGINE: Final = ("kv_budget", "host_budget", "eviction_policy", "prefill_share", "max_running")
"""Settings that the engine is told."""

_BUDGETS: Final = ("kv_budget", "host_budget")

FRONT: Final = ("max_queue", "max_queue_tokens", "max_queue_seconds", "overload_queue_seconds")

_ROWS: Final = {row.name: row for row in TABLE}
_BOUNDS: Final[dict[str, tuple[int | float, int | float]]] = {
    "prefill_share": (0.0, 1000.0),
    "max_queue": (1, 1_000_000),
    "max_queue_tokens": (0, 1 << 40),
    "max_queue_seconds": (0.001, 86400.0),
    "overload_queue_seconds": (0.001, 86400.0),
}
_MAX_SHOWN: Final = 64  # characters of a name that a client made up


class LiveSetting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One setting that may change. A number lies between `min` and `max`, a word is one of
    `choices`.
    """

    value: Value
    at_start: Value
    min: int | float | None = None
    max: int | float | None = None
    choices: tuple[str, ...] = ()
    changed_by: str = ""  # who made the last change, and why; "" if there was none
    why: str = ""


class LiveSettings:
    """The changeable settings of one engine.

    Attributes:
        shares_budget: the K/V budget belongs to several models, and no request may need more than
            the smallest part of it that this one has, with which its engines begin.
    """

    def __init__(self, settings: Settings) -> None:
        self.shares_budget = False
        self.settings = settings  # with the values of now, but for budgets that an engine decides
        self._changed: dict[str, Value] = {}
        self._reasons: dict[str, tuple[str, str]] = {}  # who made the last change, and why
        self._at_start: dict[str, Value] = {
            name: getattr(settings, name) for name in (*ENGINE, *FRONT)
        }
        self._info: EngineInfo | None = None
        self.adapter_bytes = 0  # what adapters take of the K/V budget

    def take_engine(self, info: EngineInfo) -> EngineInfo:
        """An engine is ready, whose pools bound the budgets. Returns what it is with the present
        settings. The first engine says what the budgets are at start.
        """
        if self._info is None and not self.settings.kv_budget:
            self._at_start["kv_budget"] = info.num_slots * info.slot_bytes
        self._info = info
        return self.info_now()

    def info_now(self) -> EngineInfo:
        """The newest engine, with the K/V budget of now. Raises Unavailable without one."""
        info, changed = self._known(), self._changed.get("kv_budget")
        if changed is None and not self.adapter_bytes:
            return info
        budget = info.num_slots
        if changed is not None:
            budget = min(int(changed) // info.slot_bytes, info.pool_slots)
        taken = -(-self.adapter_bytes // info.slot_bytes)
        num_slots = max(min(MIN_SLOTS, budget), budget - taken)
        most = max_request_tokens(info.context_length, num_slots)
        if self.shares_budget:
            most = min(most, info.max_request_tokens)
        return msgspec.structs.replace(info, num_slots=num_slots, max_request_tokens=most)

    def shown(self) -> dict[str, LiveSetting]:
        """All settings that may change. Raises Unavailable before the first engine is ready."""
        self._known()
        return {name: self._shown(name) for name in self._names()}

    def _known(self) -> EngineInfo:
        """The newest engine, on which bounds depend."""
        if self._info is None:
            raise Unavailable("The engine is loading.", code="server_not_ready")
        return self._info

    def _names(self) -> list[str]:
        has_host = self._info is not None and self._info.host_bytes > 0
        return [name for name in (*ENGINE, *FRONT) if name != "host_budget" or has_host]

    def _shown(self, name: str) -> LiveSetting:
        by, why = self._reasons.get(name, ("", ""))
        shown = LiveSetting(
            value=self._value(name),
            at_start=self._at_start[name],
            choices=_ROWS[name].choices,
            changed_by=by,
            why=why,
        )
        if shown.choices:
            return shown
        least, most = self._bounds(name)
        return msgspec.structs.replace(shown, min=least, max=most)

    def _value(self, name: str) -> Value:
        if name in _BUDGETS and name in self._changed:
            return self._clipped(name, self._known())
        return self._changed.get(name, self._at_start[name])

    def _clipped(self, name: str, info: EngineInfo) -> Value:
        """A budget that was changed, within the bounds of an engine, whose pool may be smaller than
        that of the engine before.
        """
        return min(int(self._changed[name]), self._largest(name, info))

    def _largest(self, name: str, info: EngineInfo) -> int:
        """The largest budget that an engine can have: what it has reserved, or the size that was
        asked for at start, which may be more by less than two tokens.
        """
        asked, reserved = int(self._at_start[name]), info.host_bytes
        if name == "kv_budget":
            asked = self.settings.kv_budget_max or asked
            reserved = info.pool_slots * info.slot_bytes
        else:
            asked = self.settings.host_budget_max or asked
        return asked if reserved <= asked < reserved + 2 * info.slot_bytes else reserved

    def _bounds(self, name: str) -> tuple[int | float, int | float]:
        info, at_start = self._known(), self._at_start[name]
        if name in _BUDGETS:
            largest = self._largest(name, info)
            return min(MIN_SLOTS * info.slot_bytes, largest), largest
        assert not isinstance(at_start, str), "a number has bounds"
        least, most = (1, info.most_running) if name == "max_running" else _BOUNDS[name]
        return min(least, at_start), max(most, at_start)

    def checked(self, changes: dict[str, Any]) -> dict[str, Value]:
        """The values of `changes`, all of which are valid. Sizes may be text such as "512MiB".

        Raises:
            Unavailable: before the first engine is ready.
            BadRequest: there is none, a name is no setting or one that cannot change, or a value is
                none of the setting's.
        """
        self._known()
        if not changes:
            raise BadRequest(
                f"Give at least one setting: {', '.join(self._names())}.",
                param=self._names()[0],
                code="missing_required_parameter",
            )
        return {name: self._checked(name, value) for name, value in changes.items()}

    def _checked(self, name: str, raw: object) -> Value:
        if name not in self._names():
            raise self._refused(name)
        try:
            value: Value = _ROWS[name].parse_value(raw, "the body")
        except ConfigError:
            raise self._wrong(name) from None
        shown = self._shown(name)
        if shown.min is not None and shown.max is not None:
            assert not isinstance(value, str), "a number has bounds"
            if not shown.min <= value <= shown.max:
                raise self._wrong(name)
        return value

    def _refused(self, name: str) -> BadRequest:
        shown = name if len(name) <= _MAX_SHOWN else name[: _MAX_SHOWN - 3] + "..."
        can = f"These can: {', '.join(self._names())}."
        if name in _ROWS:
            text = f"'{shown}' is fixed while the server runs. {can}"
            return BadRequest(text, param=shown, code="unsupported_parameter")
        text = f"'{shown}' is no setting that can change. {can}"
        return BadRequest(text, param=shown, code="unknown_parameter")

    def _wrong(self, name: str) -> BadRequest:
        shown = self._shown(name)
        if shown.choices:
            text = f"'{name}' must be one of {', '.join(shown.choices)}."
            return BadRequest(text, param=name, code="invalid_value")
        unit = _ROWS[name].doc.unit
        words = f" {unit}" if unit else ""
        kind = f'a number{words}, or a size such as "256MiB",' if unit == "bytes" else "a number"
        text = f"'{name}' must be {kind} from {shown.min:,} to {shown.max:,}{words}."
        return BadRequest(text, param=name, code="invalid_value")

    def take(self, values: dict[str, Value], who: str = "", why: str = "") -> None:
        """These values hold from now on, because `who` has changed them and said `why`."""
        self._changed.update(values)
        self._reasons.update(dict.fromkeys(values, (who, why)))
        front = {name: value for name, value in values.items() if name in FRONT}
        self.settings = msgspec.structs.replace(self.settings, **front)

    def for_engine(self, values: dict[str, Value] | None = None) -> Configure | None:
        """What an engine is to be told of `values`; without them, of all that has changed since the
        start. None if that is nothing.
        """
        values = self._changed if values is None else values
        told: dict[str, Any] = {name: values[name] for name in ENGINE if name in values}
        for name in _BUDGETS:
            if name in told:
                told[name] = min(told[name], self._largest(name, self._known()))
        return Configure(**told) if told else None

    def described(self, values: dict[str, Value]) -> str:
        """The changes that `values` would be, for the log."""
        return ", ".join(
            f"{name} from {_told(name, self._value(name))} to {_told(name, value)}"
            for name, value in values.items()
        )


def _told(name: str, value: Value) -> str:
    if _ROWS[name].doc.unit == "bytes" and isinstance(value, int):
        return rounded_size(value)
    return str(value)
