"""`radixserve serve`: wires settings, engine, text, metrics and HTTP together, and ends them in
order.

The only module that knows all layers. SIGTERM and SIGINT drain the server: it is no longer ready,
running requests have `drain_seconds` to finish, then everything is closed. A second signal ends the
process at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from radixserve.api.address import Address, take_address
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import API, Api
from radixserve.api.listen import Listener, warn_if_open
from radixserve.api.openai.validate import stop_tokens
from radixserve.config import Settings
from radixserve.defaults import Defaults, load_defaults
from radixserve.errors import ApiError, StartupError
from radixserve.front.client import ProcessEngine
from radixserve.metrics import Metrics
from radixserve.model.embedded import EMBEDDED_DEFAULTS
from radixserve.model.source import ModelSource, find_model
from radixserve.model.temporary import ensure_temporary_folder
from radixserve.step import EngineInfo
from radixserve.store.claim import prepare
from radixserve.text.client import TokenizerProcesses
from radixserve.text.messages import Start
from radixserve.text.turns import CLOSED, OPEN, turn_end

log = logging.getLogger(__name__)

_LOAD_SECONDS = 120.0  # time for a tokenizer process to import its libraries and read a local model
_TURN_END_SECONDS = 2.0  # time for a check of the chat template before the server is announced

T = TypeVar("T")


def serve(settings: Settings) -> int:
    """Serve until a signal; the exit code.

    Raises:
        StartupError: the server cannot start because of a setting, the model or the port.
    """
    signal.signal(signal.SIGTERM, _leave)
    # What makes the start impossible is looked for before anything that takes long.
    address = take_address(settings)
    try:
        if settings.disk_path is not None:
            prepare(Path(settings.disk_path), trust_others=settings.disk_trust_others)
        ensure_temporary_folder()
        return asyncio.run(_serve(settings, find_model(settings), address))
    finally:
        address.close()


def _leave(number: int, frame: object) -> None:
    """End the process during start, when there is nothing to drain; cleanup runs on the way out."""
    raise SystemExit(128 + number)


async def _serve(settings: Settings, source: ModelSource, address: Address) -> int:
    model, name = str(source.folder), source.names[0]
    stopping = _stop_on_signals()
    metrics = Metrics(name)
    limits = ApiSettings.of(settings, _defaults(settings, source))
    processes = _tokenizer_processes(settings, model, limits, metrics)
    on_events = (metrics.observe_steps, metrics.engine_restarted, metrics.request_resumed)
    without_key = msgspec.structs.replace(settings, api_key=None)
    engine = ProcessEngine(without_key, model, *on_events)
    # Both processes import libraries for seconds, so they start at the same time.
    loading = asyncio.create_task(engine.start())
    try:
        tokenizer = await _unless_stopped(stopping, processes.start())
        if tokenizer is not None:
            limits = _with_end_of_text(limits, tokenizer.eos_token_id, settings)
            app = make_app(engine, tokenizer, metrics, limits, source.names)
            await _answer(app, address, settings, engine, loading, stopping)
    finally:
        loading.cancel()
        await asyncio.gather(loading, engine.stop(), return_exceptions=True)
        await processes.close()
    return 0


async def _answer(
    app: web.Application,
    address: Address,
    settings: Settings,
    engine: ProcessEngine,
    loading: asyncio.Task[EngineInfo],
    stopping: asyncio.Event,
) -> None:
    """Listen, wait for the model, and answer until a signal arrives and running requests have
    ended.
    """
    listener = Listener(app, address)
    warn_if_open(settings)
    try:
        await listener.start()
        # Meanwhile the port answers that the server is alive but not ready.
        if await _unless_stopped(stopping, loading) is not None:
            await _unless_stopped(stopping, _check_turn_end(app[API]))
            _announce(address.url, app[API].model_names[0])
            await stopping.wait()
            log.info("draining")
            await engine.drain(settings.drain_seconds)
    finally:
        await engine.stop()
        await listener.close()


def _tokenizer_processes(
    settings: Settings, model: str, limits: ApiSettings, metrics: Metrics
) -> TokenizerProcesses:
    start = Start(
        model,
        _LOAD_SECONDS,
        settings.render_seconds,
        None if settings.chat_template is None else _read_template(Path(settings.chat_template)),
        settings.allow_control_tokens,
    )
    return TokenizerProcesses(
        start, settings.tokenizer_processes, limits.max_tokenizing, metrics.tokenizer_restarted
    )


def _read_template(file: Path) -> str:
    """The chat template in `file`. Raises StartupError if the file cannot be read as text."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no UTF-8 text"
        raise StartupError(f"cannot read the chat template {str(file)!r}: {reason}") from error
    if not text.strip():
        raise StartupError(f"the chat template {str(file)!r} is empty")
    return text


def _defaults(settings: Settings, source: ModelSource) -> Defaults:
    """The default values of requests. Raises ConfigError for a wrong setting."""
    shipped = None
    if settings.model is None:
        shipped = {} if settings.fake_model else EMBEDDED_DEFAULTS
    return load_defaults(settings, source.folder, shipped)


def _with_end_of_text(
    limits: ApiSettings, eos_token_id: int | None, settings: Settings
) -> ApiSettings:
    """`limits` with the tokenizer's end-of-text token as a stop token; the fake model has none."""
    if eos_token_id is None or settings.fake_model:
        return limits
    return replace(limits, defaults=limits.defaults.stopping_also((eos_token_id,)))


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


async def _unless_stopped(stopping: asyncio.Event, starting: Awaitable[T]) -> T | None:
    """The result of `starting`; None, and `starting` cancelled, when a signal came first."""
    started, stopped = asyncio.ensure_future(starting), asyncio.create_task(stopping.wait())
    await asyncio.wait([started, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if started.done():
        return started.result()
    started.cancel()
    await asyncio.wait([started])
    return None


def _announce(url: str, name: str) -> None:
    """Print the line that programs wait for, with the server's address, and a hint for people."""
    body = json.dumps(
        {"model": name, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    )
    where = f"--unix-socket {url[5:]} http://localhost" if url.startswith("unix:") else url
    print(f"radixserve: {name} listening on {url}", flush=True)
    print(
        f"try: curl -s {where}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        flush=True,
    )
    if where == url:
        print(f"or, in another terminal: {_command()} chat --url {url}", flush=True)


def _command() -> str:
    """The command that runs this program in another terminal: its name if that is found, otherwise
    its path.
    """
    script = Path(sys.executable).parent / "radixserve"
    if shutil.which("radixserve") is not None or not script.is_file():
        return "radixserve"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)
