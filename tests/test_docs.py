"""What /docs, /redoc and /openapi.json show, and the first page."""

import re

import pytest
from fastapi.testclient import TestClient

import main


def test_first_page_says_that_the_service_runs(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.json() == {"message": "Todo API is running", "docs": "/docs", "demo": "/demo"}


def test_first_page_and_docs_work_below_a_root_path() -> None:
    """With uvicorn --root-path /todo the path of a request begins with it."""
    behind = TestClient(main.app, root_path="/todo")
    assert behind.get("/todo/").json()["message"] == "Todo API is running"
    assert "/todo/openapi.json" in behind.get("/todo/docs").text
    assert behind.get("/todo/openapi.json").json()["servers"] == [{"url": "/todo"}]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_name_no_other_host(client: TestClient, page: str) -> None:
    response = client.get(page)
    assert response.status_code == 200
    assert "http://" not in response.text
    assert "https://" not in response.text


def test_every_operation_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert len(operations) >= 13
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["summary"]
        assert len(operation["tags"]) == 1
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


STATUSES = {
    "GET /": "200",
    "GET /health": "200 500 503",
    "GET /api/{user_id}/tasks": "200 401 403 422 500 503",
    "POST /api/{user_id}/tasks": "201 400 401 403 413 422 500 503",
    "GET /api/{user_id}/tasks/{task_id}": "200 401 403 404 422 500 503",
    "PUT /api/{user_id}/tasks/{task_id}": "200 400 401 403 404 413 422 500 503",
    "PATCH /api/{user_id}/tasks/{task_id}": "200 400 401 403 404 413 422 500 503",
    "DELETE /api/{user_id}/tasks/{task_id}": "204 401 403 404 422 500 503",
    "PATCH /api/{user_id}/tasks/{task_id}/complete": "200 401 403 404 422 500 503",
    "GET /api/auth/me": "200 401 500 503",
    "DELETE /api/auth/me": "204 400 401 413 422 429 500 503",
    "POST /api/auth/register": "201 400 409 413 422 429 500 503",
    "POST /api/auth/signup": "201 400 409 413 422 429 500 503",
    "POST /api/auth/login": "200 400 401 413 422 429 500 503",
    "POST /api/auth/signin": "200 400 401 413 422 429 500 503",
    "POST /api/auth/logout": "204 400 401 500 503",
    "POST /api/auth/password": "200 400 401 413 422 429 500 503",
}


def test_every_status_of_every_operation_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    documented = {
        f"{method.upper()} {path}": " ".join(sorted(operation["responses"]))
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    assert documented == STATUSES


def test_operations_are_named_as_generated_clients_should_call_them(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert sorted(names) == [
        *("change_password", "create_task", "delete_account", "delete_task", "get_task", "health"),
        *("list_tasks", "login", "logout", "me", "patch_task", "register", "root", "signin", "signup"),
        *("toggle_task", "update_task"),
    ]


def test_forms_hide_what_is_typed_as_a_password(client: TestClient) -> None:
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
        assert set(registered["properties"]) == {
            *("id", "email", "created_at"),
            *("access_token", "token_type", "expires_in", "user"),
        }


@pytest.mark.parametrize("model", ["TaskCreate", "TaskUpdate"])
def test_fields_that_may_be_left_out_have_no_default(client: TestClient, model: str) -> None:
    """Generated clients would take a field with a default for one that must be sent."""
    schema = client.get("/openapi.json").json()["components"]["schemas"][model]
    assert schema["properties"].keys() >= {"title", "description", "completed"}
    assert not [field for field in schema["properties"].values() if "default" in field]
    assert schema.get("required", []) == (["title"] if model == "TaskCreate" else [])


def test_description_says_where_tokens_are(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "*Create an account* or *Log in*" in document["info"]["description"]
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_bring_their_own_scripts(client: TestClient, page: str) -> None:
    assets = re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css))"', client.get(page).text)
    assert assets
    for asset in assets:
        response = client.get(asset)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
