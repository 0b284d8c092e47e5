"""Which settings may change, within which bounds, and what a later engine is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from radixserve.cache.policies.table import POLICIES
from radixserve.config import Settings
from radixserve.config_table import TABLE
from radixserve.errors import BadRequest, Unavailable
from radixserve.front.live_settings import ENGINE, FRONT, LiveSetting, LiveSettings
from radixserve.metrics_table import CHANGEABLE
from radixserve.questions import Configure
from tests.fakes import INFO

SLOT = INFO.slot_bytes
WITH_HOST = msgspec.structs.replace(INFO, host_bytes=1 << 20)


def live(**more: Any) -> LiveSettings:
    settings = LiveSettings(Settings(host_budget=1 << 20))
    settings.take_engine(msgspec.structs.replace(WITH_HOST, **more))
    return settings


def test_every_one_is_a_setting_and_a_label_of_the_metric() -> None:
    assert {*ENGINE, *FRONT} <= {row.name for row in TABLE}
    assert set(CHANGEABLE) == {*ENGINE, *FRONT}
    assert {*live().shown()} == {*ENGINE, *FRONT}
    assert {*Configure.__struct_fields__} == {*ENGINE}


def test_each_is_shown_with_its_bounds_and_its_value_at_start() -> None:
    settings = live()
    settings.take({"kv_budget": 100 * SLOT, "eviction_policy": "arc", "max_queue": 3})
    shown = settings.shown()
    most = 4096 * SLOT
    assert shown["kv_budget"] == LiveSetting(
        value=100 * SLOT, at_start=most, min=64 * SLOT, max=most
    )
    assert shown["host_budget"].max == shown["host_budget"].value == 1 << 20
    assert shown["eviction_policy"].value == "arc"
    assert shown["eviction_policy"].at_start == "lru"
    assert set(shown["eviction_policy"].choices) == set(POLICIES)
    assert shown["max_queue"] == LiveSetting(value=3, at_start=256, min=1, max=1_000_000)
    assert settings.settings.max_queue == 3


def test_host_memory_may_grow_up_to_its_largest_budget() -> None:
    settings = LiveSettings(Settings(host_budget=1 << 20, host_budget_max=(2 << 20) + 5))
    settings.take_engine(msgspec.structs.replace(INFO, host_bytes=2 << 20))
    shown = settings.shown()["host_budget"]
    assert (shown.value, shown.max) == (1 << 20, (2 << 20) + 5)
    settings.take(settings.checked({"host_budget": 2 << 20}), "auto", "room")
    shown = settings.shown()["host_budget"]
    assert (shown.value, shown.changed_by, shown.why) == (2 << 20, "auto", "room")


def test_without_a_host_tier_it_has_no_budget() -> None:
    settings = live(host_bytes=0)
    assert "host_budget" not in settings.shown()
    with pytest.raises(BadRequest, match="'host_budget' is fixed"):
        settings.checked({"host_budget": 1 << 20})


def test_the_budget_at_start_may_be_given_again_though_it_is_no_whole_number_of_tokens() -> None:
    settings = LiveSettings(Settings(kv_budget=100 * SLOT + 5))
    info = msgspec.structs.replace(INFO, num_slots=100, pool_slots=100)
    settings.take_engine(info)
    shown = settings.shown()["kv_budget"]
    assert shown.value == shown.at_start == shown.max == 100 * SLOT + 5
    settings.take(settings.checked({"kv_budget": 80 * SLOT}))
    settings.take(settings.checked({"kv_budget": 100 * SLOT + 5}))
    assert settings.info_now().num_slots == 100


def test_the_largest_budget_may_be_given_as_it_was_at_start() -> None:
    most = 300 * SLOT + 5
    settings = LiveSettings(Settings(kv_budget=100 * SLOT, kv_budget_max=most))
    info = msgspec.structs.replace(INFO, num_slots=100, pool_slots=300)
    settings.take_engine(info)
    assert settings.shown()["kv_budget"].max == most
    settings.take(settings.checked({"kv_budget": most}))
    assert settings.info_now().num_slots == 300
    with pytest.raises(BadRequest):
        settings.checked({"kv_budget": most + 1})


def test_sizes_may_be_text() -> None:
    assert live().checked({"kv_budget": "64KiB", "prefill_share": 2}) == {
        "kv_budget": 64 << 10,
        "prefill_share": 2,
    }


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({}, "kv_budget", "missing_required_parameter"),
        ({"port": 1}, "port", "unsupported_parameter"),
        ({"kv_share": 0.5}, "kv_share", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"x" * 1000: 1}, "x" * 61 + "...", "unknown_parameter"),
        ({"kv_budget": 4097 * SLOT}, "kv_budget", "invalid_value"),
        ({"kv_budget": 63 * SLOT}, "kv_budget", "invalid_value"),
        ({"kv_budget": "auto"}, "kv_budget", "invalid_value"),
        ({"kv_budget": "9" * 400}, "kv_budget", "invalid_value"),
        ({"kv_budget": 1.5}, "kv_budget", "invalid_value"),
        ({"kv_budget": True}, "kv_budget", "invalid_value"),
        ({"kv_budget": None}, "kv_budget", "invalid_value"),
        ({"kv_budget": [1]}, "kv_budget", "invalid_value"),
        ({"eviction_policy": "mru"}, "eviction_policy", "invalid_value"),
        ({"eviction_policy": {}}, "eviction_policy", "invalid_value"),
        ({"prefill_share": -1}, "prefill_share", "invalid_value"),
        ({"prefill_share": "1"}, "prefill_share", "invalid_value"),
        ({"max_running": 0}, "max_running", "invalid_value"),
        ({"max_running": 10**30}, "max_running", "invalid_value"),
        ({"max_queue_seconds": 0}, "max_queue_seconds", "invalid_value"),
        ({"max_queue": 7, "max_running": 0}, "max_running", "invalid_value"),
    ],
)
def test_what_is_refused_is_named(changes: dict[str, Any], param: str, code: str) -> None:
    settings = live()
    with pytest.raises(BadRequest) as refused:
        settings.checked(changes)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert len(refused.value.message) < 400
    assert settings.shown() == live().shown()


def test_before_an_engine_is_ready_nothing_is_known() -> None:
    settings = LiveSettings(Settings())
    for call in (settings.shown, lambda: settings.checked({"max_queue": 3})):
        with pytest.raises(Unavailable):
            call()


def test_a_later_engine_is_told_all_that_has_changed_within_its_own_bounds() -> None:
    settings = live()
    assert settings.for_engine() is None
    settings.take({"max_queue": 3})
    assert settings.for_engine() is None
    settings.take({"kv_budget": 3000 * SLOT, "host_budget": 1 << 19})
    assert settings.for_engine() == Configure(kv_budget=3000 * SLOT, host_budget=1 << 19)
    smaller = msgspec.structs.replace(WITH_HOST, num_slots=200, pool_slots=200)
    assert settings.take_engine(smaller).num_slots == 200
    assert settings.for_engine() == Configure(kv_budget=200 * SLOT, host_budget=1 << 19)
    assert settings.shown()["kv_budget"].value == 200 * SLOT
    assert settings.shown()["kv_budget"].at_start == 4096 * SLOT


def test_requests_are_bounded_by_the_budget_of_now() -> None:
    settings = live()
    settings.take({"kv_budget": 100 * SLOT + 1})
    info = settings.info_now()
    assert (info.num_slots, info.max_request_tokens) == (100, 101)
    settings.take({"kv_budget": 4000 * SLOT})
    assert settings.info_now().max_request_tokens == INFO.context_length
