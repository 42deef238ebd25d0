"""Random sequences of all operations by two users, compared with a model: a list in Python."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.conftest import UserClient, check_change

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: pip install --group dev")

from hypothesis import HealthCheck, settings, strategies as st  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule  # noqa: E402

pytestmark = pytest.mark.slow

# Few letters, so that titles collide and searches hit. Those that search treats specially are among them.
LETTERS = st.sampled_from([*"aAbB1 %_\\", "ä", "Ä", "日", "🎉"])
TITLES = st.text(LETTERS, min_size=1, max_size=5).filter(lambda title: bool(title.strip()))
DESCRIPTIONS = st.none() | st.text(LETTERS, max_size=5)
SEARCHES = st.none() | st.text(LETTERS, max_size=2)
SORTS = st.sampled_from(["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"])
CHANGES = st.fixed_dictionaries(
    {}, optional={"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()}
)
WHO = st.sampled_from([0, 1])
WHICH = st.integers(0, 50)
REQUESTS = [("GET", ""), ("PUT", ""), ("PATCH", "/complete"), ("DELETE", "")]


@dataclass
class Model:
    """A user, and the tasks that the API should have for them."""

    user: UserClient
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def listed(self, search: str | None, completed: bool | None, sort: str) -> list[dict[str, Any]]:
        found = [
            task
            for task in self.tasks
            if (completed is None or task["completed"] is completed)
            and (
                not search
                or any(search.lower() in (task[name] or "").lower() for name in ("title", "description"))
            )
        ]
        name = sort.removeprefix("-")

        def key(task: dict[str, Any]) -> tuple[str, int]:
            return (task[name].lower() if name == "title" else task[name], task["id"])

        return sorted(found, key=key, reverse=sort.startswith("-"))


class TaskMachine(RuleBasedStateMachine):
    client: TestClient

    @initialize()
    def start(self) -> None:
        self.models = [Model(UserClient(self.client, uuid.uuid4().hex)) for _ in range(2)]

    @rule(who=WHO, title=TITLES, description=DESCRIPTIONS, completed=st.booleans())
    def create(self, who: int, title: str, description: str | None, completed: bool) -> None:
        model = self.models[who]
        task = model.user.create(title, description=description, completed=completed)
        expected = {"title": title.strip(), "description": description, "completed": completed}
        assert expected.items() <= task.items()
        assert task["user_id"] == model.user.user_id
        model.tasks.append(task)

    def any_task(self, who: int, which: int) -> dict[str, Any] | None:
        tasks = self.models[who].tasks
        return tasks[which % len(tasks)] if tasks else None

    @rule(who=WHO, which=WHICH, method=st.sampled_from(["PUT", "PATCH"]), changes=CHANGES)
    def update(self, who: int, which: int, method: str, changes: dict[str, Any]) -> None:
        if task := self.any_task(who, which):
            response = self.models[who].user(method, f"/{task['id']}", json=changes)
            self.changed(
                task, response, changes | ({"title": changes["title"].strip()} if "title" in changes else {})
            )

    @rule(who=WHO, which=WHICH)
    def toggle(self, who: int, which: int) -> None:
        if task := self.any_task(who, which):
            response = self.models[who].user("PATCH", f"/{task['id']}/complete")
            self.changed(task, response, {"completed": not task["completed"]})

    def changed(self, task: dict[str, Any], response: Any, changes: dict[str, Any]) -> None:
        assert response.status_code == 200, response.text
        after = response.json()
        check_change(task, after, **changes)
        task.update(after)

    @rule(who=WHO, which=WHICH)
    def delete(self, who: int, which: int) -> None:
        if task := self.any_task(who, which):
            self.models[who].tasks.remove(task)
            codes = [self.models[who].user("DELETE", f"/{task['id']}").status_code for _ in range(2)]
            assert codes == [204, 404]

    @rule(who=WHO, which=WHICH)
    def get(self, who: int, which: int) -> None:
        if task := self.any_task(who, which):
            assert self.models[who].user("GET", f"/{task['id']}").json() == task

    @rule(who=WHO, which=WHICH, request=st.sampled_from(REQUESTS))
    def use_another_users_task(self, who: int, which: int, request: tuple[str, str]) -> None:
        if task := self.any_task(1 - who, which):
            method, suffix = request
            response = self.models[who].user(method, f"/{task['id']}{suffix}", json={"title": "stolen"})
            assert response.status_code == 404

    @rule(
        who=WHO,
        search=SEARCHES,
        completed=st.none() | st.booleans(),
        sort=SORTS,
        skip=st.integers(0, 4),
        limit=st.integers(1, 4),
    )
    def list_a_page_and_the_pages_after_it(
        self, who: int, search: str | None, completed: bool | None, sort: str, skip: int, limit: int
    ) -> None:
        model = self.models[who]
        expected = model.listed(search, completed, sort)[skip:]
        asked = {"search": search, "completed": completed, "sort": sort, "skip": skip, "limit": limit}
        page = model.user("GET", params={name: value for name, value in asked.items() if value is not None})
        seen = page.json()
        assert len(seen) <= limit
        while target := page.links.get("next"):
            page = model.user.client.get(target["url"], headers=model.user.headers)
            seen += page.json()
        assert seen == expected

    @precondition(lambda self: hasattr(self, "models"))
    @invariant()
    def lists_are_whole(self) -> None:
        for model in self.models:
            assert model.user("GET").json() == model.listed(None, None, "-created_at")


def test_api_and_model_agree(client: TestClient) -> None:
    TaskMachine.client = client
    bounds = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,  # a slow machine is no mistake
        derandomize=True,  # the same sequences in each run: red means that the code has changed
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    hypothesis.stateful.run_state_machine_as_test(TaskMachine, settings=bounds)
