// A frontend's round through the API, with the client and the types that its OpenAPI document makes.
// What is not as the types say ends it with an error, at compile time or at run time.
// node built/round.js <the API's URL>
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Task = components["schemas"]["TaskPublic"];

declare const process: { argv: string[] };
const baseUrl = process.argv[2] ?? "";

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

const api = createClient<paths>({ baseUrl });
const body = { email: "ann@example.com", password: "correct horse" };
const signup = await api.POST("/api/auth/signup", { body });
check(signup.data?.email === body.email, "sign up");
const login = await api.POST("/api/auth/login", { body });
check(login.data?.token_type === "bearer", "log in");
const { access_token, user } = login.data;
const path = { user_id: user.id };
api.use({
  onRequest({ request }) {
    request.headers.set("Authorization", `Bearer ${access_token}`);
  },
});

const made: Task[] = [];
for (const title of ["one", "two", "three"]) {
  const created = await api.POST("/api/{user_id}/tasks", { params: { path }, body: { title } });
  check(created.data?.title === title && created.data.description === null, "create");
  check(created.response.headers.get("Location")?.endsWith(`/${created.data.id}`) === true, "Location");
  made.unshift(created.data);
}

const listed: Task[] = [];
let skip: number | null = 0;
while (skip !== null) {
  const query: { limit: number; skip: number; completed: boolean } = { limit: 2, skip, completed: false };
  const { data, response } = await api.GET("/api/{user_id}/tasks", { params: { path, query } });
  check(data !== undefined, "list");
  listed.push(...data);
  const next = /<([^>]*)>; rel="next"/.exec(response.headers.get("Link") ?? "");
  skip = next?.[1] ? Number(new URL(next[1], baseUrl).searchParams.get("skip")) : null;
}
check(JSON.stringify(listed) === JSON.stringify(made), "all pages");

const task = made[0];
check(task !== undefined, "a task");
const params = { path: { ...path, task_id: task.id } };
const toggled = await api.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params });
check(toggled.data?.completed === true, "toggle");
const cleared = await api.PATCH("/api/{user_id}/tasks/{task_id}", { params, body: { completed: false } });
check(cleared.data?.completed === false, "patch");
const updated = await api.PUT("/api/{user_id}/tasks/{task_id}", { params, body: { completed: true } });
check(updated.data?.completed === true && updated.data.title === task.title, "update");
const whole = await api.PUT("/api/{user_id}/tasks/{task_id}", { params, body: task });
check(whole.data?.completed === false, "send a whole task back");
const deleted = await api.DELETE("/api/{user_id}/tasks/{task_id}", { params });
check(deleted.response.status === 204 && deleted.error === undefined, "delete");

const gone = await api.GET("/api/{user_id}/tasks/{task_id}", { params });
check(gone.error !== undefined, "an error");
const code: string = gone.error.error.code;
check(gone.response.status === 404 && code === "not_found", "404");
const invalid = await api.POST("/api/{user_id}/tasks", { params: { path }, body: { title: " " } });
check(invalid.response.status === 422 && invalid.error !== undefined, "422");
const { detail } = invalid.error;
check(typeof detail !== "string" && detail[0]?.loc.at(-1) === "title", "the place of the mistake");

// @ts-expect-error  a task needs a title
const untitled = await api.POST("/api/{user_id}/tasks", { params: { path }, body: { completed: true } });
check(untitled.response.status === 422, "no title");
