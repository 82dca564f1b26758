"""Ask a server, in this process or another; each response must be one that openapi.json describes."""

import asyncio
import json
import re

import httpx2
from jsonschema import Draft202012Validator

from lsr_server.application import DESCRIPTION, Service
from lsr_server.batches import BatchScheduler

DESCRIBED = json.loads(DESCRIPTION.read_text())


async def described(response):
    await response.aread()
    method = response.request.method.lower()
    path = re.sub("^(/v1/(adapters|tenants))/[^/]+", r"\1/{name}", response.url.path)
    if method not in DESCRIBED["paths"][path]:
        assert (response.status_code, list(response.json())) == (405, ["error"])
        return
    promised = DESCRIBED["paths"][path][method]["responses"][str(response.status_code)]
    if "$ref" in promised:
        promised = DESCRIBED["components"]["responses"][promised["$ref"].rpartition("/")[2]]
    assert all(name in response.headers for name in promised.get("headers", {}))
    contents = promised.get("content", {})
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    assert kind in contents or not contents
    for content in filter(None, [contents.get(kind)]):
        value = response.json() if kind == "application/json" else response.text
        Draft202012Validator({**content["schema"], "components": DESCRIBED["components"]}).validate(value)


def ask(call, address="http://server", **options):
    """What `call` returns, given a client."""

    async def run():
        limits = httpx2.Limits(max_connections=500)
        hooks = {"response": [described]}
        client = httpx2.AsyncClient(base_url=address, limits=limits, timeout=60, event_hooks=hooks, **options)
        async with client:
            return await call(client)

    return asyncio.run(run())


def ask_passes(passes, call, wait=0.01, **options):
    """What `call` returns, given a client of a server in this process, which waits so many seconds for a full batch."""
    app = Service(passes, BatchScheduler(passes, 8, 400, wait), **options).application()

    async def run(client):
        async with app.router.lifespan_context(app):
            return await call(client)

    return ask(run, transport=httpx2.ASGITransport(app, raise_app_exceptions=False))


def posted(*requests):
    """What posts requests at once: (path, body) each."""

    async def call(client):
        return await asyncio.gather(*(client.post(path, json=body) for path, body in requests))

    return call


def files(folder):
    """The parts of a form with which an adapter is put."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def predict(name, *texts):
    return "/v1/predict", {"adapter": name, "texts": texts}


def generate(name, max_new_tokens, *prompts):
    return "/v1/generate", {"adapter": name, "prompts": prompts, "max_new_tokens": max_new_tokens}
