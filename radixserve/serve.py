"""The server: wires settings, engine, text, metrics and HTTP together, and ends them in order.

The only module that knows all layers; `launch` imports it. SIGTERM and SIGINT drain the server: it
is no longer ready, running requests have `drain_seconds` to finish, then everything is closed. A
second signal ends the process at once. SIGHUP reads the files of keys and of public
prefixes again; without the first it ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from prometheus_client.registry import Collector

from radixserve.api.address import Address
from radixserve.api.app import make_app
from radixserve.api.cache.public import share, share_again
from radixserve.api.cache.warm_file import FilePrompts
from radixserve.api.cache.warm_pins import PinnedPrompts
from radixserve.api.cache.warmup import Prompts, Warmup
from radixserve.api.context import Api
from radixserve.api.listen import Listener, warn_if_open
from radixserve.api.openai.validate import stop_tokens
from radixserve.assembly import Assembly
from radixserve.checkpoints.source import ModelSource
from radixserve.config import Settings
from radixserve.errors import ApiError
from radixserve.front.child import Child
from radixserve.front.shared_budget import SharedBudget
from radixserve.metrics_page import collector
from radixserve.preparations import bodies_to_warm, public_bodies
from radixserve.sizes import rounded_size
from radixserve.step import EngineInfo
from radixserve.telemetry.destination import Destination, destination
from radixserve.text.turns import CLOSED, OPEN, turn_end
from radixserve.waiting import unless_set

T = TypeVar("T")

log = logging.getLogger(__name__)

_TURN_END_SECONDS = 2.0  # time for a check of the chat template before the server is announced


async def serve(
    settings: Settings, models: Sequence[tuple[Settings, ModelSource, Child]], address: Address
) -> int:
    """Serve until a signal; the exit code. Each model comes with its settings (`each_model`) and
    its engine process, which was begun.

    Raises:
        StartupError: the server cannot start because of a setting or a model.
    """
    stopping, hangup = _stop_on_signals(), asyncio.Event()
    if settings.api_key_file is not None:  # from now on, so that no SIGHUP is lost
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    to = destination(settings, os.environ)
    several = len(models) > 1
    assemblies = [Assembly(*each, is_one_of_several=several) for each in models]
    try:
        apis = await unless_set(stopping, _started(assemblies))
        if apis is not None:
            files = _reloading(apis[0], settings.public_prefix, hangup)
            apis = _sharing(apis, assemblies) if several else apis
            async with _telemetry(to, apis) as traced, files:
                await _answer(traced, assemblies, address, stopping)
    finally:
        await _for_all(assembly.close() for assembly in assemblies)
    return 0


async def _started(assemblies: Sequence[Assembly]) -> list[Api]:
    """What handlers use for each model. Raises StartupError if a tokenizer cannot be loaded."""
    first, *others = await _for_all(assembly.begin() for assembly in assemblies)
    api = assemblies[0].api(first)
    return [api, *(a.api(each, api) for a, each in zip(assemblies[1:], others, strict=True))]


def _sharing(apis: Sequence[Api], assemblies: Sequence[Assembly]) -> list[Api]:
    """`apis` with the K/V budget that their models share."""
    moved = {each.name: partial(each.budget_moved, "kv_budget") for each in assemblies}
    shared = SharedBudget(
        assemblies[0].settings.kv_budget_max,
        {each.name: each.engine for each in assemblies},
        lambda name: moved[name](),
    )
    return [replace(api, shared_budget=shared) for api in apis]


@contextlib.asynccontextmanager
async def _lending(shared: SharedBudget | None) -> AsyncIterator[None]:
    """Let memory move between models until the block ends, if there are several."""
    if shared is None:
        yield
        return
    shared.refuse_devices()
    moving = asyncio.create_task(shared.run())
    try:
        yield
    finally:
        moving.cancel()
        await asyncio.wait([moving])


async def _for_all(each: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, which run at the same time; if one raises, the others are cancelled."""
    running = [asyncio.ensure_future(one) for one in each]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@contextlib.asynccontextmanager
async def _telemetry(to: Destination | None, apis: list[Api]) -> AsyncIterator[list[Api]]:
    """`apis` with traces, while they and metrics are sent; as they are if nothing is to be sent."""
    if to is None:
        yield apis
        return
    from radixserve.telemetry.sender import Telemetry

    def snapshot() -> Collector:
        for api in apis:
            engine = api.engine
            api.metrics.take_state(engine.stats, engine.info, up=engine.unready_reason is None)
        return collector([api.metrics for api in apis])

    telemetry = Telemetry(to, snapshot)
    telemetry.start()
    try:
        yield [replace(api, traces=telemetry.traces) for api in apis]
    finally:
        await telemetry.close()


async def _answer(
    apis: Sequence[Api],
    assemblies: Sequence[Assembly],
    address: Address,
    stopping: asyncio.Event,
) -> None:
    """Listen, wait for the models, and answer until a signal arrives and running requests have
    ended.
    """
    api, settings = apis[0], assemblies[0].settings  # but for what models share, of the first one
    listener = Listener(make_app(*apis), address)
    warn_if_open(settings)
    warming = None if settings.warm is None else "warming"
    api.readiness.reason = warming if settings.public_prefix is None else "sharing"
    try:
        await listener.start()
        # Until models are loaded, the port answers that the server is alive but not ready.
        log.info("%s is open, and says when the model is ready (/health)", address.url)
        if (infos := await unless_set(stopping, _for_all(map(_loaded, assemblies)))) is not None:
            log.info("the K/V cache has %s", _room(infos, settings))
            _warn_of_floors(api)
            if settings.public_prefix is not None:
                await unless_set(stopping, _share(api, settings, settings.public_prefix))
                api.readiness.reason = warming
            await unless_set(stopping, _for_all(map(_check_turn_end, apis)))
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(_lending(api.shared_budget))
                for each, assembly in zip(apis, assemblies, strict=True):
                    await stack.enter_async_context(_warm(each, assembly, stopping))
                names = [each.model_name for each in apis]
                _announce(address.url, names, with_key=api.keys.required)
                await stopping.wait()
            log.info("draining")
            await _for_all(each.engine.drain(settings.drain_seconds) for each in assemblies)
    finally:
        await _for_all(each.engine.stop() for each in assemblies)
        await listener.close()


async def _loaded(assembly: Assembly) -> EngineInfo:
    """Wait for the engine. Raises StartupError if it was refused."""
    assert assembly.loading is not None, "the assembly was started"
    return await assembly.loading


def _room(infos: Sequence[EngineInfo], settings: Settings) -> str:
    """The K/V budget in words."""
    info, *others = infos
    if others:
        return f"{rounded_size(settings.kv_budget_max)}, shared by {len(infos)} models"
    size = rounded_size(info.num_slots * info.slot_bytes)
    chosen = "" if settings.kv_budget else ", chosen by the memory that is free (kv_budget = auto)"
    return f"{size}, room for {info.num_slots:,} tokens{chosen}"


def _warn_of_floors(api: Api) -> None:
    """Warn if the tenants were promised more than there is. Models that share a budget have no
    part of it for good, so nothing is said of theirs.
    """
    if (info := api.engine.info) is None or api.shared_budget is not None:
        return
    budget = info.num_slots * info.slot_bytes
    if (floors := api.keys.floors(budget)) > budget:
        log.warning(
            "kv_floor of all tenants together is %s, more than the K/V budget of %s: it cannot be "
            "kept for all of them",
            rounded_size(int(floors)),
            rounded_size(budget),
        )


async def _share(api: Api, settings: Settings, path: str) -> None:
    """Make the prefixes of the file at `path` public. Raises ConfigError if it cannot be used."""
    await share(api, path, await asyncio.to_thread(public_bodies, settings))


@contextlib.asynccontextmanager
async def _reloading(
    api: Api, public_prefix: str | None, hangup: asyncio.Event
) -> AsyncIterator[None]:
    """Read the files of keys and of public prefixes again whenever `hangup` is set, until the block
    ends. What cannot be read is told in the log. Prefixes that wait for the engine do not hold up
    the next reading.
    """

    async def reload() -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                if await api.keys.reload():
                    _warn_of_floors(api)
                if public_prefix is not None:
                    await unless_set(hangup, share_again(api, public_prefix))
            except Exception:
                log.exception("the files were not read again")

    reloading = asyncio.create_task(reload())
    try:
        yield
    finally:
        reloading.cancel()
        await asyncio.wait([reloading])


@contextlib.asynccontextmanager
async def _warm(api: Api, assembly: Assembly, stopping: asyncio.Event) -> AsyncIterator[None]:
    """Warm the prompts of the setting `warm`; after each death of the engine these and what pins
    held. The block begins when the former are warm, or the time for them is over, or a signal
    arrives.
    """
    settings, engine = assembly.settings, assembly.engine
    kinds: list[Prompts] = [PinnedPrompts(api, engine.pins)]
    if settings.warm is not None:
        bodies = await asyncio.to_thread(bodies_to_warm, settings)
        kinds.append(FilePrompts(api, settings.warm, bodies))
    warmup = Warmup(api, kinds)
    engine.on_ready = warmup.engine_is_ready
    running = asyncio.create_task(warmup.run())
    try:
        if settings.warm is not None:
            await unless_set(stopping, _warm_once(warmup, settings.warm_seconds))
        api.readiness.reason = None
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _warm_once(warmup: Warmup, seconds: float) -> None:
    """Returns when all prompts were tried, or the time is over."""
    try:
        await asyncio.wait_for(warmup.done_once.wait(), seconds)
    except TimeoutError:
        log.warning("not all prompts are warm after warm_seconds; the rest follows")


async def _check_turn_end(api: Api) -> None:
    """Warn if chat answers would not end, because the template's end of turn is not a stop
    token. Takes at most `_TURN_END_SECONDS`; nothing is said if the template is slower than that.
    """
    info, tokenizer = api.engine.info, api.tokenizer
    stops = stop_tokens(info, api.settings.defaults) if info is not None else ()
    if not stops or not tokenizer.has_chat_template:
        return
    try:
        async with asyncio.timeout(_TURN_END_SECONDS):
            up_to_text = await tokenizer.encode_chat(OPEN)
            end = turn_end(up_to_text.ids, (await tokenizer.encode_chat(CLOSED)).ids)
    except (ApiError, TimeoutError):  # the template does not render this conversation, or slowly
        return
    if end is not None and end not in stops:
        log.warning(
            "the chat template ends the assistant's turn with %r (token %d), which is no stop "
            "token: answers may run on; name it in a generation_config.json as eos_token_id",
            tokenizer.token_text(end),
            end,
        )


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second signal ends the process at
    once.
    """
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            os._exit(130)  # the engine ends, too, because its socket closes
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopping


def _announce(url: str, names: Sequence[str], *, with_key: bool) -> None:
    """Print the line that programs wait for, with the server's address, and a hint for people."""
    header, option = (" -H 'Authorization: Bearer KEY'", " --key KEY") if with_key else ("", "")
    body = json.dumps(
        {
            "model": names[0],
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
    )
    where = f"--unix-socket {url[5:]} http://localhost" if url.startswith("unix:") else url
    print(f"radixserve: {' and '.join(names)} listening on {url}", flush=True)
    print(
        f"try: curl -s {where}/v1/chat/completions{header} "
        f"-H 'content-type: application/json' -d '{body}'",
        flush=True,
    )
    if where == url:
        print(f"or, in another terminal: {_command()} chat --url {url}{option}", flush=True)


def _command() -> str:
    """The command that runs this program in another terminal: its name if that is found, otherwise
    its path.
    """
    script = Path(sys.executable).parent / "radixserve"
    if shutil.which("radixserve") is not None or not script.is_file():
        return "radixserve"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)
