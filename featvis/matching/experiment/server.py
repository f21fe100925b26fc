"""The experiment's server: pages, images, answers. An answer is stored before it is acknowledged."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featvis.errors import FeatvisError, reason
from featvis.matching.experiment import export
from featvis.matching.experiment.store import Refused, Store

HERE = Path(__file__).parent
LARGEST = 16_384  # bytes of a request
OPERATOR = "operator.txt"
SHORTEST = 32  # characters of the operator's token
STATIC = ("matching.js", "matching.css", "session.js", "session.css")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the page's address is the participant's key
    "X-Content-Type-Options": "nosniff",
}


class Headers:
    """Adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self.app(scope, receive, with_headers)


def app(folder: str | Path) -> Starlette:
    """The application for a folder that `featvis match generate` made."""
    store = Store(Path(folder))
    operator = operator_token(Path(folder))

    async def body(request: Request) -> Any:
        """The request's JSON; raises Refused for what is too large or no JSON."""
        data = b""
        async for chunk in request.stream():
            data += chunk
            if len(data) > LARGEST:
                raise Refused(413, f"A request has at most {LARGEST} bytes.")
        try:
            return json.loads(data, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(422, "The request is not JSON.") from error

    def refusing(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as refused:
                told = {"stored": False, "error": str(refused)}
                if refused.next is not None:
                    told["next"] = refused.next
                return JSONResponse(told, refused.status)
            except ClientDisconnect:
                return Response(status_code=400)

        return answered

    async def page(request: Request) -> Response:
        return FileResponse(HERE / "page.html", headers={"Cache-Control": "no-store"})

    async def state(request: Request) -> Response:
        participant = await run_in_threadpool(store.participant, request.path_params["token"])
        return JSONResponse(await run_in_threadpool(store.state, participant), headers={"Cache-Control": "no-store"})

    async def answers(request: Request) -> Response:
        participant = await run_in_threadpool(store.participant, request.path_params["token"])
        return JSONResponse(await run_in_threadpool(store.answer, participant, await body(request)))

    async def events(request: Request) -> Response:
        participant = await run_in_threadpool(store.participant, request.path_params["token"])
        return JSONResponse(await run_in_threadpool(store.event, participant, await body(request)))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(HERE / name) if name in STATIC else Response("Not found", 404)

    async def results(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), operator.encode()):
            raise Refused(401, "The results need the operator's token.")
        tables = {"answers": export.answers, "participants": export.participants}
        make = tables.get(request.path_params["name"])
        if make is None:
            raise Refused(404, "There are answers.csv and participants.csv.")
        text = (await run_in_threadpool(make, store)).to_csv(index=False)
        return Response(text, media_type="text/csv", headers={"Cache-Control": "no-store"})

    routes = [
        Route("/p/{token}", page),
        Route("/api/{token}/state", refusing(state)),
        Route("/api/{token}/answers", refusing(answers), methods=["POST"]),
        Route("/api/{token}/events", refusing(events), methods=["POST"]),
        Route("/operator/{name}.csv", refusing(results)),
        Route("/static/{name}", static),
        Mount("/images", StaticFiles(directory=Path(folder) / "images")),
    ]
    made = Starlette(routes=routes, middleware=[Middleware(Headers)])
    made.state.store = store
    return made


def operator_token(folder: Path) -> str:
    """The token that opens the results, made on first use and readable by nobody else."""
    file = folder / OPERATOR
    if not file.exists():
        handle, unfinished = tempfile.mkstemp(dir=folder)  # readable by its owner alone
        try:
            with os.fdopen(handle, "w") as out:
                out.write(secrets.token_urlsafe(32))
            os.replace(unfinished, file)  # whole or not at all: an empty token would open the results to everybody
        finally:
            Path(unfinished).unlink(missing_ok=True)
    token = file.read_text().strip()
    if len(token) < SHORTEST:
        raise FeatvisError(f"{file} holds {len(token)} characters; the operator's token has {SHORTEST} or more.")
    return token


def serve(folder: Path, participants: int, host: str, port: int) -> None:
    """Serve until interrupted; prints each participant's link and where the results are."""
    if participants < 0 or not 0 < port < 65536:
        raise FeatvisError(f"{participants} participants at port {port} were asked for; ports are 1 to 65535.")
    made = app(folder)
    try:  # before anybody is given a link
        socket.create_server((host, port)).close()
    except OSError as error:
        taken = error.strerror or reason(error)
        raise FeatvisError(f"nobody can listen at {host}:{port} ({taken}); give another port or host.") from error
    try:
        tokens = made.state.store.enrol(participants)
    except Refused as refused:
        raise FeatvisError(f"no participant can be added: {refused}") from refused
    at = f"http://{host}:{port}"
    for number, token in enumerate(tokens, start=1):
        print(f"sub-{number:03d} {at}/p/{token}")
    if not tokens:
        print("nobody can take part yet, because there are no participants' links: --participants 20 makes twenty")
    print(f"results: {at}/operator/answers.csv with the token in {Path(folder) / OPERATOR}", flush=True)
    # Somebody may look at a trial for a minute: until then the connection stays.
    uvicorn.run(made, host=host, port=port, log_level="warning", access_log=False, timeout_keep_alive=90)


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON
