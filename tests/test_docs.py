"""What /docs, /redoc and /openapi.json show, and `GET /`."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

import main


def test_root_says_that_the_api_is_running(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.json() == {"message": "Todo API is running", "docs": "/docs", "demo": "/demo"}


def test_root_and_docs_work_below_a_root_path() -> None:
    """With uvicorn --root-path /todo the path of a request begins with it."""
    behind = TestClient(main.app, root_path="/todo")
    assert behind.get("/todo/").json()["message"] == "Todo API is running"
    assert "/todo/openapi.json" in behind.get("/todo/docs").text
    assert behind.get("/todo/openapi.json").json()["servers"] == [{"url": "/todo"}]


def operations(client: TestClient) -> dict[str, dict[str, Any]]:
    """What /openapi.json says of each: "GET /health" and so on."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_is_described(client: TestClient) -> None:
    """Your own operations, too."""
    names = [operation["operationId"] for operation in operations(client).values()]
    assert len(set(names)) == len(names)
    for call, operation in operations(client).items():
        assert operation["summary"], call
        assert len(operation["tags"]) == 1, call
        assert re.fullmatch("[a-z][a-z0-9_]*", operation["operationId"]), call
        statuses = set(operation["responses"])
        if "security" in operation:
            assert statuses >= {"401", "500", "503"}, call
        if "{user_id}" in call:
            assert "403" in statuses, call
        if "requestBody" in operation:
            assert statuses >= {"400", "413", "422"}, call
        for status in statuses:
            if status.startswith(("4", "5")):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, call


# How generated clients call it, and the statuses.
OPERATIONS = {
    "GET /": ("root", "200"),
    "GET /health": ("health", "200 500 503"),
    "GET /api/{user_id}/tasks": ("list_tasks", "200 401 403 422 500 503"),
    "POST /api/{user_id}/tasks": ("create_task", "201 400 401 403 413 422 500 503"),
    "GET /api/{user_id}/tasks/{task_id}": ("get_task", "200 401 403 404 422 500 503"),
    "PUT /api/{user_id}/tasks/{task_id}": ("update_task", "200 400 401 403 404 413 422 500 503"),
    "PATCH /api/{user_id}/tasks/{task_id}": ("patch_task", "200 400 401 403 404 413 422 500 503"),
    "DELETE /api/{user_id}/tasks/{task_id}": ("delete_task", "204 401 403 404 422 500 503"),
    "PATCH /api/{user_id}/tasks/{task_id}/complete": ("toggle_task", "200 401 403 404 422 500 503"),
    "GET /api/auth/me": ("me", "200 401 500 503"),
    "DELETE /api/auth/me": ("delete_account", "204 400 401 413 422 429 500 503"),
    "POST /api/auth/register": ("register", "201 400 409 413 422 429 500 503"),
    "POST /api/auth/signup": ("signup", "201 400 409 413 422 429 500 503"),
    "POST /api/auth/login": ("login", "200 400 401 413 422 429 500 503"),
    "POST /api/auth/signin": ("signin", "200 400 401 413 422 429 500 503"),
    "POST /api/auth/password": ("change_password", "200 400 401 413 422 429 500 503"),
    "POST /api/auth/logout": ("logout", "204 400 401 500 503"),
}


@pytest.mark.parametrize("call", OPERATIONS)
def test_names_and_statuses_are_documented(client: TestClient, call: str) -> None:
    operation = operations(client)[call]
    assert (operation["operationId"], " ".join(sorted(operation["responses"]))) == OPERATIONS[call]


def test_passwords_are_hidden_in_forms(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"].values()
    properties = [item for schema in schemas for item in schema.get("properties", {}).items()]
    passwords = [schema for name, schema in properties if "password" in name]
    assert len(passwords) >= 4
    assert {password["format"] for password in passwords} == {"password"}


def test_registration_is_described_as_a_user_and_a_login(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/api/auth/register", "/api/auth/signup"):
        schema = document["paths"][path]["post"]["responses"]["201"]["content"]["application/json"]["schema"]
        registered = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert set(registered["properties"]) >= {
            *("id", "email", "created_at"),
            *("access_token", "token_type", "expires_in", "user"),
        }


@pytest.mark.parametrize("model", ["TaskCreate", "TaskUpdate"])
def test_optional_fields_have_no_default(client: TestClient, model: str) -> None:
    """Generated clients would take a field with a default for one that must be sent."""
    schema = client.get("/openapi.json").json()["components"]["schemas"][model]
    assert schema["properties"].keys() >= {"title", "description", "completed"}
    assert not [field for field in schema["properties"].values() if "default" in field]
    assert ("title" in schema.get("required", [])) is (model == "TaskCreate")
    assert not {"description", "completed"} & set(schema.get("required", []))


def test_description_says_where_tokens_are(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "*Create an account* or *Log in*" in document["info"]["description"]
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_use_only_files_of_this_api(client: TestClient, page: str) -> None:
    html = client.get(page).text
    assert "http://" not in html
    assert "https://" not in html
    assets = re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css))"', html)
    assert assets
    for asset in assets:
        response = client.get(asset)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
