"""What /docs, /redoc and /openapi.json show, and the first page."""

import re

import pytest
from fastapi.testclient import TestClient

import main


def test_first_page_says_that_the_service_runs(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.json() == {"message": "Todo API is running", "docs": "/docs"}


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


@pytest.mark.parametrize("model", ["TaskCreate", "TaskUpdate"])
def test_fields_that_may_be_left_out_have_no_default(client: TestClient, model: str) -> None:
    """Generated clients would take a field with a default for one that must be sent."""
    schema = client.get("/openapi.json").json()["components"]["schemas"][model]
    assert schema["properties"].keys() >= {"title", "description", "completed"}
    assert not [field for field in schema["properties"].values() if "default" in field]
    assert schema.get("required", []) == (["title"] if model == "TaskCreate" else [])


def test_description_says_where_tokens_are(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "*Make an account* and *Log in*" in document["info"]["description"]
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
