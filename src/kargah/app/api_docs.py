"""`/api/docs`: the API's documentation, with every file of it served from this machine."""

from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse

from kargah.ground.errors import NotFound

# Swagger UI (Apache-2.0) as the package fastapi-offline carries it.
_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon.png": "image/png",
}
_PAGE = """<!doctype html>
<html lang="en" dir="ltr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Kargah API</title>
<link rel="icon" href="/api/docs/favicon.png">
<link rel="stylesheet" href="/api/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/api/docs/swagger-ui-bundle.js"></script>
<script src="/api/docs/start.js"></script>
</body>
</html>
"""
_START = """window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "/api/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis],
  });
});
"""


def build_router() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def root() -> Response:
        return RedirectResponse("/api/docs", 307)

    @router.get("/api/docs")
    def page() -> Response:
        return Response(_PAGE, media_type="text/html; charset=utf-8")

    @router.get("/api/docs/start.js")
    def start() -> Response:
        return Response(_START, media_type="text/javascript; charset=utf-8")

    @router.get("/api/docs/{name}")
    def file(name: str) -> Response:
        if name not in _FILES:
            raise NotFound()
        data = resources.files("fastapi_offline").joinpath("static", name).read_bytes()
        return Response(data, media_type=_FILES[name])

    return router


def tidy_openapi(api: FastAPI) -> None:
    """Make the document say what the server does: a rejected body is 400, never FastAPI's own 422."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation.get("responses", {}).pop("422", None)
                    if "400" not in operation["responses"] and (
                        "requestBody" in operation or operation.get("parameters")
                    ):
                        operation["responses"]["400"] = _rejected()
            for unused in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(unused, None)
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _rejected() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    return {"description": "`VALIDATION_FAILED`", "content": content}
