"""Six tests to start from: a user does something, and you look at the response."""

from tests.conftest import UserClient


def test_create_task(user: UserClient) -> None:
    response = user("POST", json={"title": "Water the plants"})
    assert response.status_code == 201
    assert response.json()["title"] == "Water the plants"


def test_create_task_without_title(user: UserClient) -> None:
    response = user("POST", json={"description": "The fern likes it wet."})
    assert response.status_code == 422


def test_list_tasks(user: UserClient) -> None:
    user.create("Milk")
    user.create("Bread")
    assert user.titles() == ["Bread", "Milk"]  # the newest first


def test_update_task(user: UserClient) -> None:
    task = user.create("Milk", description="two bottles")
    response = user("PATCH", f"/{task['id']}", json={"title": "Oat milk"})
    assert response.json()["title"] == "Oat milk"
    assert response.json()["description"] == "two bottles"


def test_delete_task(user: UserClient) -> None:
    task = user.create()
    assert user("DELETE", f"/{task['id']}").status_code == 204
    assert user("GET", f"/{task['id']}").status_code == 404


def test_another_user_cannot_read_task(user: UserClient, another_user: UserClient) -> None:
    task = user.create()
    assert another_user("GET", f"/{task['id']}").status_code == 404  # on that user's own path
