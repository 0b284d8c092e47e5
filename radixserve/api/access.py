"""Access control: whose request it is, what only administrators may do, the host names this server
answers to, and restrictions on requests from web pages of other origins.

A browser on the same machine can reach a server on loopback for any web page that it shows. Such a
page can post text without a preflight request; so a body with an `Origin` must be declared as JSON,
for which browsers send one. It can also let its own domain name point to 127.0.0.1; so the `Host`
must be one of ours. Knows no endpoint; the caller decides which paths are exempt.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

import msgspec
from aiohttp import web

from radixserve.api.keys import Keys
from radixserve.api.namespaces import Namespaces
from radixserve.api.refusals import check_range, shown
from radixserve.config import Settings
from radixserve.errors import BadRequest, Forbidden, Unauthorized
from radixserve.front.generation import Generation
from radixserve.tenants import ASKING, DEFAULT, MAX_PRIORITY, Tenant

_LOCAL_NAMES: Final = ("localhost", "*.localhost", "*.local", "*.internal")
_WITHOUT_BODY: Final = ("GET", "HEAD", "OPTIONS")
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
_TENANT: Final = web.RequestKey("tenant", Tenant)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, an address or a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # of IPv6, as in ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """The names that a `Host` header may contain; empty: any.

    By default they are limited on loopback without a key, because any web page could use such a
    server. Local names are those that cannot be registered on the internet.
    """
    if settings.allowed_hosts:
        return settings.allowed_hosts
    if has_keys(settings) or settings.uds or not is_loopback(settings.host):
        return ()
    return (*_LOCAL_NAMES, socket.gethostname())


def has_keys(settings: Settings) -> bool:
    """Whether requests need a key."""
    return settings.api_key is not None or settings.api_key_file is not None


def check_host(request: web.Request, allowed: tuple[str, ...]) -> None:
    """Raises Forbidden for a name that is not allowed: in the `Host` header, and in the target of a
    request in absolute form (`GET http://name/ HTTP/1.1`). Addresses are always allowed, because no
    name service can redirect them.
    """
    given = request.headers.get("Host")
    named = [] if given is None else [_name_of(given)]
    if not request.raw_path.startswith("/"):
        named.append((request.host or "").lower().rstrip("."))
    for name in named if allowed else ():
        if not _is_address(name) and not any(_matches(name, each.lower()) for each in allowed):
            what = f"This server does not answer to the host {shown(name)!r}; see allowed_hosts."
            raise Forbidden(what, code="host_not_allowed")


def check_content_type(request: web.Request) -> None:
    """Raises BadRequest (415) for a body from a web page that is not declared as JSON."""
    if request.method in _WITHOUT_BODY or "Origin" not in request.headers:
        return
    if request.content_type != "application/json":
        refusal = BadRequest(
            "A request with an Origin needs the content type application/json.",
            code="unsupported_content_type",
        )
        refusal.status = 415
        raise refusal


def identify_tenant(request: web.Request, keys: Keys) -> None:
    """Find out whose request this is, for `tenant_of`. Raises Unauthorized unless the request
    carries a key, in either of two headers, if one is required.
    """
    if not keys.required:
        request[_TENANT] = DEFAULT
        return
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    owners = [keys.owner_of(key) for key in (bearer, request.headers.get("x-api-key", ""))]
    tenant = next((each for each in owners if each is not None), None)
    if tenant is None:
        text = "A valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY."
        raise Unauthorized(text)
    request[_TENANT] = tenant
    ASKING.set(tenant.name)


def tenant_of(request: web.Request) -> Tenant:
    """The tenant whose key the request carries; `DEFAULT` on a server without keys. Not for paths
    that are answered to everybody.
    """
    return request[_TENANT]


def assign_tenant(generation: Generation, tenant: Tenant, namespaces: Namespaces) -> None:
    """Make every stream of `generation` the tenant's; to be called before it is run, or before the
    cache is asked about its prompts. Raises BadRequest for a priority that the tenant may not use.
    """
    for stream in generation.streams:
        asked, lowest = stream.request, -tenant.max_priority
        check_range("priority", asked.priority, lowest, MAX_PRIORITY, "integer")
        stream.request = msgspec.structs.replace(
            asked,
            tenant=tenant.name,
            weight=tenant.weight,
            kv_quota=tenant.kv_quota,
            kv_floor=tenant.kv_floor,
            namespace=namespaces.of(tenant.name, asked.namespace),
            num_public=namespaces.num_public(asked.namespace, asked.prompt_ids),
        )


def check_admin(request: web.Request) -> None:
    """For endpoints that show or change what concerns all tenants. Raises Forbidden unless the
    request carries the key of an administrator; on a server without keys, unless it comes from this
    machine and not through a proxy.
    """
    tenant = tenant_of(request)
    if tenant.admin:
        return
    if tenant is not DEFAULT:
        raise Forbidden("This needs the key of an administrator.", code="admin_required")
    if not _is_from_here(request):
        what = "Without API keys this is allowed from the server's own machine only."
        raise Forbidden(what, code="admin_required")


def _is_from_here(request: web.Request) -> bool:
    """Whether the client runs on this machine. A proxy names another client in a header."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if isinstance(peer, tuple):
        return is_loopback(str(peer[0]))
    return peer is not None  # the name of a socket file, which is usually empty


def _name_of(host: str) -> str:
    """The name in a `Host` header without the port, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _matches(name: str, pattern: str) -> bool:
    """`*` is any name, `*.example.com` any below example.com."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in ("*", name)
