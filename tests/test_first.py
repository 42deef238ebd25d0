"""Six tests to start from: a user does something, and you look at the response."""

from tests.conftest import Caller


def test_create_task(user: Caller) -> None:
    response = user("POST", json={"title": "Water the plants"})
    assert response.status_code == 201
    assert response.json()["title"] == "Water the plants"


def test_create_task_without_title(user: Caller) -> None:
    response = user("POST", json={"description": "The fern likes it wet."})
    assert response.status_code == 422


def test_list_tasks(user: Caller) -> None:
    user.make("Milk")
    user.make("Bread")
    assert user.titles() == ["Bread", "Milk"]  # the newest first


def test_update_task(user: Caller) -> None:
    task = user.make("Milk", description="two bottles")
    response = user("PATCH", f"/{task['id']}", json={"title": "Oat milk"})
    assert response.json()["title"] == "Oat milk"
    assert response.json()["description"] == "two bottles"


def test_delete_task(user: Caller) -> None:
    task = user.make()
    assert user("DELETE", f"/{task['id']}").status_code == 204
    assert user("GET", f"/{task['id']}").status_code == 404


def test_stranger_cannot_read_task(user: Caller, stranger: Caller) -> None:
    task = user.make()
    assert stranger("GET", f"/{task['id']}").status_code == 404  # on the stranger's own path
