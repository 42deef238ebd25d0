"""The built-in accounts, and what their users ask for."""

import secrets
from typing import Any

from fastapi.testclient import TestClient
from sqlmodel import Session, select

import db
from models import User

PASSWORD = "correct horse battery staple"


def new_email() -> str:
    return f"{secrets.token_hex(8)}@example.com"


def post(client: TestClient, path: str, email: str, password: str = PASSWORD) -> Any:
    return client.post(f"/api/auth/{path}", json={"email": email, "password": password})


class Account:
    """A user of the built-in accounts, and what this user asks for."""

    def __init__(self, client: TestClient, password: str = PASSWORD) -> None:
        self.client, self.email, self.password = client, new_email(), password
        response = post(client, "register", self.email, password)
        assert response.status_code == 201, response.text
        self.id = response.json()["id"]

    def login(self) -> str:
        response = post(self.client, "login", self.email, self.password)
        assert response.status_code == 200, response.text
        return str(response.json()["access_token"])

    def get(self, bearer: str, path: str = "/api/auth/me") -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {bearer}"})

    def create_task(self, bearer: str) -> Any:
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.client.post(f"/api/{self.id}/tasks", json={"title": "Mine"}, headers=headers)

    def logout(self, bearer: str) -> Any:
        return self.client.post("/api/auth/logout", headers={"Authorization": f"Bearer {bearer}"})

    def change_password(self, bearer: str, old: str, new: str) -> Any:
        body = {"password": old, "new_password": new}
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.client.post("/api/auth/password", json=body, headers=headers)

    def delete(self, bearer: str, password: str = PASSWORD) -> Any:
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.client.request("DELETE", "/api/auth/me", json={"password": password}, headers=headers)

    def row(self) -> User:
        with Session(db.engine) as session:
            return session.exec(select(User).where(User.id == self.id)).one()
