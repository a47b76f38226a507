// Signing in at an issuer, in a browser: at the page, and for jitgate login.
import assert from "node:assert/strict";
import { alsoAt, base, check, context, done, look } from "./browser.mjs";

const { ISSUER } = process.env;
alsoAt(ISSUER);
alsoAt("http://localhost:"); // where jitgate login takes the browser's answer

// asPerson signs in at the issuer.
async function asPerson(page, name) {
	await page.waitForURL((u) => u.href.startsWith(ISSUER));
	await page.getByLabel("Name").fill(name);
	await page.getByRole("button", { name: "Allow" }).click();
}

const session = async (page) => (await page.context().cookies(base)).find((c) => c.name === "__Host-jitgate");

// --- the page ---
const dora = await (await context()).newPage();
await dora.goto(base + "/ui/requests?show=all");
await check(dora, "sign-in, with an issuer");
await dora.getByRole("link", { name: /^Sign in at / }).click();
await asPerson(dora, "dora");
await dora.waitForURL(base + "/ui/requests?show=all");
await dora.getByText("dora", { exact: true }).waitFor();
assert((await session(dora)).httpOnly);

// What an issuer's answer comes to that the browser did not ask for: a state
// that is another's, and none.
const mallory = await (await context()).newPage();
await mallory.goto(base + "/ui/sign-in");
await mallory.getByRole("link", { name: /^Sign in at / }).click();
await mallory.waitForURL((u) => u.href.startsWith(ISSUER));
// She signs in, and keeps the answer back to have a victim send it.
const { location: answer } = (await mallory.request.post(mallory.url(), { form: { name: "mallory" }, maxRedirects: 0 })).headers();
assert(answer.startsWith(base + "/ui/callback?"), answer);
for (const began of [false, true]) {
	const victim = await (await context()).newPage();
	if (began) {
		await victim.goto(base + "/ui/sign-in");
		await victim.getByRole("link", { name: /^Sign in at / }).click();
		await victim.waitForURL((u) => u.href.startsWith(ISSUER));
	}
	assert.equal((await victim.goto(answer)).status(), 401);
	await victim.getByRole("alert").waitFor();
	await check(victim, "an answer nobody asked for");
	assert.equal(await session(victim), undefined);
	await victim.context().close();
}

// A session that is ended elsewhere: who looks on is led to sign in.
const copy = await context();
await copy.addCookies(await dora.context().cookies());
const elsewhere = await copy.newPage();
await elsewhere.goto(base + "/ui/requests");
await elsewhere.getByRole("button", { name: "Sign out" }).click();
await elsewhere.getByLabel("Token").waitFor();
await dora.waitForURL(/\/ui\/sign-in\?next=%2Fui%2Frequests/);
// And back, to where she was.
await dora.getByRole("link", { name: /^Sign in at / }).click();
await asPerson(dora, "dora");
await dora.waitForURL(base + "/ui/requests?show=all");
await dora.getByRole("button", { name: "Sign out" }).click();
await dora.getByLabel("Token").waitFor();
await dora.goto(base + "/ui/requests");
await dora.getByLabel("Token").waitFor();

// --- jitgate login ---
await dora.goto(await look("login by the browser"));
await asPerson(dora, "dora");
await dora.getByText("You are signed in").waitFor();
await look("logged in");
const [address, code] = (await look("login by a code")).split(" ");
await dora.goto(address);
await dora.getByLabel("Code").fill(code);
await asPerson(dora, "erik");
await dora.getByText("Go back").waitFor();
await look("logged in by the code");

await done();
