"""Users of the built-in accounts, and their requests."""

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
    def __init__(self, client: TestClient, password: str = PASSWORD) -> None:
        self.client, self.email, self.password = client, new_email(), password
        response = post(client, "register", self.email, password)
        assert response.status_code == 201, response.text
        self.id = response.json()["id"]

    def login(self) -> str:
        response = post(self.client, "login", self.email, self.password)
        assert response.status_code == 200, response.text
        return str(response.json()["access_token"])

    def send(self, bearer: str, method: str, path: str, body: object = None) -> Any:
        return self.client.request(method, path, json=body, headers={"Authorization": f"Bearer {bearer}"})

    def get(self, bearer: str, path: str = "/api/auth/me") -> Any:
        return self.send(bearer, "GET", path)

    def create_task(self, bearer: str) -> Any:
        return self.send(bearer, "POST", f"/api/{self.id}/tasks", {"title": "Mine"})

    def logout(self, bearer: str) -> Any:
        return self.send(bearer, "POST", "/api/auth/logout")

    def change_password(self, bearer: str, old: str, new: str) -> Any:
        return self.send(bearer, "POST", "/api/auth/password", {"password": old, "new_password": new})

    def delete(self, bearer: str, password: str = PASSWORD) -> Any:
        return self.send(bearer, "DELETE", "/api/auth/me", {"password": password})

    def row(self) -> User:
        with Session(db.engine) as session:
            return session.exec(select(User).where(User.id == self.id)).one()
