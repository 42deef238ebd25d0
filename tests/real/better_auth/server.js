// A real Better Auth server without Next.js, whose tables are in memory; or the one in AUTH_FILE, such as ./auth.mjs.
// BETTER_AUTH_URL=http://localhost:3000 BETTER_AUTH_SECRET=... [SIGNER=HS256] [AUTH_FILE=...] node server.js
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import { SignJWT } from "jose";
import { createServer } from "node:http";

const url = new URL(process.env.BETTER_AUTH_URL);
const secret = new TextEncoder().encode(process.env.BETTER_AUTH_SECRET);
const tables = { user: [], session: [], account: [], verification: [], jwks: [] };

const HS256 = {
  jwks: { remoteUrl: "unused", keyPairConfig: { alg: "EdDSA" } }, // sign needs this line, nothing reads it
  jwt: { sign: (claims) => new SignJWT(claims).setProtectedHeader({ alg: "HS256" }).sign(secret) },
};
const inMemory = () =>
  betterAuth({
    database: memoryAdapter(tables),
    emailAndPassword: { enabled: true },
    plugins: [jwt(process.env.SIGNER === "HS256" ? HS256 : {})],
  });
async function fromFile(file) {
  const { auth } = await import(file);
  await (await getMigrations(auth.options)).runMigrations();
  return auth;
}
const auth = process.env.AUTH_FILE ? await fromFile(process.env.AUTH_FILE) : inMemory();

// What time does to keys: they expire, so that the next token gets a new one, and in the end are listed no more.
const test = {
  "/expire-keys": () => tables.jwks.forEach((key) => (key.expiresAt = new Date(Date.now() - 1000))),
  "/withdraw-expired-keys": () => (tables.jwks = tables.jwks.filter((key) => !(key.expiresAt < new Date()))),
};
const handle = toNodeHandler(auth);

createServer((request, response) => {
  if (!test[request.url]) return handle(request, response);
  test[request.url]();
  response.end();
}).listen(url.port, "127.0.0.1");
